"""The training clone computes what the model computes; its random numbers follow from the seed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import models
from pipeline.system import device
from pipeline.training import layers
from pipeline.training.training_clone import copy_weights, training_clone

BFLOAT16 = {"avx512_bf16", "amx_bf16"} & device._instruction_sets()


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


@pytest.mark.skipif(not BFLOAT16, reason="oneDNN computes no bfloat16 on this processor")
def test_plain_convolutions_with_a_bias_are_computed_in_bfloat16():
    """Slower in float32, and the recorded baseline has some."""
    clone = training_clone(models.build("baseline"), seed=1, policy="mixed_bfloat16")
    kinds = keras.layers.Conv2D | keras.layers.Dense
    precisions = {layer.name: layer.compute_dtype for layer in clone.layers if isinstance(layer, kinds)}
    assert precisions == dict.fromkeys(precisions, "bfloat16") | {"classes": "float32"}


L = keras.layers
BIASED = {
    "Conv2D": lambda x: L.Conv2D(8, 3)(x),
    "in groups": lambda x: L.Conv2D(8, 3, groups=4)(x),
    "dilated": lambda x: L.Conv2D(8, 3, dilation_rate=2)(x),
    "SeparableConv2D": lambda x: L.SeparableConv2D(8, 3)(x),
    "DepthwiseConv2D": lambda x: L.DepthwiseConv2D(3)(x),
    "Conv2DTranspose": lambda x: L.Conv2DTranspose(8, 3)(x),
    "Dense": lambda x: L.Dense(8)(x),
    "Dense of rows": lambda x: L.Dense(8)(L.GlobalMaxPooling2D()(x)),
    "EinsumDense": lambda x: L.EinsumDense("abcd,de->abce", (32, 32, 8), bias_axes="e")(x),
    "Conv1D": lambda x: L.Conv1D(8, 3)(L.Reshape((1024, 8))(x)),
    "wrapped": lambda x: L.SpectralNormalization(L.Dense(8))(x),
    "nested": lambda x: keras.Sequential([keras.Sequential([L.Dense(8)])])(x),
    "attention": lambda x: L.MultiHeadAttention(2, 4)(*2 * [L.Reshape((64, 8))(L.MaxPooling2D(4)(x))]),
    "LSTM": lambda x: L.LSTM(8, return_sequences=True)(L.Reshape((32, 256))(x)),
}


@pytest.mark.parametrize("name", BIASED)
def test_biases_have_the_gradient_in_bfloat16_that_they_have_in_float32(name):
    inputs = keras.Input((32, 32, 3))
    x = BIASED[name](L.Conv2D(8, 1, use_bias=False)(inputs))
    model = keras.Model(inputs, L.Dense(10, "softmax")(L.Flatten()(L.Activation("tanh")(x))))
    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)

    def gradients(policy):
        clone = training_clone(model, seed=1, policy=policy)

        @tf.function(autograph=False)
        def compute():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(clone(images, training=True)[:, 0])
            return tape.gradient(loss, clone.trainable_variables)

        return {
            weight.path: gradient.numpy() for weight, gradient in zip(clone.trainable_weights, compute(), strict=True)
        }

    in_bfloat16 = gradients("mixed_bfloat16")
    for path, expected in gradients("float32").items():
        error = np.linalg.norm(in_bfloat16[path] - expected) / np.linalg.norm(expected)
        assert error < 0.05 or np.linalg.norm(expected) < 1e-3, (path, error)
