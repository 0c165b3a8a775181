"""What every `python -m pipeline.<verb>` has in common: how it starts and how it fails."""

import contextlib
import fcntl
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


class PipelineError(Exception):
    """A problem that the user can mend. Shown as one line, which names the value received and the fix."""


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a `PipelineError` becomes one line on stderr and exit status 1, never a stack trace."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` clauses run
    try:
        main()
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def alone(folder: Path, busy: str) -> Iterator[None]:
    """Keeps other processes out of what the folder stands for; the lock ends with the process, even a killed one.

    Raises:
        PipelineError: another process holds the lock; the message is `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(busy) from None
        yield


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
