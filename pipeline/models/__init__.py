"""The models by name: each is one file in this folder with one function, `build() -> keras.Model`.

Only `build` and `pixels` import Keras (seconds); `names` is read by whoever checks params.yaml.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import pkgutil
import re
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.system.command import REPOSITORY, PipelineError
from pipeline.training.cifar10 import IMAGE_SHAPE, NUM_CLASSES

if TYPE_CHECKING:
    import keras

# Red, green and blue over CIFAR-10's 50,000 training images, in pixel values 0..255.
MEAN = (125.307, 122.950, 113.865)
STANDARD_DEVIATION = (62.993, 62.089, 66.705)


def names() -> list[str]:
    """The models that a recipe may name: every file in this folder whose name does not begin with `_`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, seed: int = 0) -> keras.Model:
    """Builds a model, untrained and uncompiled, and checks that the pipeline can train it.

    Two builds with the same seed are equal: initial weights, and the names that Keras makes up.

    Raises:
        PipelineError: no such model, its file fails, or its inputs or outputs are not what every stage relies on.
    """
    if name not in names():
        raise PipelineError(
            f"model {name!r} does not exist: choose one of {', '.join(names())}, or write pipeline/models/<name>.py"
        )
    module = _import(name)
    if not hasattr(module, "build"):
        raise PipelineError(f"pipeline/models/{name}.py has no function build(): add one that returns a keras.Model")
    if other := _untracked_import(module):
        raise PipelineError(
            f"pipeline/models/{name}.py imports {other}, which DVC does not track for this model, so a change "
            f"there would not retrain it: move what it needs into {name}.py"
        )
    from pipeline.training.reproducible import build_seed

    with _one_line_errors(name), build_seed(seed):
        model = module.build()
    if fault := _fault(model):
        raise PipelineError(f"pipeline/models/{name}.py: build() returned {fault}")
    return model


def register_layers(path: Path, name: str = "") -> None:
    """Imports the model files that define custom layers of a saved model, so that Keras can load it.

    Args:
        path: of the saved model.
        name: of its model, if known: Keras does not save which file a custom function comes from.

    Raises:
        PipelineError: such a file fails, or is gone.
        OSError, ValueError, KeyError, zipfile.BadZipFile: `path` is no saved model.
    """
    with zipfile.ZipFile(path) as saved:
        config = saved.read("config.json")
    found = {module.decode() for module in re.findall(rb'"module": "pipeline\.models\.([\w-]+)"', config)}
    has_functions = b'"class_name": "function"' in config
    for module in sorted(found | ({name} & set(names()) if has_functions else set())):
        _import(module)


def _import(name: str) -> ModuleType:
    with _one_line_errors(name):
        return importlib.import_module(f"{__name__}.{name}")


def _untracked_import(module: ModuleType) -> str | None:
    """What the model's file imports of this repository although dvc.yaml does not list it for the model's runs."""
    for node in ast.walk(ast.parse(Path(module.__file__ or "").read_bytes())):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), __name__)
            imported = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in imported:
            tracked = name in ("pipeline", __name__) or f"{name}.".startswith("pipeline.training.")
            if not tracked and _is_of_this_repository(name):
                return name
    return None


def _is_of_this_repository(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # the name of a function, or a module without a file
        return False
    file = Path(spec.origin) if spec and spec.has_location and spec.origin else None
    return bool(file and file.is_relative_to(REPOSITORY)) and "site-packages" not in str(file)


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turns what a model's file raises into a PipelineError that names file, line and cause."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SyntaxError):
            file, line = error.filename or "", error.lineno
        else:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_model_file(frame.filename)]
            file, line = (frames[-1].filename, frames[-1].lineno) if frames else (f"{name}.py", None)
        where = f"pipeline/models/{Path(file).name}" + (f", line {line}" if line else "")
        reason = " ".join(str(error).split()) or "no message"
        raise PipelineError(f"{where}: {type(error).__name__}: {reason:.300}") from error


def _is_model_file(file: str) -> bool:
    path = Path(file)
    return path.name != "__init__.py" and str(path.parent) in __path__


def pixels() -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """How every model begins: with the pixels as they are stored, so that nobody has to prepare them.

    Returns:
        The input, uint8 (None, 32, 32, 3), 0..255, and the same normalized to mean 0 and variance 1, float32.
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
    # Keras casts the pixels to the dtype of the input.
    if pixel.shape != (None, *IMAGE_SHAPE) or pixel.dtype not in ("uint8", "float32"):
        return (
            f"the input {pixel.shape} {pixel.dtype}, not (None, 32, 32, 3) uint8 or float32, of pixels 0..255: "
            "begin with `inputs, x = pixels()`"
        )
    if output.shape != (None, NUM_CLASSES) or output.dtype != "float32":
        return f"the output {output.shape} {output.dtype}, not (None, 10) float32: end with one value a class"
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            return (
                f"{type(model).__name__} with its own {method}(), which is not called here: use add_loss() in a layer"
            )
    if not model.trainable_weights:
        return "a model without trainable weights: add a layer that has some, or leave one trainable"
    return None
