"""Keras models as LiteRT files, whose input is one image of uint8 pixels. Equal weights give equal bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.conversion import rewrite
from pipeline.conversion.interpreter import LiteRTModel
from pipeline.system import stderr

if TYPE_CHECKING:
    import keras


class ConversionError(ValueError):
    """A model that cannot be converted. Its text is one line that names the layer where that is known."""


def float32(model: keras.Model) -> bytes:
    """The model as it is. Raises ConversionError."""
    return _convert(rewrite.one_image, model, {})


def int8(model: keras.Model, images: np.ndarray) -> bytes:
    """The model in integers: int8 weights, a scale a channel; uint8 pixels in, uint8 out.

    Args:
        model: trained.
        images: uint8 [n, 32, 32, 3], which show how large each activation gets.

    Raises:
        ConversionError: a layer exists in floating point only.
    """
    import tensorflow as tf

    options = {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([image[None].astype(np.float32)] for image in images),
        "inference_input_type": tf.uint8,
        "inference_output_type": tf.uint8,
    }
    return _convert(rewrite.for_integers, model, options, [tf.lite.OpsSet.TFLITE_BUILTINS_INT8])


def load(content: bytes, threads: int) -> LiteRTModel:
    """The file as it will be run. Raises ConversionError if the interpreter refuses it."""
    try:
        return LiteRTModel(content, threads)
    except ValueError as error:
        raise ConversionError(f"LiteRT refuses the file ({error})") from None


def _convert(
    rewritten: Callable[[keras.Model], keras.Model],
    model: keras.Model,
    options: dict[str, Any],
    ops: list[Any] | None = None,
) -> bytes:
    """The file of a model that is rewritten; errors name the layers of the original."""
    import tensorflow as tf

    # The converter writes all its variables to stderr, and what goes wrong into its error too.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), stderr.filtered(lambda line: True):
        warnings.simplefilter("ignore")
        try:
            converter = tf.lite.TFLiteConverter.from_keras_model(rewritten(model))
            for name, value in options.items():
                setattr(converter, name, value)
            if ops:
                converter.target_spec.supported_ops = ops
            return converter.convert()
        except Exception as error:  # of Keras, MLIR or the quantizer, whichever meets the layer first
            raise ConversionError(_reason(error, {operation.name for operation in model.operations})) from None


def _reason(error: Exception, names: set[str]) -> str:
    """The layer, of these names, and the operation, from the converter's error; else how the error begins."""
    text = " ".join(str(error).split())
    if operation := re.search(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text):
        path = re.search(rf'"([^"@]+)/{operation[1]}@', text)
        parts = path[1].split("/") if path else []
        found = [name for part in parts for name in (part, re.sub(r"_\d+$", "", part)) if name in names]
        layer = f"layer {found[0]!r}" if found else "a layer"
        return f"{layer} uses {operation[1]}, for which LiteRT has no operation"
    return f"{type(error).__name__}: {text:.200}"
