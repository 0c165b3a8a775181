import keras
import numpy as np
import pytest

from pipeline.config import params
from pipeline.training import optimizers


@pytest.fixture
def recipe(tree):
    """A recipe at a constant learning rate of 0.1: `recipe("muon", weight_decay=0.1)`."""

    def make(optimizer: str, **changes):
        tree["recipes"]["custom"] |= {"optimizer": optimizer, "learning_rate": 0.1, "momentum": 0.9} | changes
        return params.check(tree).recipes["custom"]

    return make


def small_model() -> keras.Model:
    """A weight of each kind."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(12, 2, name="conv")(inputs)
    x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = keras.layers.Conv2D(6, 1, use_bias=False, name="pointwise")(x)
    x = keras.layers.Dense(9, use_bias=False, name="dense")(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="classes")(x))


def change(recipe, gradient) -> tuple[dict, dict]:
    """The weights by path, and what one step changes in each, where `gradient(shape)` is its gradient."""
    model = small_model()
    before = {weight.path: weight.numpy() for weight in model.trainable_weights}
    optimizer = optimizers.make_optimizer(recipe, optimizers.Schedule("constant", 0.1, 10, 0.0), "float32", model)
    optimizer.apply([gradient(weight.shape).astype(weight.dtype) for weight in model.trainable_weights])
    return before, {weight.path: weight.numpy() - before[weight.path] for weight in model.trainable_weights}


@pytest.mark.parametrize(
    ("shape", "fractions", "rates"),
    [
        ("linear", (0.0, 0.2, 0.6, 1.0), (0.005, 1.0, 0.5, 0.0)),
        ("cosine", (0.2, 0.6, 1.0), (1.0, 0.5, 0.0)),
        ("constant", (0.2, 1.0), (1.0, 1.0)),
    ],
)
def test_schedule_rises_and_falls(shape, fractions, rates):
    schedule = optimizers.Schedule(shape, 1.0, 1000, 0.2)
    assert [float(schedule(1000 * fraction)) for fraction in fractions] == pytest.approx(rates, abs=0.006)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_shrinks_kernels_only(recipe, optimizer):
    before, changes = change(recipe(optimizer, weight_decay=0.1), np.zeros)
    for path, old in before.items():
        np.testing.assert_allclose(changes[path], -0.01 * old if old.ndim > 1 else 0 * old, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_float64_layers_are_trained_as_float32_ones(recipe, optimizer):
    made = recipe(optimizer, weight_decay=0.0)
    _, changes = change(made, np.ones)
    keras.config.set_dtype_policy("float64")
    try:
        _, in_float64 = change(made, np.ones)
    finally:
        keras.config.set_dtype_policy("float32")
    for path, values in in_float64.items():
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, changes[path], rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_momentum_of_the_recipe_carries_a_gradient_into_the_next_step(recipe, optimizer):
    def second_step(momentum):
        model = small_model()
        made = recipe(optimizer, weight_decay=0.0, momentum=momentum)
        steps = optimizers.make_optimizer(made, optimizers.Schedule("constant", 0.1, 10, 0.0), "float32", model)
        random = np.random.default_rng(0)
        gradients = [random.standard_normal(weight.shape).astype(np.float32) for weight in model.trainable_weights]
        steps.apply(gradients)
        before = [weight.numpy() for weight in model.trainable_weights]
        steps.apply([random.standard_normal(gradient.shape).astype(np.float32) for gradient in gradients])
        after = [weight.numpy() for weight in model.trainable_weights]
        return np.concatenate([(new - old).ravel() for new, old in zip(after, before, strict=True)])

    little, much = (np.abs(second_step(0.9) - second_step(momentum)).mean() for momentum in (0.9, 0.1))
    assert little < 0.01 * much


def test_muon_moves_convolutions_equally_in_all_directions(recipe):
    random = np.random.default_rng(0)
    _, changes = change(recipe("muon", weight_decay=0.0), random.standard_normal)
    for path in ("conv/kernel", "pointwise/kernel", "dense/kernel"):
        matrix = changes[path].reshape(-1, changes[path].shape[-1])
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.1 * 0.2 * max(matrix.shape) ** 0.5)
        np.testing.assert_allclose(singular, 1, atol=0.5)  # five iterations come that close to 1


def test_muon_leaves_depthwise_kernels_vectors_and_classes_to_adam(recipe):
    _, changes = change(recipe("muon", weight_decay=0.0), np.ones)
    first_step_of_adam = -0.1 * optimizers.ADAM_SHARE
    for path in ("conv/bias", "depthwise/kernel", "norm/gamma", "norm/beta", "classes/kernel", "classes/bias"):
        np.testing.assert_allclose(changes[path], first_step_of_adam, rtol=1e-3)


def test_muon_takes_no_depthwise_kernel_with_a_multiplier_and_no_vector_of_a_higher_rank_for_a_matrix(recipe):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
    x = keras.layers.SeparableConv2D(4, 3, depth_multiplier=2, name="separable")(x)
    x = keras.layers.PReLU(shared_axes=(1, 2), name="prelu")(keras.layers.Conv2D(4, 1, name="conv")(x))
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(keras.layers.Flatten()(x)))
    optimizer = optimizers.make_optimizer(
        recipe("muon"), optimizers.Schedule("constant", 0.1, 10, 0.0), "float32", model
    )
    by_muon = [weight.path for weight in model.trainable_weights if not optimizer._should_use_adamw(weight)]
    assert by_muon == ["separable/pointwise_kernel", "conv/kernel"]


def test_muon_and_decay_spare_biases_embeddings_norms_and_groups_of_any_rank(recipe):
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, groups=4, use_bias=False, name="grouped")(inputs)
    x = keras.layers.LayerNormalization(axis=(1, 2, 3), name="norm")(x)
    x = keras.layers.Reshape((36, 8))(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Dense(6, name="dense")(keras.layers.GRU(5, name="gru")(x))
    tokens = keras.layers.Embedding(7, 3, name="tokens")(keras.ops.cast(inputs[:, 0, 0, :1], "int32"))
    x = keras.layers.Concatenate()([x, keras.layers.Flatten()(tokens)])
    model = keras.Model(inputs, keras.layers.Dense(10, name="classes")(x))
    schedule = optimizers.Schedule("constant", 0.1, 10, 0.0)
    optimizer = optimizers.make_optimizer(recipe("muon", weight_decay=0.1), schedule, "float32", model)
    by_muon = {weight.path for weight in model.trainable_weights if not optimizer._should_use_adamw(weight)}
    assert by_muon == {"gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel", "dense/kernel"}
    decayed = {weight.path for weight in model.trainable_weights if optimizer._use_weight_decay(weight)}
    kernels = {weight.path for weight in model.trainable_weights if "kernel" in weight.path}
    assert decayed == kernels | {"tokens/embeddings"}


def test_muon_leaves_the_classes_of_a_nested_model_to_adam(recipe):
    head = keras.Sequential([keras.layers.Dense(6, name="hidden"), keras.layers.Dense(10, name="classes")])
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Softmax()(head(inputs)))
    optimizer = optimizers.make_optimizer(
        recipe("muon"), optimizers.Schedule("constant", 0.1, 10, 0.0), "float32", model
    )
    by_adam = {weight.path: optimizer._should_use_adamw(weight) for weight in model.trainable_weights}
    assert [path.split("/")[-2] for path, adam in by_adam.items() if not adam] == ["hidden"]
