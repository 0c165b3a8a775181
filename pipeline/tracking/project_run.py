"""Under `mlflow run`: the caller's store, and the run that MLflow made there for the call."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.tracking import address, embedded, store
from pipeline.tracking.runs import NOTE

BEGINNING = "`mlflow run`: "  # of our notes


def use_callers_store() -> None:
    """Makes a relative address absolute: under `mlflow run` it is of the folder in which that was called.

    MLflow hands the address on as it is, and the project of a git address runs in a temporary folder. The caller's
    folder is that of a process above this one, where the store knows the run that MLflow made for this call.
    """
    given, run_id = os.environ.get(address.VARIABLE, ""), os.environ.get("MLFLOW_RUN_ID")
    path = address.sqlite_path(given)
    if run_id:
        _remove_stray_folders(given)
    if not run_id or path is None or path.is_absolute():
        return
    for folder in _folders_above():
        if _knows(folder / path, run_id):
            os.environ[address.VARIABLE] = address.sqlite_uri(folder / path) + given[len(given.partition("?")[0]) :]
            return


def describe(name: str, note: str) -> None:
    """Names and describes the run that `mlflow run` made, if there is one; what its caller gave it stays."""
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        store.attempt(f"describe {name}", lambda: _describe(run_id, name, note))


def _describe(run_id: str, name: str, note: str) -> None:
    client, run = store.client(), store.client().get_run(run_id)
    if re.fullmatch(r"[a-z]+-[a-z]+-\d+", run.info.run_name or ""):  # MLflow's own idea: `caring-grouse-973`
        client.set_tag(run_id, "mlflow.runName", name)
    if run.data.tags.get(NOTE, BEGINNING).startswith(BEGINNING):
        client.set_tag(run_id, NOTE, f"{BEGINNING}{note}")


def _folders_above() -> Iterator[Path]:
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            yield Path(process.cwd())


def _remove_stray_folders(uri: str) -> None:
    """Removes the empty folders that MLflow made for an address like `sqlite:////home/me/my%20project/mlflow.db`.

    It takes the address as it is, undecoded, for a path.
    """
    stray = Path(uri.removeprefix("sqlite:///"))
    with contextlib.suppress(OSError):  # not empty: somebody's own
        for folder in stray.parents:
            if "%" in str(folder):
                folder.rmdir()


def _knows(database: Path, run_id: str) -> bool:
    try:
        with embedded.reading(database) as connection:
            return bool(connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone())
    except sqlite3.Error:
        return False
