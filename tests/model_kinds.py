"""Small models of the kinds that users write. Those of `RANDOM` draw random numbers while they train."""

import keras
import numpy as np
from keras import layers, ops

from pipeline.models import pixels


def classify(inputs, x) -> keras.Model:
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))


def small():
    """Pixels at 8x8, so that everything is fast."""
    inputs, x = pixels()
    return inputs, layers.AveragePooling2D(4)(x)


def published_form():
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=4, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def sequential_that_grew():
    model = keras.Sequential([keras.Input((32, 32, 3), dtype="uint8")])
    for layer in (layers.Rescaling(1 / 255), layers.Conv2D(4, 3, 4), layers.Flatten(), layers.Dense(10)):
        model.add(layer)
    model.add(layers.Softmax())
    return model


def nested():
    inputs, x = small()
    inner_inputs = keras.Input((8, 8, 3))
    block = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()], name="block")
    inner = keras.Model(inner_inputs, layers.Flatten()(block(inner_inputs)), name="inner")
    return classify(inputs, inner(x))


def nested_to_the_end():
    inputs, x = small()
    head = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(10, "softmax")], name="head")
    return keras.Model(inputs, head(x))


def shared():
    inputs, x = small()
    conv, block = layers.Conv2D(3, 3, padding="same"), keras.Sequential([layers.Conv2D(3, 1), layers.ReLU()])
    return classify(inputs, layers.Flatten()(block(conv(block(conv(x))))))


def averaged_twins():
    """A nested model that ends with softmax, called twice: its probabilities are averaged."""
    inputs, x = small()
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(10, "softmax")])
    return keras.Model(inputs, layers.Average()([net(x), net(ops.flip(x, axis=2))]))


def norms():
    inputs, x = small()
    for norm in (
        layers.BatchNormalization(),
        layers.BatchNormalization(scale=False, momentum=0.5),
        layers.BatchNormalization(axis=1),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.RMSNormalization(),
        layers.UnitNormalization(),
    ):
        x = norm(layers.Conv2D(4, 1)(x))
    x = layers.SpectralNormalization(layers.Conv2D(4, 3))(x)
    return classify(inputs, layers.GlobalMaxPooling2D()(x))


def attention():
    """A vision transformer of one block."""
    inputs, x = pixels()
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 8, strides=8)(x))
    x = x + layers.Embedding(16, 8)(ops.arange(16))
    x = x + layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(x), layers.LayerNormalization()(x))
    x = x + layers.Dense(8)(ops.gelu(layers.Dense(16)(x)))
    return classify(inputs, layers.GlobalAveragePooling1D()(x))


def transposed():
    inputs, x = small()
    x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu")(x)
    return classify(inputs, layers.GlobalAveragePooling2D()(layers.SeparableConv2D(4, 3)(layers.UpSampling2D()(x))))


def recurrent():
    inputs, x = small()
    return classify(inputs, layers.Bidirectional(layers.LSTM(4))(layers.Reshape((8, 24))(x)))


def frozen():
    """Filters that are set and frozen, a layer frozen by weight, and a bias that is set and trained."""
    inputs, x = small()
    edges, norm, dense = layers.Conv2D(2, 3, trainable=False), layers.BatchNormalization(trainable=False), None
    x = norm(edges(x))
    edges.set_weights([np.linspace(-1, 1, 54).reshape(3, 3, 3, 2), np.ones(2)])
    dense = layers.Dense(4)
    x = dense(layers.Flatten()(x))
    dense.kernel.trainable = False
    dense.bias.assign([0.1, 0.2, 0.3, 0.4])
    return classify(inputs, layers.Dense(4, kernel_initializer=keras.initializers.HeNormal(seed=3))(x))


def frozen_block():
    """A frozen layer of the user's own, with a normalization inside."""
    inputs, x = small()
    block = Normalized()
    block.trainable = False
    return classify(inputs, layers.Flatten()(block(layers.Conv2D(4, 3)(x))))


def adapted():
    """Normalization by statistics of images, in front of a head that begins with zeros."""
    inputs, x = small()
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (64, 8, 8, 3)))
    x = layers.Flatten()(layers.Conv2D(4, 3)(normalization(x)))
    return keras.Model(inputs, layers.Dense(10, "softmax", kernel_initializer="zeros")(x))


def penalized_probabilities():
    inputs, x = small()
    return keras.Model(inputs, layers.Dense(10, "softmax", activity_regularizer="l2")(layers.Flatten()(x)))


def called_for_inference():
    """Called with training=False, which Keras 3 overrides where the model itself is called with training=True."""
    inputs, x = small()
    block = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization()])
    return classify(inputs, layers.Flatten()(block(x, training=False)))


def constraints():
    inputs, x = small()
    x = layers.Conv2D(4, 3, kernel_constraint=keras.constraints.MaxNorm(0.5), bias_constraint="non_neg")(x)
    return classify(inputs, layers.Dense(4, kernel_constraint="unit_norm")(layers.Flatten()(x)))


def regularizers():
    inputs, x = small()
    x = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.5), activity_regularizer="l1")(x)
    x = layers.ActivityRegularization(l2=0.01)(Penalty()(layers.Flatten()(x)))
    return classify(inputs, keras.Sequential([layers.Dense(4, bias_regularizer=keras.regularizers.L1L2(0.1, 0.1))])(x))


def dtypes():
    inputs, x = small()
    x = layers.Conv2D(4, 3, dtype="float64")(x)
    x = layers.BatchNormalization(dtype="float64")(x)
    return classify(inputs, layers.Dense(8, dtype="float32")(layers.Flatten()(x)))


def softmax_by_an_operation():
    inputs, x = small()
    return keras.Model(inputs, ops.softmax(layers.Dense(10)(layers.Flatten()(x))))


def custom():
    inputs, x = small()
    return classify(inputs, Scaled()(layers.Flatten()(x)))


def mobilenet():
    """In float64: untrained, its gradients are in the hundreds, so that five steps in float32 are chaotic."""
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    keras.config.set_dtype_policy("float64")
    try:
        x = layers.Rescaling(1 / 127.5, -1)(inputs)
        net = keras.applications.MobileNet(
            (32, 32, 3), alpha=0.25, dropout=0, weights=None, classes=10, classifier_activation=None
        )
    finally:
        keras.config.set_dtype_policy("float32")
    return keras.Model(inputs, layers.Softmax(dtype="float32")(net(x)))


@keras.saving.register_keras_serializable("kinds")
class Penalty(layers.Layer):
    """Adds a loss of its inputs."""

    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


@keras.saving.register_keras_serializable("kinds")
class Scaled(layers.Layer):
    """Two inner layers of one name, and a weight whose initializer nobody outside knows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = [layers.Dense(4, name="inner"), layers.Dense(4, name="inner")]

    def build(self, shape):
        for inner in self.inner:
            inner.build(shape)
        self.scale = self.add_weight(shape=(4,), initializer=keras.initializers.RandomNormal(1.0, 0.2))
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            self.count.assign_add(1)
        return ops.relu(self.inner[0](x)) * self.scale + self.inner[1](x)


@keras.saving.register_keras_serializable("kinds")
class Normalized(layers.Layer):
    """Holds a normalization that no clone function reaches."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=False):
        return self.norm(x, training=training)


EXACT = {
    function.__name__: function
    for function in (
        published_form,
        sequential_that_grew,
        nested,
        nested_to_the_end,
        shared,
        averaged_twins,
        norms,
        attention,
        transposed,
        recurrent,
        frozen,
        frozen_block,
        adapted,
        penalized_probabilities,
        called_for_inference,
        constraints,
        regularizers,
        dtypes,
        softmax_by_an_operation,
        custom,
        mobilenet,
    )
}


def nested_dropout():
    inputs, x = small()
    block = keras.Sequential(
        [layers.Conv2D(4, 3), layers.Dropout(0.5), layers.Dropout(0.2, noise_shape=(None, 1, 1, 4))]
    )
    return classify(inputs, layers.Flatten()(block(x)))


def random_layers():
    inputs, x = pixels()
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomFlip()(x))
    x = layers.GaussianNoise(0.1)(layers.AveragePooling2D(4)(x))
    x = layers.AlphaDropout(0.1)(layers.SpatialDropout2D(0.5)(layers.Conv2D(4, 3)(x)))
    return classify(inputs, layers.Flatten()(x))


def attention_with_dropout():
    inputs, x = small()
    x = layers.Reshape((64, 3))(x)
    return classify(inputs, layers.Flatten()(layers.MultiHeadAttention(2, 4, dropout=0.5)(x, x)))


def custom_noise():
    inputs, x = small()
    return classify(inputs, OwnNoise()(GlobalNoise()(layers.Flatten()(x))))


def shared_dropout():
    inputs, x = small()
    dropout = layers.Dropout(0.5)
    return classify(inputs, layers.Flatten()(dropout(layers.Conv2D(4, 3)(dropout(x)))))


@keras.saving.register_keras_serializable("kinds")
class OwnNoise(layers.Layer):
    """Holds a generator."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator()

    def call(self, x, training=False):
        return x + keras.random.normal(ops.shape(x), seed=self.generator) if training else x


@keras.saving.register_keras_serializable("kinds")
class GlobalNoise(layers.Layer):
    """Uses the global generator of Keras."""

    def call(self, x, training=False):
        return x * keras.random.uniform(ops.shape(x)) if training else x


RANDOM = {
    function.__name__: function
    for function in (nested_dropout, random_layers, attention_with_dropout, custom_noise, shared_dropout)
}
