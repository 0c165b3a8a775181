"""The exported files of a run, `results/<run>/export/`. Imports no TensorFlow."""

import os
from pathlib import Path
from typing import Any

from pipeline.conversion.interpreter import LiteRTModel
from pipeline.records import files, record
from pipeline.system.command import PipelineError

FILES = {"float32": "model.tflite", "int8": "model.int8.tflite"}
MAX_BYTES = 1_000_000_000  # of a model
THREADS = min(4, os.cpu_count() or 1)  # more do not make one small image faster


class _File(files.Content):
    sha256: str


class _Export(files.Content):
    """`export.json`, as far as it is read again."""

    model_sha256: str
    float32: _File
    int8: _File | None


def folder(run: str) -> Path:
    """Where a run's exported files lie."""
    return record.RESULTS / run / "export"


def read(run: str) -> dict[str, Any]:
    """A run's `export.json`.

    Raises:
        PipelineError: it is missing or damaged, or of another model than the one that is there.
    """
    path = folder(run) / "export.json"
    fix = f"make it with `python -m pipeline.export {run}`"
    if not path.exists():
        raise PipelineError(f"{path} is not here: {fix}")
    export = files.read_json(path, _Export)
    model = record.RESULTS / run / "model.keras"
    if model.exists() and files.sha256(model) != export["model_sha256"]:
        raise PipelineError(f"{path} is of an earlier model: {fix}")
    return export


def load(run: str, kind: str = "float32") -> LiteRTModel:
    """A run's exported model.

    Args:
        run: in `results/`.
        kind: `float32` or `int8`.

    Raises:
        PipelineError: as `read`; or the file is missing, damaged or another one.
    """
    export = read(run)
    path = folder(run) / FILES[kind]
    try:
        content = files.read(path, MAX_BYTES)
        if files.sha256(path) != export[kind]["sha256"]:
            raise ValueError("it is not the file that export.json describes")
        return LiteRTModel(content, THREADS)
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{path} cannot be used ({error}): make it with `python -m pipeline.export {run}`"
        ) from None
