"""The models by name: each is one file in this folder with one function, `build() -> keras.Model`.

Only `build` and `pixels` import Keras (seconds); `names` is read by whoever checks params.yaml.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from pipeline.system.command import PipelineError
from pipeline.training.cifar10 import IMAGE_SHAPE, NUM_CLASSES

if TYPE_CHECKING:
    import keras

# Red, green and blue over CIFAR-10's 50,000 training images, in pixel values 0..255.
MEAN = (125.307, 122.950, 113.865)
STANDARD_DEVIATION = (62.993, 62.089, 66.705)


def names() -> list[str]:
    """The models that a recipe may name: every file in this folder whose name does not begin with `_`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str) -> keras.Model:
    """Builds a model, untrained and uncompiled, and checks that the pipeline can train it.

    Two builds have the same `to_json()` where the model's file names its layers; Keras numbers the names it makes up.

    Raises:
        PipelineError: no such model, or its inputs or outputs are not what every stage relies on.
    """
    if name not in names():
        raise PipelineError(
            f"model {name!r} does not exist: choose one of {', '.join(names())}, or write pipeline/models/<name>.py"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "build"):
        raise PipelineError(f"pipeline/models/{name}.py has no function build(): add one that returns a keras.Model")
    model = module.build()
    if fault := _fault(model):
        raise PipelineError(f"pipeline/models/{name}.py: build() returned {fault}")
    return model


def pixels() -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """How every model begins: with the pixels as they are stored, so that nobody has to prepare them.

    Returns:
        The input, uint8 (None, 32, 32, 3), 0..255, and the same normalised to mean 0 and variance 1, float32.
    """
    import keras

    inputs = keras.Input(IMAGE_SHAPE, dtype="uint8", name="pixels")
    variance = [deviation**2 for deviation in STANDARD_DEVIATION]
    # Given as constants, the statistics are part of the layer's configuration: no weights, no parameters.
    return inputs, keras.layers.Normalization(mean=MEAN, variance=variance, name="normalised")(inputs)


def _fault(model: keras.Model) -> str | None:
    """What keeps the pipeline from training this model, with the fix; None if nothing does."""
    import keras

    # A subclassed keras.Model has no graph, so neither inputs nor outputs.
    ends = [getattr(model, end, None) or [] for end in ("inputs", "outputs")]
    if not isinstance(model, keras.Model) or [len(tensors) for tensors in ends] != [1, 1]:
        return f"{type(model).__name__}: return a functional or Sequential keras.Model with one input and one output"
    (pixel,), (output,) = ends
    if pixel.shape != (None, *IMAGE_SHAPE) or pixel.dtype != "uint8":
        return f"the input {pixel.shape} {pixel.dtype}, not (None, 32, 32, 3) uint8: begin with `inputs, x = pixels()`"
    if output.shape != (None, NUM_CLASSES) or output.dtype != "float32":
        return f"the output {output.shape} {output.dtype}, not (None, 10) float32: end with one value a class"
    # The trainer takes the softmax off and trains on logits, so it must find it.
    last = output._keras_history.operation
    if (
        not isinstance(last, keras.layers.Softmax)
        and getattr(last, "activation", None) is not keras.activations.softmax
    ):
        return f"{last.name!r} ({type(last).__name__}) as its last layer: end with a layer whose activation is softmax"
    return None
