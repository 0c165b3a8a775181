"""Runs the exported files of a run. Imports no TensorFlow."""

import os

from pipeline.conversion.interpreter import LiteRTModel
from pipeline.records import exports, files
from pipeline.system.command import PipelineError

MAX_BYTES = 1_000_000_000  # of a model
THREADS = min(4, os.cpu_count() or 1)  # more do not make one small image faster


def load(run: str, kind: str = "float32") -> LiteRTModel:
    """A run's exported model.

    Args:
        run: in `results/`.
        kind: `float32` or `int8`.

    Raises:
        PipelineError: a file is missing, damaged or another one than `export.json` describes.
    """
    export = exports.read(run)
    path = exports.folder(run) / exports.FILES[kind]
    try:
        content = files.read(path, MAX_BYTES)
        if files.sha256_of(content) != export[kind]["sha256"]:
            raise ValueError("it is not the file that export.json describes")
        return LiteRTModel(content, THREADS)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be used ({error}): {exports.fix(run)}") from None
