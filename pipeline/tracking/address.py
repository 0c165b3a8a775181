"""Which store: MLFLOW_TRACKING_URI, or `mlflow.db` in the repository's folder. Imports no MLflow."""

import os
import re
from pathlib import Path

SQLITE = "sqlite:///"


def root() -> Path:
    """The repository's folder, also from a copy inside it (`dvc exp run --temp`, `.workspaces/`): one store for all."""
    here = Path(__file__).resolve().parents[2]
    return next(
        folder for folder in reversed([here, *here.parents]) if (folder / "pipeline/tracking/__init__.py").exists()
    )


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or the store that `mlflow ui` opens in the repository's folder when no flag is given."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    relative = uri.removeprefix(SQLITE)
    if relative != uri and not relative.startswith("/"):  # `mlflow run .` hands its own on so
        return f"{SQLITE}{root() / relative}"
    return uri or f"{SQLITE}{root() / 'mlflow.db'}"


def database() -> Path | None:
    """The file of an embedded store; None if the store is a server or another database."""
    uri = store_uri()
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def without_secrets(text: str) -> str:
    """The text without the user names and passwords of the addresses in it, even of ones that are not quoted."""
    return re.sub(r"://\S*@", "://", re.sub(r"(?<=://)(\S*)\?\S*", r"\1", text))
