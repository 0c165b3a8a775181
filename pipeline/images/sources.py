"""What the images of a command line are: files, folders, globs and standard input."""

import glob
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.images.reader import MAX_BYTES, NOT_READ, ImageError
from pipeline.records import files

STDIN = "-"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
NOT_IMAGES = NOT_READ | {"PALM", "PDF"}  # these two Pillow only writes
ALSO_IMAGES = {".heic", ".heif"}  # named in the reader's error, where Pillow does not know them


class Source(NamedTuple):
    """An image's name, and why there is none under it."""

    name: str
    problem: str = ""

    def read(self) -> bytes:
        """The image file's content. Raises ImageError."""
        if self.problem:
            raise ImageError(self.problem)
        try:
            if self.name == STDIN:
                return sys.stdin.buffer.read(MAX_BYTES + 1)  # more is refused by the reader
            return files.read(Path(self.name), MAX_BYTES)
        except OSError as error:
            raise ImageError(f"it cannot be read ({error.strerror or error})") from None


def expand(arguments: list[str]) -> list[Source]:
    """The images that arguments stand for. A folder stands for the images in it and in its folders."""
    return [source for argument in arguments for source in _expand(argument)]


def _expand(argument: str) -> Iterator[Source]:
    if argument == STDIN:
        yield Source(STDIN)
    elif URL.match(argument):
        yield Source(argument, "addresses are not read: download it first")
    elif Path(argument).is_dir():
        Image.init()
        suffixes = ALSO_IMAGES | {end for end, kind in Image.registered_extensions().items() if kind not in NOT_IMAGES}
        found = [path for path in Path(argument).rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
        yield from map(Source, sorted(map(str, found)))
        if not found:
            yield Source(argument, "no image is in this folder")
    elif Path(argument).exists() or not glob.has_magic(argument):  # a name may hold brackets itself
        yield Source(argument, "" if Path(argument).exists() else "it is not here")
    else:
        named = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())
        yield from map(Source, named)
        if not named:
            yield Source(argument, "no file has such a name")
