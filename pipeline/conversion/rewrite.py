"""Keras models rewritten so that they convert well. Their outputs stay the same, up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.training.cifar10 import IMAGE_SHAPE

if TYPE_CHECKING:
    import keras


def one_image(model: keras.Model) -> keras.Model:
    """The model for exactly one image, uint8: a free batch size leaves shape arithmetic in the file."""
    import keras

    class Cast(keras.Layer):
        """To float32. An operation would get a name that is another one each time, and so would the file's bytes."""

        def call(self, inputs: Any) -> Any:
            return keras.ops.cast(inputs, "float32")

    image = keras.Input(IMAGE_SHAPE, batch_size=1, dtype="uint8", name="pixels")
    return keras.Model(image, _clone(model, {})(Cast(name="cast")(image)), name="one_image")


def for_integers(model: keras.Model) -> keras.Model:
    """The model for one float32 image, each batch normalization's scale moved before the ReLU that precedes it.

    Behind the ReLU the norm stays a multiplication, whose channels differ in size and share one quantization step. A
    ReLU commutes with a positive scale, and before it the scale is part of the kernel. Where a channel's scale is not
    positive, or something else uses the ReLU's output too, the norm stays as it is.

    The input is float32, because the cast of a uint8 input would stay in floating point.
    """
    import keras

    moved = {}
    for norm in model.layers:
        producer = _producer(norm) if isinstance(norm, keras.layers.BatchNormalization) else None
        if producer is None:
            continue
        gamma, beta, mean, variance = (_value(getattr(norm, name), default) for name, default in _NORM.items())
        scale = gamma / np.sqrt(variance + norm.epsilon)
        if (scale > 0).all():
            moved[producer.name] = scale
            moved[norm.name] = beta - mean * scale
    return _clone(model, moved)


def without_normalization(model: keras.Model) -> keras.Model:
    """The model with its input's Normalization as a Rescaling: in an ONNX file the former's constants become inputs."""
    import keras

    def copy(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.layers.Normalization):
            return layer.__class__.from_config(layer.get_config())
        mean, deviation = np.asarray(layer.mean).ravel(), np.sqrt(np.asarray(layer.variance).ravel())
        scale = 1 / np.maximum(deviation, keras.config.epsilon())
        return keras.layers.Rescaling(scale.tolist(), (-mean * scale).tolist(), name=layer.name)

    image = keras.Input(IMAGE_SHAPE, dtype="uint8", name="pixels")
    clone = keras.models.clone_model(model, input_tensors=image, clone_function=copy)
    clone.set_weights(model.get_weights())
    clone(np.zeros((1, *IMAGE_SHAPE), np.uint8))  # Keras exports no model that was never called
    return clone


_NORM = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


def _clone(model: keras.Model, moved: dict[str, np.ndarray]) -> keras.Model:
    """A copy for one float32 image, with the same weights but for the layers in `moved`.

    Of these, norms become their shift, others are scaled.
    """
    import keras

    class Shift(keras.Layer):
        """Adds a constant to each channel."""

        def __init__(self, offset: np.ndarray, **kwargs: Any):
            super().__init__(**kwargs)
            self.offset = offset

        def call(self, inputs: Any, **_: Any) -> Any:  # a norm is called with a mask too
            return inputs + keras.ops.convert_to_tensor(self.offset, inputs.dtype)

    def copy(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.name in moved:
            return Shift(moved[layer.name], name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    image = keras.Input(IMAGE_SHAPE, batch_size=1, dtype="float32", name="pixels")
    clone = keras.models.clone_model(model, input_tensors=image, clone_function=copy)
    copies = {layer.name: layer for layer in clone.layers}
    for layer in model.layers:
        twin = copies.get(layer.name)
        if twin is None or isinstance(twin, keras.layers.InputLayer | Shift):
            continue
        weights = layer.get_weights()
        if layer.name in moved:
            kernel = 1 if isinstance(layer, keras.layers.SeparableConv2D) else 0
            scale = moved[layer.name]
            weights[kernel] = weights[kernel] * scale.reshape(_channels(layer, weights[kernel]))
            if layer.use_bias:
                weights[-1] = weights[-1] * scale
        twin.set_weights(weights)
    return clone


def _channels(layer: keras.Layer, kernel: np.ndarray) -> tuple[int, ...]:
    """The axes of a kernel that hold its output channels, as the shape of one scale a channel."""
    import keras

    return kernel.shape[2:] if isinstance(layer, keras.layers.DepthwiseConv2D) else (-1,)


def _producer(norm: keras.Layer) -> keras.Layer | None:
    """The layer whose kernel can take a norm's scale in: convolution or Dense, then a ReLU, used by the norm alone."""
    import keras

    layers, relu, linear = keras.layers, keras.activations.relu, keras.activations.linear
    if norm.axis not in (-1, len(norm.input.shape) - 1) or len(norm._inbound_nodes) != 1:
        return None
    layer = norm.input._keras_history.operation
    is_relu = isinstance(layer, layers.ReLU) and layer.max_value is None and not layer.threshold
    if is_relu or (isinstance(layer, layers.Activation) and layer.activation is relu):
        if not _is_used_once(layer):
            return None
        layer, activation = layer.input._keras_history.operation, linear
    else:
        activation = relu
    takes_scale = type(layer) in (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)
    return layer if takes_scale and layer.activation is activation and _is_used_once(layer) else None


def _is_used_once(layer: keras.Layer) -> bool:
    return len(layer._inbound_nodes) == 1 and len(layer._outbound_nodes) == 1


def _value(variable: Any, default: float) -> np.ndarray:
    return np.asarray(default if variable is None else variable, np.float64)
