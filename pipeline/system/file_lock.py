"""One process at a time: a lock file in a folder, freed by the system when its holder ends, even by kill -9."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.system.command import PipelineError

LOCK = ".lock"


class BusyError(PipelineError):
    """Another process holds the lock."""


@contextlib.contextmanager
def file_lock(folder: Path, busy: str, timeout: float = 0.0, name: str = LOCK) -> Iterator[None]:
    """Keeps other processes out of what the folder stands for.

    Args:
        folder: made if it is absent.
        busy: what to say when another process holds the lock.
        timeout: seconds to wait for that process to end; below 0: as long as it takes.
        name: of the lock file.

    Raises:
        BusyError: another process holds the lock; the message is `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if timeout:
                limit = f": waiting up to {timeout:.0f} s" if timeout > 0 else ": waiting"
                print(f"{busy}{limit}", file=sys.stderr, flush=True)
            lock.acquire(timeout=timeout, poll_interval=0.1)
    except Timeout:
        raise BusyError(busy) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock, or may hold one that cannot be tried."""
    if not folder.exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except (Timeout, OSError):
        return True
