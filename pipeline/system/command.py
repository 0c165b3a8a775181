"""What every `python -m pipeline.<verb>` has in common: how it starts and how it fails."""

import contextlib
import errno
import io
import os
import re
import reprlib
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TERMINATED = 143  # the exit status after SIGTERM
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
REPOSITORY = Path(__file__).resolve().parents[2]  # or the copy of it that this is
TRACE = "PIPELINE_TRACE"  # an environment variable: set, errors show their stack trace too
TEMPORARY_COPIES = ".dvc/tmp/exps"  # of `dvc exp run --temp` and `--queue`


class PipelineError(Exception):
    """A problem that the user can mend. Shown as one line, which names the value received and the fix."""


class RecipeError(PipelineError):
    """The recipe's values are at fault: other ones may train on this machine."""


def shown(value: Any) -> str:
    """A value in at most 80 characters of one line; only what is shown is spelt out, however much the value holds."""
    return f"{_short.repr(value):.80}"


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict, _short.maxstring, _short.maxlong = 3, 9, 9, 76, 40


def shortened(text: str, most: int = 300) -> str:
    """A text in one line, cut between words: half an address would mislead."""
    return textwrap.shorten(text, most, placeholder=" …", break_long_words=False, break_on_hyphens=False)


def plain(key: Any) -> str:
    """A key as it is, if it is one that could be meant."""
    return str(key) if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", str(key)) else shown(key)


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 epoch, 1,000 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_temporary_copy() -> bool:
    """Whether DVC made the working directory for one experiment."""
    return TEMPORARY_COPIES in Path.cwd().as_posix()


def resuming() -> str:
    """How what was stopped is resumed, as a clause."""
    if in_temporary_copy():
        return "it cannot be resumed, since DVC removes this temporary copy: start the experiment again"
    return "the same command resumes it"


def where_to_run() -> str:
    """Where the files are that a command looks for, as a clause."""
    if Path.cwd().resolve() == REPOSITORY:
        return "restore it with git"
    return f"run the command in {REPOSITORY}"


def run(main: Callable[[], None], anywhere: bool = False, resumes: bool = True) -> None:
    """Calls `main`; what stops it becomes one line on stderr and a failing exit status.

    That is 1 for a `PipelineError` or what the system refuses, 130 after Ctrl-C, 143 after SIGTERM, and 141 without a
    line if nobody reads the output any more, as with `| head`.

    Args:
        main: what the command does.
        anywhere: whether it reads and writes nothing in the working directory.
        resumes: whether it goes on where it was stopped when it is called again.
    """
    if not anywhere and not Path("params.yaml").exists():
        sys.exit(f"error: params.yaml is not here; {where_to_run()}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that `finally` clauses run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a path's name may hold bytes that are no text
    try:
        main()
        print(end="", flush=True)
    except PipelineError as error:
        if os.environ.get(TRACE):
            traceback.print_exception(error)
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python flushes at its end
        sys.exit(141)
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"error: {_refusal(error)}")
    except KeyboardInterrupt:
        _stopped("interrupted", resumes)
        sys.exit(130)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            _stopped("terminated", resumes)
        raise


def _stopped(how: str, resumes: bool) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{how}; {resuming()}" if resumes else how, file=sys.stderr, flush=True)


def _refusal(error: OSError) -> str:
    """What the system refused, and how to mend it where that is known."""
    if error.errno in DENIED and error.filename:
        return f"{error.filename}: {error.strerror}; run in a copy of the repository that you may write to"
    return str(error)
