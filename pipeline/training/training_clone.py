"""The model that takes the place of the user's while it trains.

A model is described with stock Keras layers, and saved with them. Its training clone has the same graph and weights,
but faster layers, mixed precision and logits instead of probabilities, and every random number in it is a function of
seed, step and layer.
"""

import zlib
from typing import Any

import keras

from pipeline.training.layers import BatchNormalization, Dropout

FASTER: dict[type, Any] = {keras.layers.Dropout: Dropout, keras.layers.BatchNormalization: BatchNormalization}


class UntrainableError(ValueError):
    """A model or recipe that cannot be trained, for a reason that the user can mend."""


def training_clone(model: keras.Model, seed: int, policy: str = "float32") -> keras.Model:
    """A fast copy of `model` to train, with float32 logits as outputs and initial weights that follow from `seed`.

    Args:
        model: stock Keras layers with softmax probabilities as outputs. Its weights are not read.
        seed: of the initial weights.
        policy: Keras dtype policy of the layers between the first and the last.

    Raises:
        UntrainableError: a layer draws random numbers from hidden state, so a training run could not be repeated.
    """
    layer_ids = iter(range(1, 1_000))
    output_layer = model.output._keras_history.operation
    if isinstance(output_layer, keras.layers.Softmax | keras.layers.Activation):
        model = keras.Model(model.input, output_layer.input)
        output_layer = model.output._keras_history.operation

    def clone(layer):
        kind = FASTER.get(type(layer), type(layer))
        config = layer.get_config()
        for key, value in config.items():
            if key.endswith("_initializer") and isinstance(value, dict) and "seed" in value.get("config", {}):
                value["config"]["seed"] = _initial_seed(seed, layer.name, key)
        # Normalized pixels and averaged classes stay float32: few values, and bfloat16 has 8 significant bits.
        in_float32 = isinstance(layer, keras.layers.Normalization | keras.layers.GlobalAveragePooling2D)
        if not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32" if in_float32 or layer is output_layer else policy
        if layer is output_layer and "activation" in config:
            config["activation"] = "linear"
        copy = kind.from_config(config)
        if isinstance(copy, Dropout):
            if copy.noise_shape:
                raise UntrainableError(f"layer {layer.name!r}: Dropout with noise_shape is not supported")
            copy.layer_id = next(layer_ids)
        elif hasattr(copy, "seed_generator"):
            raise UntrainableError(
                f"layer {layer.name!r} ({type(layer).__name__}) draws random numbers from hidden state, which cannot "
                "be repeated; use keras.layers.Dropout, or augment through the recipe"
            )
        return copy

    return keras.models.clone_model(model, clone_function=clone)


def _initial_seed(seed: int, layer: str, key: str) -> int:
    return zlib.crc32(f"{seed}/{layer}/{key}".encode()) >> 1


def copy_weights(values: list, model: keras.Model) -> None:
    """Sets the weights of `model` to `values`, in the order of its training clone's weights."""
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
