"""The embedded store: a SQLite file beside a folder of artifacts."""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.tracking import address


def create(database: Path) -> None:
    """Makes an embedded store whole or not at all: MLflow cannot open one that was killed while it made its tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix=f"{database.name}.new-", dir=database.parent) as folder:
        new = Path(folder) / database.name
        SqlAlchemyStore(address.sqlite_uri(new), artifacts(database).as_uri()).engine.dispose()
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(new, database)


def artifacts(database: Path) -> Path:
    """The folder of artifacts that `mlflow ui` without options uses beside this database."""
    return database.parent / "mlruns"


@contextlib.contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection. SQLite is asked itself: importing MLflow and opening its store costs 2 s."""
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
    try:
        yield connection
    finally:
        connection.close()


def local_path(location: str) -> Path | None:
    """The folder that an artifact location names, a path or a `file:` address; None if it is elsewhere."""
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None
