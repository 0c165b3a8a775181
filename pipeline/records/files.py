"""Files that are written whole or not at all, and read within bounds."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.system.command import PipelineError, plain, shown

MAX_BYTES = 10_000_000  # of a small file: 1,000 epochs are 0.2 MB


class Content(BaseModel):
    """What a file must hold that is read again. It may hold more."""

    model_config = ConfigDict(strict=True)


Kind = TypeVar("Kind", bound=BaseModel)


def read(path: Path, max_bytes: int) -> bytes:
    """A file's content.

    Raises:
        OSError: it is absent, larger than `max_bytes`, or no regular file: reading a pipe may never end.
    """
    if not path.is_file():
        path.stat()  # says so if it is absent
        raise OSError("it is no regular file")
    if path.stat().st_size > max_bytes:
        raise OSError(f"it has {path.stat().st_size:,} bytes; allowed: at most {max_bytes:,}")
    return path.read_bytes()


def read_json(path: Path, kind: type[BaseModel] = Content) -> dict[str, Any]:
    """A JSON object from a file of the record, with what that kind of file must hold and no infinite number.

    Raises:
        PipelineError: it is not that.
    """
    try:
        content = json.loads(read(path, MAX_BYTES).decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        parse(content, kind)
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} cannot be read ({error}); restore it with git, or make it again") from None


def parse(content: Any, kind: type[Kind]) -> Kind:
    """The content, typed. Raises ValueError, of one line, unless it holds what that kind of file must hold."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(plain, first["loc"])) or "it"
        received = "" if first["type"] == "missing" else f", received {shown(first['input'])}"
        raise ValueError(f"{key}: {first['msg']}{received}") from None


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text:.40} is not finite")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave the new name with no content
        os.replace(partial, path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)  # after a failure: on a full disk it takes the last of the space


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    write(path, json.dumps(content, indent=1) + "\n")


def sha256(path: Path) -> str:
    """A file's SHA-256, in hex."""
    return sha256_of(path.read_bytes())


def sha256_of(content: bytes) -> str:
    """The SHA-256 of a file's content, in hex."""
    return hashlib.sha256(content).hexdigest()
