"""Precise statistics are those of the training images in inference, as numpy computes them."""

import keras
import numpy as np
import pytest

from pipeline.training.norm_statistics import BATCH_SIZE, IMAGES, precise_statistics
from pipeline.training.training_clone import UntrainableError

Norm = keras.layers.BatchNormalization


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2 * BATCH_SIZE, 32, 32, 3), np.uint8)


class WithinCustomLayer(keras.layers.Layer):
    """A user's block that has its norm to itself.

    Args:
        use: when it normalizes: `always`, `by moving averages`, `in training`, or `never`.
        config: Keras's own.
    """

    def __init__(self, use="always", **config):
        super().__init__(**config)
        self.use = use
        self.norm = Norm(name="norm")

    def get_config(self):
        """With its own argument."""
        return super().get_config() | {"use": self.use}

    def build(self, shape):
        """Builds the norm, if it is used."""
        if self.use != "never":
            self.norm.build(shape)

    def call(self, x, training=None):
        """Normalizes."""
        if self.use == "never" or (self.use == "in training" and not training):
            return x
        return self.norm(x, training=training and self.use != "by moving averages")


def network(*layers: keras.Layer) -> keras.Model:
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, strides=8, name="conv")(keras.layers.Rescaling(1 / 64, -2)(inputs))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(x)))


def values_before(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    """What reaches a layer in inference, [n * height * width, channels]."""
    values = keras.Model(model.input, model.get_layer(layer).input)(images, training=False).numpy()
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def assert_precise(norm: Norm, values: np.ndarray, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(norm.moving_mean, values.mean(0), rtol=rtol, atol=0.1 * rtol * values.std())
    np.testing.assert_allclose(norm.moving_variance, values.var(0), rtol=rtol)


@pytest.mark.parametrize("place", ["alone", "in a custom layer", "in a nested model"])
def test_statistics_are_those_of_inference(images, place):
    norm = Norm(name="norm")
    layer = norm
    if place == "in a custom layer":
        layer = WithinCustomLayer(name="norm")
        norm = layer.norm
    elif place == "in a nested model":
        layer = keras.Sequential([keras.Input((4, 4, 4)), norm], name="norm")
    model = network(keras.layers.Dropout(0.5), layer)
    update = precise_statistics(model, images)
    for scale in (1, 2):  # the second time with other weights
        model.get_layer("conv").kernel.assign(scale * model.get_layer("conv").kernel)
        update()
        assert_precise(norm, values_before(model, "norm", images))


def test_norm_behind_another_sees_what_it_normalizes(images):
    model = network(Norm(name="first"), keras.layers.ReLU(), keras.layers.Conv2D(4, 1), Norm(name="second"))
    precise_statistics(model, images)()
    # The first normalizes by the statistics of a batch meanwhile.
    assert_precise(model.get_layer("second"), values_before(model, "second", images), rtol=0.01)


def test_norm_that_is_called_twice_has_the_statistics_of_both(images):
    norm = Norm(name="norm", scale=False)
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    small = keras.layers.Rescaling(1 / 64)(inputs)
    sum_of_both = keras.layers.Add()([norm(small), norm(keras.layers.Rescaling(3)(small))])
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(sum_of_both)))
    precise_statistics(model, images)()
    values = images.reshape(-1, 3) / 64
    assert_precise(norm, np.concatenate([values, 3 * values]))


def test_norm_that_is_frozen_or_renormalizes_keeps_its_statistics(images):
    norms = Norm(trainable=False), Norm(renorm=True), Norm(name="plain")
    model = network(*norms)
    precise_statistics(model, images)()
    for norm in norms[:2]:
        np.testing.assert_array_equal(norm.moving_mean, np.zeros(4))
        np.testing.assert_array_equal(norm.moving_variance, np.ones(4))
    assert np.abs(norms[2].moving_mean).min() > 0


@pytest.mark.parametrize("use", ["by moving averages", "in training", "never"])
def test_norm_within_a_custom_layer_that_does_not_adapt_or_is_not_called_is_left(images, use):
    layer, norm = WithinCustomLayer(use), Norm()
    precise_statistics(network(layer, norm), images)()
    if layer.norm.built:
        np.testing.assert_array_equal(layer.norm.moving_mean, np.zeros(4))
        np.testing.assert_array_equal(layer.norm.moving_variance, np.ones(4))
    assert np.abs(norm.moving_mean).min() > 0


def test_variance_is_right_where_the_mean_is_large(images):
    model = network(Norm(center=False, name="small"), keras.layers.Rescaling(1, 3000), Norm(name="norm"))
    precise_statistics(model, images)()
    np.testing.assert_allclose(model.get_layer("norm").moving_variance, np.ones(4), rtol=0.05)


def test_statistics_that_are_not_finite_are_replaced(images):
    model = network(Norm(name="norm"))
    model.get_layer("norm").moving_variance.assign(np.full(4, np.inf))
    precise_statistics(model, images)()
    assert_precise(model.get_layer("norm"), values_before(model, "norm", images))


def test_images_beyond_the_last_full_batch_are_not_used(images):
    model = network(Norm(name="norm"))
    precise_statistics(model, np.concatenate([images, 255 - images[:1]]))()
    assert_precise(model.get_layer("norm"), values_before(model, "norm", images))


def test_model_that_cannot_be_called_in_inference_is_refused_in_one_line(images):
    class Fails(keras.layers.Layer):
        def call(self, x, training=None):
            if training is False:
                raise NotImplementedError("not in\ninference")
            return x

    with pytest.raises(UntrainableError, match=r"^precise norm_statistics cannot be computed: .*not in inference"):
        precise_statistics(network(Norm(), Fails()), images)


def test_later_images_are_not_used(images):
    model = network(Norm(name="norm"))
    many = np.concatenate([*[images] * (IMAGES // len(images)), 255 - images[:BATCH_SIZE]])
    precise_statistics(model, many)()
    assert_precise(model.get_layer("norm"), values_before(model, "norm", images))


def test_model_without_norms_is_left_as_it_is(images):
    model = network()
    before = model.get_weights()
    precise_statistics(model, images)()
    assert all(map(np.array_equal, before, model.get_weights()))
