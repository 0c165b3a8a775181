"""The connection to the store: what fails costs a warning and some seconds, never a training run."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.system.command import shortened
from pipeline.tracking import address, embedded, relocation

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 600.0  # seconds
# What MLflow answers if another process inserted the same row first: an experiment, its tags, a data set.
CONFLICTS = ("BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
MOST_CONFLICTS = 10  # in one action; each leaves one row fewer to make

# A store that is away may cost 10 s, not MLflow's default of minutes. Variables already set win.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print the password in the address


@dataclass
class _Pause:
    seconds: float
    until: float = 0.0


_pause = _Pause(FIRST_PAUSE)
# One thread at a time: a SQLite file has one writer, MLflow's pool has 15 connections, and its tables are made once.
_using = threading.RLock()


def attempt(what: str, action: Callable[[], T]) -> T | None:
    """Returns what `action` returns; if the store fails, warns on stderr in one line and returns None.

    Args:
        what: the action, as it completes "MLflow could not …".
        action: idempotent, since it is called again if another process made the same thing at the same time; not
            called if the store cannot be opened.

    After a failure the store is left alone for a while, longer each time: a server that hangs costs a training run of
    hours some minutes, not seconds of each epoch.
    """
    with _using:
        if time.monotonic() < _pause.until:
            return None
        doing = "open its store"
        try:
            client()
            doing = what
            result = _without_conflicts(action)
            _pause.seconds = FIRST_PAUSE
            return result
        except failures() as error:
            _pause.until, _pause.seconds = time.monotonic() + _pause.seconds, min(2 * _pause.seconds, LONGEST_PAUSE)
            print(
                f"warning: MLflow could not {doing} at {address.shown()} "
                f"({type(error).__name__}: {shortened(address.without_secrets(str(error)))}). "
                f"The record on disk is complete; {address.completed_later()}.",
                file=sys.stderr,
            )
            return None


def _without_conflicts(action: Callable[[], T]) -> T:
    from mlflow.exceptions import MlflowException

    for _ in range(MOST_CONFLICTS):
        try:
            return action()
        except MlflowException as error:
            if error.error_code not in CONFLICTS:
                raise
    return action()


def failures() -> tuple[type[Exception], ...]:
    """What a store that fails raises: MLflow, its database, its bucket, the network, the disk. A bug is none of these.

    requests' errors are OSErrors. Asked only after something was raised, so it costs no import.
    """
    import sqlite3

    from alembic.util import CommandError
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError
    from urllib3.exceptions import HTTPError

    return (
        *(OSError, sqlite3.Error, MlflowException, SQLAlchemyError, CommandError),
        *(HTTPError, Boto3Error, BotoCoreError, ClientError),
    )


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All that a search of MLflow's client finds, page by page."""
    found = search()
    yield from found
    while found.token:
        found = search(page_token=found.token)
        yield from found


def reconnect() -> None:
    """Forgets the store's failures and its connection: the next call tries again."""
    _pause.seconds, _pause.until = FIRST_PAUSE, 0.0
    client.cache_clear()


@cache
def client() -> "MlflowClient":
    """The connection, made once; an embedded store is made if it is absent, and put right if it was moved."""
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # it would print stack traces of what we warn of
    database = address.database()
    if database and not database.exists():
        database.parent.stat()  # MLflow would try for minutes, SQLite has no name for it
        embedded.create(database)
    elif database and relocation.is_moved(database):
        relocation.follow(database)
    try:
        made = MlflowClient(address.store_uri())
        made.search_experiments(max_results=1)
    except ImportError as error:  # of the driver that a database's address names
        raise OSError(f"{error}: install it, or correct {address.VARIABLE}") from None
    if database:
        relocation.mark(database)
    return made
