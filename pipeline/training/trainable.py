"""Whether a model can be trained as Keras would train it, and saved: found out before the first step."""

import re
import tempfile
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.training.cifar10 import IMAGE_SHAPE
from pipeline.training.training_clone import UntrainableError, copy_weights, softmax_layer, training_clone

HIDDEN_RANDOMNESS = re.compile(
    r"Random(Uniform(Int)?|StandardNormal|Gamma|Poisson(V2)?|Shuffle)|(Parameterized)?TruncatedNormal|Multinomial|"
    r"Stateful(Uniform.*|StandardNormal.*|TruncatedNormal|RandomBinomial)|NonDeterministicInts|Rng(ReadAnd)?Skip|"
    r"SampleDistortedBoundingBox(V2)?"
)  # TensorFlow operations that draw from hidden state
TOLERANCE = 1e-4


def check_trainable(model: keras.Model) -> None:
    """Checks outputs, saving and the training clone of a model on images of noise.

    Raises:
        UntrainableError: the outputs are no probabilities; the model does not survive saving; or its training clone
            computes something else.
    """
    images = np.random.default_rng(0).integers(0, 256, (4, *IMAGE_SHAPE), np.uint8)
    probabilities = _outputs(model, images)
    if not np.isfinite(probabilities).all():
        raise UntrainableError("the untrained model outputs NaN or infinity: scale its inputs or its initial weights")
    if probabilities.min() < 0 or abs(probabilities.sum(axis=1) - 1).max() > 1e-3:
        # Every later stage reads probabilities; adding a softmax silently would save another model than the file's.
        first = ", ".join(f"{value:.3g}" for value in probabilities[0, :4])
        raise UntrainableError(f"the outputs are no probabilities ({first}, …): end with a softmax")
    loaded = _saved_and_loaded(model)
    if not np.allclose(_outputs(loaded, images), probabilities, atol=TOLERANCE):
        raise UntrainableError(
            "the model computes something else after it is saved and loaded: let get_config() of its custom layers "
            "return all arguments, and hold all state in weights"
        )
    clone = training_clone(model, seed=0)
    copy_weights(model.get_weights(), clone)
    outputs = clone(images, training=False)
    if not np.allclose(tf.nn.softmax(outputs) if softmax_layer(model) else outputs, probabilities, atol=TOLERANCE):
        raise UntrainableError("a copy of the model, layer by layer, computes something else: simplify how it is built")


def check_randomness(graph: tf.Graph) -> None:
    """Raises UntrainableError if a graph draws random numbers that the seed of a run does not determine."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    for node in nodes:
        if HIDDEN_RANDOMNESS.fullmatch(node.op):
            raise UntrainableError(
                f"{node.name!r} draws random numbers from hidden state, which cannot be repeated: use keras.random, or "
                "give a keras.random.SeedGenerator to the layer"
            )


def one_line(error: BaseException) -> str:
    """Type, message and line of the first of a chain of errors: Keras and TensorFlow wrap what a layer raises."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}{where}"


def _outputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    try:
        outputs = model(images, training=False)
    except Exception as error:  # of the user's layers
        raise UntrainableError(f"the model cannot be called on images: {one_line(error)}") from error
    if isinstance(outputs, dict):
        raise UntrainableError(
            f"the model outputs a dict with the key {next(iter(outputs))!r}: output the tensor itself"
        )
    return np.asarray(outputs)


def _saved_and_loaded(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            keras.saving.save_model(model, path)
            return keras.saving.load_model(path, compile=False)
        except Exception as error:  # of the user's layers, or of Keras about them
            raise UntrainableError(
                f"the model cannot be loaded once it is saved ({one_line(error)}): use stock layers and keras.ops, or "
                "custom layers with get_config() and @keras.saving.register_keras_serializable()"
            ) from error
