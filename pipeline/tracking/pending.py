"""What `mlflow run` did not finish logging, in `.workspaces/`: noted there when it starts, until the store has it."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.records import files, record
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import address
from pipeline.tracking.sync import sync_run

WORKSPACES = Path(".workspaces")
NOTE = "unsynced.json"
VARIABLES = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")  # where runs go, below which parent


class _Noted(files.Content):
    runs: list[str]
    began_ms: int
    store: str
    environment: dict[str, str]


def note(workspace: Path, runs: list[str]) -> None:
    """Notes which runs a workspace is about to log, and where. Not the store's address, which may hold a password."""
    environment = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    noted = _Noted(runs=runs, began_ms=record.now_ms(), store=_store(), environment=environment)
    files.write_json(workspace / NOTE, noted.model_dump())


def complete_all() -> None:
    """Completes the store from every workspace that nobody works in now."""
    for path in sorted(WORKSPACES.glob(f"*/{NOTE}")):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(path.parent, ""))
            except (OSError, PipelineError):  # it is in use, and completes itself, or it is not ours
                continue
            complete(path.parent)


def complete(workspace: Path) -> bool:
    """Logs what a workspace noted and the store lacks; returns whether nothing is left to log."""
    if not (workspace / NOTE).exists():
        return True
    try:
        noted = files.parse(json.loads(files.read(workspace / NOTE, files.MAX_BYTES)), _Noted)
        if noted.store not in (_store(), address.shown()):
            where = noted.store if "://" in noted.store else (address.root() / noted.store).resolve()
            raise PipelineError(f"they are for the one at {where}; set MLFLOW_TRACKING_URI to it")
        with contextlib.chdir(workspace), _environment(noted.environment):
            found = [record.load(run) for run in noted.runs if (record.RESULTS / run / "training.json").exists()]
            ended = [log for log in found if log.training.status != "running"]  # the others resume
            # A record of an earlier time was copied into the workspace: it is no child of the call.
            logged = [sync_run(log, live=log.training.started_ms >= noted.began_ms) for log in ended]
    except (OSError, ValueError, PipelineError) as error:
        print(f"warning: {workspace / NOTE}: not all runs are in the MLflow store: {error}", file=sys.stderr)
        return False
    if None in logged:
        return False
    (workspace / NOTE).unlink()
    return True


def _store() -> str:
    """The store, as notes name it: one in the repository's folder moves with it."""
    database = address.database()
    return os.path.relpath(database, address.root()) if database else address.shown()


def set_aside(workspace: Path) -> None:
    """Keeps the results of a workspace that the store still lacks, before others take their place."""
    if not complete(workspace):
        kept = workspace.with_name(f"{workspace.name}-{record.now_ms()}")
        kept.mkdir()
        for name in ("results", NOTE):
            shutil.move(workspace / name, kept / name)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
