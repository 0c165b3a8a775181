"""Keras models as ONNX files, by what `make setup-export` installs."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.conversion import rewrite
from pipeline.system import stderr

if TYPE_CHECKING:
    import keras

MISSING = "{} is missing: install it with `make setup-export`"


def convert(model: keras.Model) -> bytes:
    """The model as ONNX, with a free batch size.

    Raises:
        ValueError: a package is missing, or a layer cannot be converted; of one line.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-") as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), stderr.filtered(lambda line: True):
            warnings.simplefilter("ignore")
            try:
                rewrite.without_normalization(model).export(path, format="onnx", verbose=False)
            except ImportError as error:
                raise ValueError(MISSING.format(error.name)) from None
            except Exception as error:  # of Keras or tf2onnx, whichever meets the layer first
                raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split()):.200}") from None
        return path.read_bytes()


class OnnxModel:
    """An ONNX file from images to probabilities.

    Raises:
        ValueError: onnxruntime is missing, or refuses the file.
    """

    def __init__(self, content: bytes, threads: int):
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(MISSING.format(error.name)) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has classes of its own for each
            raise ValueError(" ".join(str(error).split())[:200]) from None

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [n, 10], of images, uint8 [n, 32, 32, 3]."""
        name = self._session.get_inputs()[0].name
        batches = [images[start : start + 100] for start in range(0, len(images), 100)]
        return np.concatenate([self._session.run(None, {name: batch})[0] for batch in batches]).astype(np.float64)
