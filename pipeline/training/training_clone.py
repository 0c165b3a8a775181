"""The model that takes the place of the user's while it trains.

A model is described with stock Keras layers, and saved with them. Its training clone has the same graph and weights,
but faster layers, mixed precision and logits instead of probabilities, and every random number in it is a function of
seed, epoch, step and layer.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.training.initial_weights import initial_weights
from pipeline.training.layers import FASTER_ACTIVATIONS, Add, BatchNormalization, Dropout, ReLU
from pipeline.training.reproducible import follow_step_seed

FASTER: dict[type, Any] = {
    keras.layers.Dropout: Dropout,
    keras.layers.BatchNormalization: BatchNormalization,
    keras.layers.ReLU: ReLU,
    keras.layers.Add: Add,
}
ACTIVATION = keras.layers.Softmax | keras.layers.Activation
# Pixels and averaged classes stay float32: few values, and bfloat16 has 8 significant bits.
IN_FLOAT32 = keras.layers.Normalization | keras.layers.Rescaling | keras.layers.GlobalAveragePooling2D

RECURRENT = ("LSTM", "LSTMCell", "GRU", "GRUCell")  # whose biases have the right gradient in bfloat16


class UntrainableError(ValueError):
    """A model or recipe that cannot be trained, for a reason that the user can mend."""


def training_clone(model: keras.Model, seed: int, policy: str = "float32") -> keras.Model:
    """A fast copy of `model` to train, with initial weights that follow from `seed`.

    It returns float32 logits if `softmax_layer` finds the model's softmax, else the model's probabilities.

    Args:
        model: functional or Sequential. Layers in it that are neither, nor of `FASTER`, are copied by their config.
        seed: of the initial weights.
        policy: of Keras's own layers that were given no dtype, but for those whose bias would have a wrong gradient.
            Other layers stay float32: few expect anything else.
    """
    softmax = softmax_layer(model)
    last = _last_layers(model)

    def fast(layer):
        kind, config = _fast_kind(layer), layer.get_config()
        if _is_stock(layer) and not isinstance(layer, IN_FLOAT32) and not any(layer is one for one in last):
            # One vector an image: a short sum.
            of_vectors = isinstance(layer, keras.layers.Dense) and all(
                len(node.outputs[0].shape) == 2 for node in layer._inbound_nodes
            )
            if of_vectors or not _loses_bias_gradient(type(layer).__name__, config, policy):
                _set_policy(config, policy)
        if layer is softmax:
            if isinstance(layer, keras.layers.Softmax):
                kind, config = keras.layers.Activation, {"name": layer.name, "dtype": "float32"}
            config["activation"] = "linear"
        copied = kind.from_config(config)
        if _is_stock(layer) and (activation := vars(copied).get("activation")) in FASTER_ACTIVATIONS:
            copied.activation = FASTER_ACTIVATIONS[activation]
        return copied

    train_model = copy_of(model, fast)
    copy_weights(initial_weights(model, seed), train_model)
    _number_random_layers(train_model)
    return train_model


def copy_of(model: keras.Model, copy: Callable[[Any], Any]) -> keras.Model:
    """A copy with weights of its own, new ones, that are trained where the model's are.

    Args:
        model: functional or Sequential.
        copy: makes a layer's copy. Operations, which have no state, stay as they are.

    Raises:
        UntrainableError: layers share weights in a way that no copy has.
    """

    def clone(layer):
        return copy(layer) if isinstance(layer, keras.Layer) else layer

    copied = keras.models.clone_model(model, clone_function=clone, recursive=True)
    if len(copied.weights) != len(model.weights):
        raise UntrainableError(
            f"a copy of the model has {len(copied.weights)} weights, not {len(model.weights)}: share weights only by "
            "calling one layer twice"
        )
    for weight, ours in zip(model.weights, copied.weights, strict=True):
        ours.trainable = weight.trainable
    layers, copies = list(model._flatten_layers()), list(copied._flatten_layers())
    for layer, ours in zip(layers, copies, strict=True) if len(layers) == len(copies) else ():
        ours._trainable = layer._trainable  # a config holds it of the layer, not of those that it makes itself
    return copied


def inference_clone(model: keras.Model, policy: str) -> keras.Model:
    """As `training_clone`, with the weights of `model` itself, which no step changes."""
    clone = training_clone(model, 0, policy)
    copy_weights(model.get_weights(), clone)
    clone.trainable = False
    return clone


def softmax_layer(model: keras.Model) -> keras.Layer | None:
    """The Keras layer, in a nested model too, whose softmax is the model's output; None if it is computed otherwise."""
    graph, tensor = model, model.outputs[0]
    while is_graph(layer := tensor._keras_history.operation):
        if _number_of_calls(layer, graph) > 1:
            return None  # its probabilities may be needed where it is called elsewhere
        graph, tensor = layer, layer.outputs[0]
    is_softmax = (
        layer.axis in (-1, 1)
        if isinstance(layer, keras.layers.Softmax)
        else getattr(layer, "activation", None) is keras.activations.softmax
    )
    is_penalized = getattr(layer, "activity_regularizer", None) is not None  # for its probabilities, not for logits
    return (
        layer if _is_stock(layer) and is_softmax and not is_penalized and _number_of_calls(layer, graph) == 1 else None
    )


def _last_layers(model: keras.Model) -> list:
    """The layer of the output, in a nested model too; with the one before it if that is an operation or activation."""
    last: list = []
    tensor = model.outputs[0]
    while not last or not isinstance(last[-1], keras.Layer) or isinstance(last[-1], ACTIVATION):
        operation, call, _ = tensor._keras_history
        if is_graph(operation):
            tensor = operation.outputs[0]
        else:
            last.append(operation)
            tensor = next(iter(operation._inbound_nodes[call].input_tensors), None)  # None: of an InputLayer
    return last


def _is_stock(layer: Any) -> bool:
    return isinstance(layer, keras.Layer) and type(layer).__module__.startswith("keras.")


def _number_of_calls(layer: keras.Layer, graph: keras.Model) -> int:
    graph = graph._functional if isinstance(graph, keras.Sequential) else graph
    return sum(node.operation is layer for nodes in graph._nodes_by_depth.values() for node in nodes)


def is_graph(layer: Any) -> bool:
    """Whether a layer is a functional or Sequential model, and so has a graph to walk."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def copy_weights(values: list, model: keras.Model) -> None:
    """Sets the weights of `model` to `values`, in the order of its training clone's weights."""
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with constants made of its weights


def _fast_kind(layer: keras.Layer) -> Any:
    if isinstance(layer, keras.layers.Dropout) and (layer.noise_shape or round(256 * layer.rate) == 256):
        return type(layer)
    return FASTER.get(type(layer), type(layer))


def _set_policy(config: Any, policy: str) -> None:
    """Sets the dtype policy of a layer's config, and of Keras's layers that it wraps, where it is the default."""
    if isinstance(config, list | tuple):
        for inner in config:
            _set_policy(inner, policy)
    elif isinstance(config, dict) and (config.get("module") or "keras").startswith("keras"):
        if _loses_bias_gradient(config.get("class_name", ""), config.get("config"), policy):
            return
        dtype = config.get("dtype")
        if isinstance(dtype, dict) and dtype.get("config", {}).get("name") == "float32":
            config["dtype"] = policy
        for key, inner in config.items():
            if key != "dtype":
                _set_policy(inner, policy)


def _loses_bias_gradient(kind: str, config: Any, policy: str) -> bool:
    """Whether the gradient of a layer's bias, a sum over images and positions, would be accumulated in bfloat16.

    On a CPU it is, with errors of 7 to 76 % where they were measured, but for what oneDNN computes together with the
    gradient of a kernel.
    """
    if policy != "mixed_bfloat16" or not isinstance(config, dict):
        return False
    plain = config.get("groups", 1) == 1 and set(np.ravel(config.get("dilation_rate", 1))) == {1}
    with_kernel = kind == "SeparableConv2D" or (kind == "Conv2D" and plain)
    has_bias = config.get("use_bias") or config.get("bias_axes")
    return bool(has_bias) and kind not in RECURRENT and not _sums_bias_gradient_well(with_kernel)


@cache
def _sums_bias_gradient_well(with_kernel: bool) -> bool:
    """Whether 16,384 ones add up to 16,384 on this machine, as the gradient of a bias, alone or after a convolution."""

    @tf.function(autograph=False)
    def gradient(images, kernel, bias, upstream):  # all of them arguments, so that nothing is folded into a constant
        with tf.GradientTape() as tape:
            tape.watch([kernel, bias])
            convolved = tf.nn.conv2d(images, kernel, 1, "SAME") if with_kernel else images
            outputs = tf.nn.bias_add(convolved, bias)
        return tape.gradient(outputs, [kernel, bias], upstream)

    shapes = [64, 16, 16, 8], [3, 3, 8, 8], [8], [64, 16, 16, 8]
    return float(gradient(*(tf.ones(shape, tf.bfloat16) for shape in shapes))[1][0]) == 16384


def _number_random_layers(model: keras.Model) -> None:
    """Makes every layer that draws random numbers draw them from the step's seed, each its own."""
    layers = [layer for layer in model._flatten_layers() if layer._seed_generators]
    for layer_id, layer in enumerate(layers, start=1):
        if isinstance(layer, Dropout):
            layer.layer_id = layer_id
            continue
        for generator in layer._seed_generators:
            follow_step_seed(generator, layer_id)
