"""Where a training run resumes after an interruption: `checkpoints/<run>/`, which is no output of DVC.

A checkpoint is one file: the SHA-256 of the rest in hex, a newline, then an uncompressed `.npz` with the state's arrays
and a header: the record so far, and the fingerprint, which is all that the weights depend on. Two are kept of each.
"""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.records import files, record
from pipeline.system import command

KEPT = 2
DIGEST_BYTES = 64
MAX_BYTES = 4_000_000_000


class Checkpoint(NamedTuple):
    """A training after an epoch.

    Attributes:
        fingerprint: what its weights depend on: params, data, device, versions, code; flat.
        training: of its record.
        history: its epochs.
        values: the arrays of `loop.State`.
    """

    fingerprint: dict[str, Any]
    training: record.Training
    history: list[dict[str, float]]
    values: list[np.ndarray]

    @property
    def epoch(self) -> int:
        """The last finished one."""
        return len(self.history)


class DamagedError(Exception):
    """The file is not a whole checkpoint."""


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint to the run's folder, whole or not at all; only then removes the third last one."""
    header = json.dumps(
        {
            "fingerprint": checkpoint.fingerprint,
            "training": checkpoint.training.as_json(),
            "history": checkpoint.history,
        }
    ).encode()
    body = io.BytesIO()
    arrays: dict[str, Any] = {f"{place:05}": value for place, value in enumerate(checkpoint.values)}
    np.savez(body, header=np.frombuffer(header, np.uint8), **arrays)
    content = body.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up
    files.write(folder / _name(checkpoint.fingerprint, checkpoint.epoch), digest + b"\n" + content)
    ours = [path for path in _files(folder, checkpoint.fingerprint) if _epoch(path) <= checkpoint.epoch]
    for old in ours[KEPT:]:
        old.unlink(missing_ok=True)


def newest(folder: Path, fingerprint: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """The last whole checkpoint with this fingerprint, and what a person should know: which were not used, and why."""
    notes: list[str] = []
    named = _files(folder, fingerprint)
    for path in named:
        try:
            found = read(path)
            if (found.epoch, found.fingerprint) == (_epoch(path), fingerprint):
                return found, notes
            notes.append(
                f"{path} is not used: it holds epoch {found.epoch}, {_difference(found.fingerprint, fingerprint)}"
            )
        except DamagedError as error:
            notes.append(f"{path} is damaged ({error}) and not used")
    others = [path for path in folder.glob("*.ckpt") if path.is_file() and path not in named]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            other = read(path)
        except DamagedError:
            continue
        if other.epoch:
            notes.append(f"{path} is not used: {_difference(other.fingerprint, fingerprint)}")
        break
    return None, notes


def read(path: Path) -> Checkpoint:
    """A checkpoint. Raises DamagedError."""
    try:
        content = files.read(path, MAX_BYTES)
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES + 1 :]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise DamagedError("its checksum differs")
        with zipfile.ZipFile(io.BytesIO(body)) as members:
            if sum(member.file_size for member in members.infolist()) > len(body):
                raise DamagedError("it would unpack to more than it is")
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            values = [_typed(arrays[name]) for name in sorted(arrays.files) if name != "header"]
        if not isinstance(header["fingerprint"], dict) or not all(isinstance(value, np.ndarray) for value in values):
            raise DamagedError("it holds something else")
        training, history = files.parse(header["training"], record.Training), record.check_history(header["history"])
        return Checkpoint(header["fingerprint"], training, history, values)
    except DamagedError:
        raise
    except Exception as error:  # of numpy, zipfile, zlib, json …, whichever comes upon the damage first
        raise DamagedError(f"{' '.join(str(error).split()) or type(error).__name__:.200}") from None


def _typed(value: np.ndarray) -> np.ndarray:
    """The array; NumPy knows of a bfloat16 only that it is two bytes."""
    if value.dtype != np.dtype("V2"):
        return value
    import ml_dtypes

    return value.view(ml_dtypes.bfloat16)


def clear(folder: Path) -> None:
    """Removes what the run's trainings left, finished or not."""
    for path in [*folder.glob("*.ckpt"), *folder.glob(".*.partial")]:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def _name(fingerprint: dict[str, Any], epoch: int) -> str:
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return f"{digest[:8]}-epoch-{epoch:04}.ckpt"


def _files(folder: Path, fingerprint: dict[str, Any]) -> list[Path]:
    """Those named after this fingerprint, the latest epoch first."""
    start = _name(fingerprint, 0).removesuffix("0000.ckpt")
    named = [path for path in folder.glob("*.ckpt") if re.fullmatch(rf"{start}\d{{4}}\.ckpt", path.name)]
    return sorted((path for path in named if path.is_file()), reverse=True)


def _epoch(path: Path) -> int:
    """The epoch that a checkpoint's name says."""
    return int(path.stem[-4:])


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What first differs, in words."""
    for key in [*ours, *theirs]:
        if theirs.get(key) != ours.get(key):
            return f"its {command.plain(key)} is {command.plain(theirs.get(key))}, now {command.plain(ours.get(key))}"
    return "it is of another training"
