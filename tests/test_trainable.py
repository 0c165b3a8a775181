"""What stock Keras would not train either, or could not save, is refused in one line before the first step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import models
from pipeline.config import params
from pipeline.models import pixels
from pipeline.training import dataset, loop
from pipeline.training.trainable import check_trainable
from pipeline.training.training_clone import UntrainableError


def model_with(*layers: keras.layers.Layer, activation: str | None = "softmax") -> keras.Model:
    inputs, x = pixels()
    x = keras.layers.AveragePooling2D(8)(x)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation)(keras.layers.Flatten()(x)))


class Unregistered(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable("trainable")
class Forgetful(keras.layers.Layer):
    """Its config lacks the factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config()


class Stateful(keras.layers.Layer):
    def call(self, x, training=False):
        return x + tf.random.normal(tf.shape(x)) if training else x


@keras.saving.register_keras_serializable("trainable")
class Generated(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, x, training=False):
        return x + self.generator.normal(tf.shape(x)) if training else x


class FailsInTraining(keras.layers.Layer):
    def call(self, x, training=False):
        if training:
            raise KeyError("only now")
        return x


def of_a_dict() -> keras.Model:
    inputs, x = pixels()
    return keras.Model(inputs, {"classes": keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(x))})


def of_a_layer_also_within_another() -> keras.Model:
    inputs, x = pixels()
    dense = keras.layers.Dense(32)
    x = keras.layers.Add()([dense(x), keras.layers.TimeDistributed(dense)(x)])
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("name", models.names())
def test_models_of_this_repository_are_trainable(name):
    check_trainable(models.build(name))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: model_with(activation=None), r"no probabilities \(.*end with a softmax"),
        (lambda: model_with(activation="sigmoid"), "no probabilities"),
        (lambda: model_with(keras.layers.Rescaling(float("inf"))), "NaN or infinity"),
        (lambda: model_with(keras.layers.Lambda(lambda x: 2 * x, name="twice")), "cannot be loaded.*lambda.*use stock"),
        (lambda: model_with(Unregistered()), "cannot be loaded.*Unregistered.*register_keras_serializable"),
        (of_a_dict, "outputs a dict with the key 'classes': output the tensor itself"),
        (of_a_layer_also_within_another, "a copy of the model has 6 weights, not 4: share weights only by calling one"),
        (lambda: model_with(Forgetful(3.0)), r"something else after it is saved.*get_config\(\)"),
    ],
)
def test_model_that_could_not_be_used_is_refused(model, message):
    with pytest.raises(UntrainableError, match=message) as refusal:
        check_trainable(model())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Generated, "draws random numbers from hidden state.*use keras.random"),
        (Stateful, "draws random numbers from hidden state.*use keras.random"),
        (FailsInTraining, r"KeyError: .only now. \(test_trainable\.py, line \d+\)"),
    ],
)
def test_step_that_cannot_be_repeated_or_computed_is_refused_before_it_is_taken(tree, layer, message):
    recipe = params.check(tree).recipes["custom"].model_copy(update={"batch_size": 10})
    split = dataset.Split(np.zeros((20, 32, 32, 3), np.uint8), np.zeros(20, np.int32))
    taken = []
    with pytest.raises(UntrainableError, match=message) as refusal:
        loop.train(model_with(layer()), recipe, 0, split, split, on_steps=lambda *step: taken.append(step))
    assert not taken
    assert "\n" not in str(refusal.value)
