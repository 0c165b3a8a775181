"""The embedded store: a SQLite file beside a folder of artifacts."""

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from pipeline.tracking import address


def create(database: Path) -> None:
    """Makes an embedded store whole or not at all: MLflow cannot open one that was killed while it made its tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix=f"{database.name}.new-", dir=database.parent) as folder:
        new = Path(folder) / database.name
        SqlAlchemyStore(f"{address.SQLITE}{new}", artifacts(database)).engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(new, database)


def artifacts(database: Path) -> str:
    """The folder of artifacts that `mlflow ui` without flags uses beside this database."""
    return str(database.parent / "mlruns")


@contextlib.contextmanager
def reading(database: Path) -> Any:
    """A read-only connection. SQLite is asked itself: importing MLflow and opening its store costs 2 s."""
    connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)
    try:
        yield connection
    finally:
        connection.close()
