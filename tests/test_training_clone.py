"""The training clone computes what the model computes; its random numbers follow from the seed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import models
from pipeline.training import layers
from pipeline.training.training_clone import copy_weights, training_clone


@pytest.mark.parametrize("name", ["baseline", "custom"])
def test_training_clone_gives_the_logits_of_the_model(name):
    model = models.build(name)
    clone = training_clone(model, seed=1)
    copy_weights(clone.weights, model)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(tf.nn.softmax(clone(images)), model(images), atol=1e-5)


def test_activations_have_their_faster_versions():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(2, 3, activation="silu")(inputs)
    x = keras.layers.Activation("silu")(keras.layers.Conv2D(2, 3, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.GlobalAveragePooling2D()(x)))
    found = [layer.activation for layer in training_clone(model, seed=1).layers if hasattr(layer, "activation")]
    assert found[:3] == [layers.silu, layers.relu, layers.silu]


def test_initial_weights_follow_from_the_seed_alone():
    first = training_clone(models.build("custom"), seed=1)
    keras.utils.set_random_seed(99)
    models.build("baseline")
    again, other = training_clone(models.build("custom"), seed=1), training_clone(models.build("custom"), seed=2)
    kernels = [i for i, weight in enumerate(first.weights) if "kernel" in weight.path]
    assert kernels
    for i in kernels:
        assert np.array_equal(first.weights[i].numpy(), again.weights[i].numpy())
        assert not np.array_equal(first.weights[i].numpy(), other.weights[i].numpy())


def test_logits_are_float32_under_mixed_precision():
    clone = training_clone(models.build("custom"), seed=1, policy="mixed_bfloat16")
    assert clone(np.zeros((1, 32, 32, 3), np.uint8)).dtype == tf.float32
    assert clone.get_layer("separable1").compute_dtype == "bfloat16"
