"""Which store: MLFLOW_TRACKING_URI, or `mlflow.db` in the repository's folder. Imports no MLflow."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from pipeline.system.command import TEMPORARY_COPIES, PipelineError

VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"  # beside `mlruns`: what MLflow takes when no address is given


def root() -> Path:
    """The repository's folder, also from a copy inside it (`dvc exp run --temp`, `.workspaces/`): one store for all."""
    here = Path(__file__).resolve().parents[2]
    return next(
        folder for folder in reversed([here, *here.parents]) if (folder / "pipeline/tracking/__init__.py").exists()
    )


def folder() -> str:
    """The working directory as seen from the repository's folder: `.`, or a copy inside it."""
    return os.path.relpath(Path.cwd(), root())


def store_uri() -> str:
    """The store's address; of an embedded store the absolute one, a relative one being of the repository's folder."""
    given, path = os.environ.get(VARIABLE, ""), database()
    return sqlite_uri(path) + given[len(given.partition("?")[0]) :] if path else given


def database() -> Path | None:
    """The file of an embedded store; None if the store is a server or another database.

    Decoded as SQLAlchemy does: MLflow hands on `my%20project` to what `mlflow run` starts.
    """
    path = sqlite_path(os.environ.get(VARIABLE) or sqlite_uri(Path(DATABASE)))
    return root() / path if path else None


def is_store(uri: str) -> bool:
    """Whether a database's address is the store's; of a SQLite file, a relative one being of the working directory."""
    path, ours = sqlite_path(uri), database()
    return path.resolve() == ours.resolve() if path and ours else uri == store_uri()


def sqlite_path(uri: str) -> Path | None:
    """The file that a SQLite address names, maybe relative; None if it names none, or if it is no SQLite address."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri, re.DOTALL)
    path = unquote(found[1]) if found else ""
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file."""
    quoted = quote(os.fsencode(path))
    # MLflow makes the folder of `sqlite:///my%20project/…` without decoding it; of another scheme it makes none.
    return f"sqlite:///{quoted}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def check() -> None:
    """Raises PipelineError if the address can never work: no fix but another address."""
    given, path = os.environ.get(VARIABLE, ""), database()
    received = f"{VARIABLE}: received {without_secrets(given)!r}" if given else f"the MLflow store {path}"
    example = f"use sqlite:///{DATABASE}, or a server's address, http://…"
    if path and not path.parent.is_dir():
        raise PipelineError(f"{received}; the folder {path.parent} does not exist: create it, or correct the address")
    if path and path.exists() and not path.is_file():
        raise PipelineError(f"{received}, which is not a file; {example}")
    if not path and given.startswith("sqlite"):
        raise PipelineError(f"{received}, which names no file; {example}")
    is_folder = not path and re.match(r"file:|(?!databricks|uc$)[^:]*$", given)
    if is_folder and not os.environ.get("MLFLOW_ALLOW_FILE_STORE"):
        raise PipelineError(f"{received}, a folder; MLflow no longer keeps runs in folders: {example}")


def file_store_warning() -> str:
    """What to say if a store of MLflow's former kind lies where `mlflow ui` looks first; empty if there is none."""
    found = next(iter(sorted((root() / "mlruns").glob("[0-9]*/meta.yaml"))), None)
    if found is None or os.environ.get(VARIABLE):
        return ""
    folder = found.parent.relative_to(root())
    return (
        f"{folder}/{found.name} is of MLflow's former file store, for which `mlflow ui` without options refuses to "
        f"start: move {folder}/ elsewhere, or use `make ui`"
    )


def server() -> str:
    """The address of an MLflow server, as a browser needs it; empty if the store is a database."""
    given = os.environ.get(VARIABLE, "")
    return without_secrets(given).rstrip("/") if given.startswith(("http://", "https://")) else ""


def shown() -> str:
    """The store, as messages name it."""
    return str(database() or without_secrets(os.environ.get(VARIABLE, "")))


def completed_later() -> str:
    """How a store that lacks something is completed, as a clause."""
    if TEMPORARY_COPIES in Path.cwd().as_posix():
        return "`dvc exp apply` and `dvc repro` complete the store later"
    return "`dvc repro` completes the store later"


def without_secrets(text: str) -> str:
    """The text without the user names and passwords of the addresses in it, even of ones that are not quoted."""
    return re.sub(r"://\S*@", "://", re.sub(r"(?<=://)(\S*)\?\S*", r"\1", text))
