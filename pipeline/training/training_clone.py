"""The model that takes the place of the user's while it trains.

A model is described with stock Keras layers, and saved with them. Its training clone has the same graph and weights,
but faster layers, mixed precision and logits instead of probabilities, and every random number in it is a function of
seed, epoch, step and layer.
"""

from typing import Any

import keras

from pipeline.training.initial_weights import initial_weights
from pipeline.training.layers import BatchNormalization, Dropout
from pipeline.training.reproducible import dtype_policy, follow_step_seed

FASTER: dict[type, Any] = {keras.layers.Dropout: Dropout, keras.layers.BatchNormalization: BatchNormalization}
# Pixels and averaged classes stay float32: few values, and bfloat16 has 8 significant bits.
IN_FLOAT32 = keras.layers.Normalization | keras.layers.Rescaling | keras.layers.GlobalAveragePooling2D


class UntrainableError(ValueError):
    """A model or recipe that cannot be trained, for a reason that the user can mend."""


def training_clone(model: keras.Model, seed: int, policy: str = "float32") -> keras.Model:
    """A fast copy of `model` to train, with initial weights that follow from `seed`.

    It returns float32 logits if `softmax_layer` finds the model's softmax, else the model's probabilities.

    Args:
        model: functional or Sequential. Layers in it that are neither, nor of `FASTER`, are copied by their config.
        seed: of the initial weights.
        policy: Keras dtype policy of the layers that the user gave no other dtype.
    """
    softmax = softmax_layer(model)
    last = _last_layers(model)

    def clone(layer):
        if not isinstance(layer, keras.Layer):
            return layer  # an operation, which has no state
        kind, config = _fast_kind(layer), layer.get_config()
        in_float32 = isinstance(layer, IN_FLOAT32) or any(layer is one for one in last)
        _set_policy(config, "float32" if in_float32 else policy)
        if layer is softmax:
            if isinstance(layer, keras.layers.Softmax):
                kind, config = keras.layers.Activation, {"name": layer.name, "dtype": "float32"}
            config["activation"] = "linear"
        return kind.from_config(config)

    with dtype_policy(policy):
        train_model = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for weight, copied in zip(model.weights, train_model.weights, strict=True):
        copied.trainable = weight.trainable
    copy_weights(initial_weights(model, seed), train_model)
    _number_random_layers(train_model)
    return train_model


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
    is_stock = isinstance(layer, keras.Layer) and type(layer).__module__.startswith("keras.")
    return layer if is_stock and is_softmax and _number_of_calls(layer, graph) == 1 else None


def _last_layers(model: keras.Model) -> list:
    """The layer of the output, in a nested model too; if it only applies an activation, the one before it as well."""
    history = model.outputs[0]._keras_history
    while is_graph(history.operation):
        history = history.operation.outputs[0]._keras_history
    last = [history.operation]
    if isinstance(history.operation, keras.layers.Softmax | keras.layers.Activation):
        call = history.operation._inbound_nodes[history.node_index]
        last.append(call.input_tensors[0]._keras_history.operation)
    return last


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


def _fast_kind(layer: keras.Layer) -> Any:
    if isinstance(layer, keras.layers.Dropout) and layer.noise_shape:
        return type(layer)
    return FASTER.get(type(layer), type(layer))


def _set_policy(config: Any, policy: str) -> None:
    """Sets the dtype policy of a layer's config, and of the layers that it wraps, where it is the default."""
    if isinstance(config, list | tuple):
        for inner in config:
            _set_policy(inner, policy)
    elif isinstance(config, dict):
        dtype = config.get("dtype")
        if isinstance(dtype, dict) and dtype.get("config", {}).get("name") == "float32":
            config["dtype"] = policy
        for key, inner in config.items():
            if key != "dtype":
                _set_policy(inner, policy)


def _number_random_layers(model: keras.Model) -> None:
    """Makes every layer that draws random numbers draw them from the step's seed, each its own."""
    layers = [layer for layer in model._flatten_layers() if layer._seed_generators]
    for layer_id, layer in enumerate(layers, start=1):
        if isinstance(layer, Dropout):
            layer.layer_id = layer_id
            continue
        for generator in layer._seed_generators:
            follow_step_seed(generator, layer_id)
