"""An embedded store that was moved or copied with its folder: its artifact locations, which are absolute, follow it."""

import contextlib
import os
import sqlite3
import sys
import time
from pathlib import Path

from pipeline.tracking import embedded

TIMEOUT = 10.0  # seconds, for another process to end its transaction
MADE_AT = "database"  # the tag of experiment 0 that says where the store was made
LOCATIONS = (  # table, column and a condition
    ("experiments", "artifact_location", "1"),
    ("runs", "artifact_uri", "1"),
    ("logged_models", "artifact_location", "1"),
    ("model_versions", "source", "1"),
    ("model_versions", "storage_location", "1"),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
    ("workspaces", "default_artifact_root", "1"),
    ("workspaces", "trace_archival_location", "1"),
)


def mark(database: Path) -> None:
    """Notes in the store where it is, unless that was noted before."""
    with contextlib.closing(sqlite3.connect(database, timeout=TIMEOUT)) as connection, connection:
        if not _read_mark(connection):
            _write_mark(connection, database)


def is_moved(database: Path) -> bool:
    """Whether the store was made in another folder than it lies in now. Writes nothing."""
    with embedded.reading(database) as connection:
        return _old_folder(connection, database) is not None


def follow(database: Path) -> None:
    """Makes the locations in a store that was moved or copied those of its present folder: all or none, after a backup.

    So a moved store finds its artifacts, and a copy never writes into the original.
    """
    backup = database.with_name(f"{database.name}.backup-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    with contextlib.closing(sqlite3.connect(database, timeout=TIMEOUT, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # another process may be doing the same
        try:
            old = _old_folder(connection, database)
            if old is None:
                connection.execute("ROLLBACK")
                return
            with embedded.reading(database) as before, contextlib.closing(sqlite3.connect(backup)) as copy:
                before.backup(copy)
            count = sum(_rewrite(connection, *where, old, database.parent) for where in LOCATIONS)
            _write_mark(connection, database)
            connection.execute("COMMIT")
        except BaseException:
            backup.unlink(missing_ok=True)
            raise  # closing the connection rolls back
    print(
        f"note: the MLflow store {database} was made in {old}; its {count} artifact locations are of this folder now "
        f"(before: {backup.name})",
        file=sys.stderr,
    )
    if not embedded.artifacts(database).exists() and embedded.artifacts(old / database.name).exists():
        print(
            f"warning: its artifacts are still in {old}/mlruns: copy that folder to {database.parent}", file=sys.stderr
        )


def _read_mark(connection: sqlite3.Connection) -> str:
    asked = "SELECT value FROM experiment_tags WHERE experiment_id = 0 AND key = ?"
    return (connection.execute(asked, (MADE_AT,)).fetchone() or ("",))[0]


def _write_mark(connection: sqlite3.Connection, database: Path) -> None:
    connection.execute("INSERT OR REPLACE INTO experiment_tags VALUES (?, ?, 0)", (MADE_AT, str(database)))


def _old_folder(connection: sqlite3.Connection, database: Path) -> Path | None:
    """The folder that the store was made in; None if that is where it is."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
        return None  # MLflow has still to make its tables
    if marked := _read_mark(connection):
        made = Path(marked)
        return None if made == database or (made.exists() and made.samefile(database)) else made.parent
    # Made by MLflow alone: experiment 0 lies in `mlruns/0` of the folder that MLflow was started in.
    row = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
    folder = embedded.local_path(row[0] or "") if row else None
    if folder is None or folder.parts[-2:] != ("mlruns", "0") or folder.parents[1] == database.parent:
        return None
    old = folder.parents[1]
    return old if not old.exists() or _has_artifacts(connection, old, database.parent) else None


def _has_artifacts(connection: sqlite3.Connection, old: Path, new: Path) -> bool:
    """Whether artifacts of runs that were made in `old` lie in `new`."""
    paths = (embedded.local_path(location) for (location,) in connection.execute("SELECT artifact_uri FROM runs"))
    return any((new / path.relative_to(old)).exists() for path in paths if path and path.is_relative_to(old))


def _rewrite(connection: sqlite3.Connection, table: str, column: str, condition: str, old: Path, new: Path) -> int:
    """Makes the locations in a column that are in `old` those in `new`; returns how many there were."""
    columns = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
    if column not in columns:  # of another version of MLflow
        return 0
    changed = [
        ((new / path.relative_to(old)).as_uri(), row)
        for row, location in connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {condition}").fetchall()
        if (path := embedded.local_path(location or "")) and path.is_relative_to(old)
        if not (new.is_relative_to(old) and path.is_relative_to(new))
    ]
    connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changed)
    return len(changed)
