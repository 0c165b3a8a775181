"""Weights that were set stay; the others follow from seed and layer path, whatever was built before."""

import keras
import model_kinds
import numpy as np
from keras import layers

from pipeline.training.initial_weights import initial_weights
from pipeline.training.reproducible import build_seed
from pipeline.training.training_clone import training_clone


def values(model: keras.Model, seed: int) -> dict[str, np.ndarray]:
    """Initial weights by their path."""
    return dict(zip([weight.path for weight in model.weights], initial_weights(model, seed), strict=True))


def test_weights_that_were_set_stay_and_the_others_follow_the_seed():
    model = model_kinds.frozen()
    names = [layer.name for layer in model.layers if layer.weights]
    edges, norm, dense, seeded, classes = names
    built = {weight.path: weight.numpy() for weight in model.weights}
    first, again, other = values(model, 1), values(model, 1), values(model, 2)
    for path in (f"{edges}/kernel", f"{edges}/bias", f"{dense}/bias", f"{seeded}/kernel", f"{norm}/gamma"):
        np.testing.assert_array_equal(first[path], built[path])
    assert first[f"{edges}/kernel"].ravel()[0] == -1 and first[f"{edges}/kernel"].ravel()[-1] == 1
    for path in (f"{dense}/kernel", f"{classes}/kernel"):
        np.testing.assert_array_equal(first[path], again[path])
        assert not np.array_equal(first[path], other[path])
        assert not np.array_equal(first[path], built[path])


def test_training_clone_has_them_and_what_was_frozen_stays_frozen():
    model = model_kinds.frozen()
    clone = training_clone(model, 1)
    for copied, value in zip(clone.get_weights(), initial_weights(model, 1), strict=True):
        np.testing.assert_array_equal(copied, value)
    assert [weight.trainable for weight in clone.weights] == [weight.trainable for weight in model.weights]
    assert [weight.path for weight in clone.trainable_weights] == [weight.path for weight in model.trainable_weights]


def test_layers_within_a_layer_differ_from_each_other():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    found = values(keras.Model(inputs, model_kinds.Scaled()(layers.Flatten()(attention(inputs, inputs)))), 0)
    projections = [found[f"attention/{name}/kernel"] for name in ("query", "key", "value")]
    assert not np.array_equal(projections[0], projections[1])
    assert not np.array_equal(projections[0], projections[2])
    model = model_kinds.custom()
    inner = [value for value in initial_weights(model, 0) if value.shape == (192, 4)]
    assert len(inner) == 2
    assert not np.array_equal(*inner)


def test_what_a_custom_layer_draws_follows_the_seed_of_the_build():
    scales = []
    for seed in (1, 1, 2):
        with build_seed(seed):
            model = model_kinds.custom()
        (scale,) = (value for value in initial_weights(model, 0) if value.shape == (4,) and value.any())
        scales.append(scale)
    np.testing.assert_array_equal(scales[0], scales[1])
    assert not np.array_equal(scales[0], scales[2])
