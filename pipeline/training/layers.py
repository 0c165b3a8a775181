"""Faster versions of Keras layers and activations, for training and for a teacher; what is saved has the stock ones.

They compute what the stock ones compute, but for SiLU's rounding and dropout's random numbers, which come from the
seed of the step instead of hidden generator state.
"""

import keras
import tensorflow as tf

from pipeline.training.elementwise import elementwise
from pipeline.training.reproducible import layer_seed


@elementwise
def _rectified(x):
    return tf.nn.relu(x)


@elementwise
def _rectified_gradient(gradient, y):
    return gradient * tf.cast(y > 0, gradient.dtype)


@elementwise
def _silu(x):
    """In float32: TensorFlow's kernels round between sigmoid and product."""
    values = tf.cast(x, tf.float32)
    return tf.cast(values * tf.sigmoid(values), x.dtype)


@elementwise
def _silu_gradient(gradient, x):
    values = tf.cast(x, tf.float32)
    gate = tf.sigmoid(values)
    return tf.cast(tf.cast(gradient, tf.float32) * gate * (1 + values * (1 - gate)), x.dtype)


@elementwise
def _sum(x, y):
    return x + y


@elementwise
def _masked(x, octets, dropped):
    """Values whose octet is at least `dropped`, scaled so that the mean is kept; 0 instead of the others."""
    keep = tf.cast(octets >= dropped, x.dtype)
    return x * (keep * tf.cast(256 / (256 - dropped), x.dtype))


@elementwise
def _scaled_and_shifted(x, scale, shift):
    """In float32, the channels last."""
    return tf.cast(tf.cast(x, tf.float32) * scale + shift, x.dtype)


@tf.custom_gradient
def relu(x):
    """`keras.activations.relu` with its defaults."""
    y = _rectified(x)
    return y, lambda gradient: _rectified_gradient(gradient, y)


@tf.custom_gradient
def silu(x):
    """`keras.activations.silu`, but for rounding: x times its sigmoid."""
    return _silu(x), lambda gradient: _silu_gradient(gradient, x)


FASTER_ACTIVATIONS = {keras.activations.relu: relu, keras.activations.silu: silu}


@tf.custom_gradient
def _add(x, y):
    return _sum(x, y), lambda gradient: (gradient, gradient)


class ReLU(keras.layers.ReLU):
    """The rectifier; with a slope, a threshold or a largest value, the stock layer's."""

    def call(self, inputs):
        """Sets negative values to 0."""
        plain = self.max_value is None and not self.negative_slope and not self.threshold
        return relu(inputs) if plain else super().call(inputs)


class Add(keras.layers.Add):
    """The sum of tensors; of other than two of one shape, the stock layer's."""

    def call(self, inputs):
        """Adds the tensors."""
        if len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
            return _add(*inputs)
        return super().call(inputs)


class Dropout(keras.layers.Dropout):
    """Dropout with a mask from random bytes: an eighth of the random bits, a function of step seed and layer.

    The rate is rounded to 1/256, and below 1. Kept values are scaled by the rounded rate, so the mean is kept.
    """

    layer_id = 0  # unique within the model, from 1

    def call(self, inputs, training=False):
        """Drops values if `training`."""
        dropped = round(self.rate * 256)
        if not training or dropped == 0:
            return inputs
        size = tf.size(inputs)
        seed = layer_seed(self.layer_id)
        words = tf.random.stateless_uniform([(size + 7) // 8], seed, None, None, tf.int64, alg="philox")
        octets = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], tf.shape(inputs))

        @tf.custom_gradient
        def drop(x):
            return _masked(x, octets, dropped), lambda gradient: _masked(gradient, octets, dropped)

        return drop(inputs)


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over the last axis: TensorFlow's fused kernel in training, a scale and a shift otherwise."""

    def call(self, inputs, training=None, mask=None):
        """Normalizes [n, h, w, c]; other shapes and dtypes, and a layer frozen in training, are the stock one's."""
        fused = len(inputs.shape) == 4 and self.axis in (-1, 3) and inputs.dtype != tf.float64 and not self.renorm
        if not fused or self.synchronized or mask is not None or (training and not self.trainable):
            return super().call(inputs, training=training, mask=mask)
        if not training:
            mean, variance = (self._float32(it, 0.0) for it in (self.moving_mean, self.moving_variance))
            scale = self._float32(self.gamma, 1.0) * tf.math.rsqrt(variance + self.epsilon)
            return _scaled_and_shifted(inputs, scale, self._float32(self.beta, 0.0) - mean * scale)
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
            moving.assign(moving * self.momentum + tf.cast(batch, moving.dtype) * (1 - self.momentum))
        return outputs

    def _float32(self, weight, default: float) -> tf.Tensor:
        if weight is None:
            return tf.fill([self.moving_mean.shape[0]], default)
        return tf.cast(weight.value, tf.float32)
