"""Keras layers that exist only because they are faster, and the twin of a model that is built from them.

A model is described with stock Keras layers and saved with them. While it trains, a twin takes its place: the same
graph and variables with faster layers, mixed precision, logits instead of probabilities, and random numbers that are
a function of seed, step and place instead of hidden generator state.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


class UntrainableError(ValueError):
    """A model or recipe that cannot be trained here, for a reason that the user can mend."""


_noise: list[tf.Tensor] = []  # the seed of the step that is being traced, int64 [2]


@contextmanager
def noise(seed: tf.Tensor) -> Iterator[None]:
    """Within, layers draw their random numbers from `seed`, int64 [2]."""
    _noise.append(seed)
    try:
        yield
    finally:
        _noise.pop()


class Dropout(keras.layers.Dropout):
    """Stock dropout with a mask from random bytes: an eighth of the random bits, and none hidden.

    The rate is rounded to 1/256. Kept values are scaled by the rounded rate: the mean is kept exactly.
    """

    place = 0  # told apart from the other layers of the model, 1..

    def call(self, inputs, training=False):
        """Drops values where `training` holds, from the seed that `noise` gives."""
        dropped = round(self.rate * 256)
        if not training or dropped == 0:
            return inputs
        shape = tf.shape(inputs)
        values = tf.size(inputs)
        seed = _noise[-1] + self.place
        words = tf.random.stateless_uniform([(values + 7) // 8], seed, None, None, tf.int64, alg="philox")
        octets = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:values], shape)
        keep = tf.cast(octets >= dropped, inputs.dtype)
        return inputs * (keep * tf.cast(256 / (256 - dropped), inputs.dtype))


class BatchNormalization(keras.layers.BatchNormalization):
    """Stock batch normalisation over the last axis, computed by TensorFlow's fused kernel."""

    def call(self, inputs, training=None, mask=None):
        """Normalises [n, h, w, c]; other shapes, and inference, are left to the stock layer."""
        if not training or not self.trainable or len(inputs.shape) != 4 or self.axis not in (-1, 3):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self._float32(self.gamma, 1.0),
            offset=self._float32(self.beta, 0.0),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        n = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        variance *= (n - 1) / n  # the kernel gives the unbiased variance, Keras keeps the biased one
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs

    def _float32(self, weight, default: float) -> tf.Tensor:
        if weight is None:
            return tf.fill([self.moving_mean.shape[0]], default)
        return tf.convert_to_tensor(weight.value)


FASTER: dict[type, Any] = {keras.layers.Dropout: Dropout, keras.layers.BatchNormalization: BatchNormalization}


def twin(model: keras.Model, seed: int, policy: str = "float32") -> keras.Model:
    """A fast copy of `model` to train: float32 logits out, freshly initialised as a function of `seed`.

    Args:
        model: stock Keras layers, softmax probabilities out; its weights are not read.
        seed: of the initial weights.
        policy: Keras dtype policy of the layers between the first and the last.

    Raises:
        UntrainableError: a layer draws random numbers of its own, so that a training could not be repeated.
    """
    places = iter(range(1, 1_000))
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
        # Images are normalised and classes averaged in float32: few values, and bfloat16 has 8 bits of them.
        single = isinstance(layer, keras.layers.Normalization | keras.layers.GlobalAveragePooling2D)
        if not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32" if single or layer is output_layer else policy
        if layer is output_layer and "activation" in config:
            config["activation"] = "linear"
        copy = kind.from_config(config)
        if isinstance(copy, Dropout):
            if copy.noise_shape:
                raise UntrainableError(f"layer {layer.name!r}: Dropout with noise_shape is not supported")
            copy.place = next(places)
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
    """Sets the weights of `model` to `values`, which are in the order of its twin's weights."""
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
