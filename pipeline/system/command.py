"""What every `python -m pipeline.<verb>` has in common: how it starts and how it fails."""

import contextlib
import fcntl
import io
import itertools
import os
import re
import reprlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

LOCK = ".lock"
SHELLS = {"sh", "ash", "bash", "csh", "dash", "fish", "ksh", "tcsh", "zsh"}


class PipelineError(Exception):
    """A problem that the user can mend. Shown as one line, which names the value received and the fix."""


def shown(value: Any) -> str:
    """A value in at most 80 characters of one line; only what is shown is spelt out, however much the value holds."""
    return f"{_short.repr(value):.80}"


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxlong = 3, 9, 9, 76, 40


def plain(key: Any) -> str:
    """A key as it is, if it is one that could be meant."""
    return str(key) if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", str(key)) else shown(key)


def run(main: Callable[[], None]) -> None:
    """Calls `main`; its `PipelineError`, or what the system refuses, becomes one line on stderr and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` clauses run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a path's name may hold bytes that are no text
    try:
        main()
    except (PipelineError, OSError) as error:  # a full disk, a folder that may not be written
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def alone(folder: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Keeps other processes out of what the folder stands for; the lock ends with the process, even a killed one.

    Args:
        folder: made if it is absent.
        busy: what to say when another process holds the lock.
        patience: seconds to wait for that process to end.

    Raises:
        PipelineError: another process holds the lock; the message is `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        end = time.monotonic() + patience
        if not _locked(lock):
            if patience:
                print(f"{busy}: it has {patience:.0f} seconds", file=sys.stderr, flush=True)
            while not _locked(lock):
                if time.monotonic() >= end:
                    raise PipelineError(busy)
                time.sleep(0.1)
        yield


def is_busy(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with (folder / LOCK).open("r+") as lock:
            return not _locked(lock)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)


def _locked(lock: IO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def end_with_dvc() -> None:
    """Ends this process as SIGTERM would, once the DVC that started it is gone: killed, DVC leaves its stages alive."""
    if "DVC_STAGE" not in os.environ:
        return
    chain = [psutil.Process()]
    for ancestor in chain[0].parents():
        chain.append(ancestor)
        if ancestor.name() not in SHELLS:
            break

    def watch() -> None:
        try:
            while all(child.ppid() == parent.pid for child, parent in itertools.pairwise(chain)):
                time.sleep(1)
        except psutil.NoSuchProcess:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        with contextlib.suppress(OSError):  # the terminal may be gone as well
            print("DVC is gone: this training ends; `dvc repro` goes on with it", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it look for GPUs, without the notes that it prints whatever its log level is.

    They are written to file descriptor 2 before logging is set up. What else is written meanwhile is passed on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as written:
        os.dup2(written.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            sys.stderr.writelines(line for line in written if not _NOTE.match(line))


_NOTE = re.compile(r"[IW]0000 |WARNING: All log messages before absl|E0000 .*failed call to cuInit")
