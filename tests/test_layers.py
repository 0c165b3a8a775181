"""The faster layers compute what the stock layers compute."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.training import elementwise, layers
from pipeline.training.reproducible import layer_seed, step_seed


@pytest.fixture
def activations():
    return np.random.default_rng(0).normal(3, 2, (8, 6, 5, 16)).astype(np.float32)


def trained_step(layer, inputs):
    """Outputs, input gradient, weight gradients of one training step with a fixed direction of descent."""
    x = tf.constant(inputs)
    direction = tf.constant(np.random.default_rng(1).normal(size=inputs.shape).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * direction)
    return [y, *tape.gradient(loss, [x, *layer.trainable_variables])]


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.05), ("bfloat16", 0.05)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_is_the_stock_one(activations, policy, tolerance, affine):
    stock, fast = (
        kind(dtype=policy, momentum=0.9, gamma_initializer="random_uniform", scale=affine, center=affine)
        for kind in (keras.layers.BatchNormalization, layers.BatchNormalization)
    )
    stock.build(activations.shape)
    fast.build(activations.shape)
    fast.set_weights(stock.get_weights())
    for ours, theirs in zip(trained_step(fast, activations), trained_step(stock, activations), strict=True):
        scale = np.abs(np.asarray(theirs, np.float32)).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(theirs, np.float32), atol=tolerance * scale)
    for ours, theirs in zip(fast.weights, stock.weights, strict=True):
        ours, theirs = (np.asarray(it, np.float32) for it in (ours.numpy(), theirs.numpy()))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        np.asarray(fast(activations), np.float32), np.asarray(stock(activations), np.float32), atol=tolerance * 3
    )


SPECIAL = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-40]


def bits(tensor) -> np.ndarray:
    """The bits of a tensor; one pattern for all that is not a number, and one for both zeros, which add nothing."""
    values = np.asarray(tf.cast(tensor, tf.float32)) + np.float32(0)
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32], ids=lambda dtype: dtype.name)
def test_compiled_chains_give_the_bits_of_tensorflows_kernels(dtype):
    """So a training run gives the same weights with and without them, and no activation hides a NaN."""
    assert elementwise.compiles()
    random = np.random.default_rng(0)
    x, y, gradient = (
        tf.cast(np.append(random.normal(0, 3, 5000), random.permutation(SPECIAL)), dtype) for _ in range(3)
    )
    octets = tf.constant(random.integers(0, 256, x.shape, np.uint8))
    assert np.array_equal(bits(layers._rectified(x)), bits(tf.nn.relu(x)))
    gradient = tf.where(tf.math.is_finite(gradient), gradient, 1)
    stock = tf.raw_ops.ReluGrad(gradients=gradient, features=tf.nn.relu(x))
    assert np.array_equal(bits(layers._rectified_gradient(gradient, tf.nn.relu(x))), bits(stock))
    assert np.array_equal(bits(layers._sum(x, y)), bits(x + y))
    assert np.array_equal(bits(layers._masked(x, octets, 77)), bits(layers._masked.__wrapped__(x, octets, 77)))


def test_compiled_chains_of_many_shapes_bring_no_warning(caplog):
    """TensorFlow warns of a function that is traced for five of six calls, as any model with five shapes does."""
    assert [layers._sum(ones, ones).shape for ones in map(tf.ones, range(1, 10))] == [(size,) for size in range(1, 10)]
    assert not caplog.messages


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("fast", "stock"),
    [
        (layers.ReLU(), keras.layers.ReLU()),
        (layers.ReLU(6.0, 0.1, 0.2), keras.layers.ReLU(6.0, 0.1, 0.2)),
        (keras.layers.Activation(layers.relu), keras.layers.Activation("relu")),
    ],
)
def test_relu_is_the_stock_one(activations, fast, stock, policy):
    values = tf.cast(activations, tf.bfloat16 if policy == "mixed_bfloat16" else tf.float32)
    for ours, theirs in zip(trained_step(fast, values), trained_step(stock, values), strict=True):
        assert np.array_equal(bits(ours), bits(theirs))


@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-6), (tf.bfloat16, 2**-7)])
def test_silu_is_the_stock_one(activations, dtype, tolerance):
    values = tf.cast(activations - 3, dtype)
    fast, stock = (trained_step(keras.layers.Activation(it, dtype=dtype.name), values) for it in (layers.silu, "silu"))
    for ours, theirs in zip(fast, stock, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        ours, theirs = (np.asarray(it, np.float32) for it in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())
    special = tf.constant([np.nan, np.inf, -200.0, 0.0], dtype)
    assert np.array_equal(bits(layers.silu(special)), bits(keras.activations.silu(special)))


def test_sum_is_the_stock_one(activations):
    for shapes in [(activations, activations), (activations, activations[..., :1]), (activations,) * 3]:
        inputs = [tf.constant(part) for part in shapes]
        results = []
        for kind in (layers.Add, keras.layers.Add):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                total = kind()(inputs)
                loss = tf.reduce_sum(total**2)
            results.append([total, *tape.gradient(loss, inputs)])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rate", [0.25, 0.3, 0.5])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate, policy):
    layer = layers.Dropout(rate, dtype=policy)
    layer.layer_id = 1
    with step_seed(tf.constant([0, 4096], tf.int64)):
        kept = np.asarray(layer(np.ones((64, 16, 16, 32), np.float32), training=True), np.float32)
    assert abs(np.mean(kept == 0) - rate) < 0.004  # the rate is rounded to 1/256
    assert abs(kept.mean() - 1) < 0.01
    assert len(np.unique(kept)) == 2


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_gradient_passes_where_dropout_kept_the_value(activations, policy):
    layer = layers.Dropout(0.5, dtype=policy)
    layer.layer_id = 1
    x = tf.constant(activations)
    with step_seed(tf.constant([0, 4096], tf.int64)), tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    gradient = np.asarray(tape.gradient(y, x), np.float32)
    kept = np.asarray(y, np.float32) != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_array_equal(gradient, 2.0 * kept)


def test_dropout_does_nothing_in_inference():
    inputs = np.ones((2, 3), np.float32)
    assert np.array_equal(layers.Dropout(0.5)(inputs, training=False), inputs)


def test_dropout_masks_differ_by_step_layer_and_seed_and_can_be_had_again():
    def mask(seed, step, layer_id):
        layer = layers.Dropout(0.5)
        layer.layer_id = layer_id
        with step_seed(tf.constant([seed, 4096 * step], tf.int64)):
            return np.asarray(layer(np.ones((100, 100), np.float32), training=True)).ravel() > 0

    first = mask(0, 0, 1)
    assert np.array_equal(first, mask(0, 0, 1))
    for other in (mask(0, 0, 2), mask(0, 1, 1), mask(1, 0, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05  # 5 standard deviations


def test_shared_dropout_draws_another_mask_each_time_it_is_called_in_a_step():
    layer, values = layers.Dropout(0.5), np.ones((100, 100), np.float32)
    with step_seed(tf.constant([0, 4096], tf.int64)):
        masks = [np.asarray(layer(values, training=True)).ravel() > 0 for _ in range(2)]
    assert abs(np.corrcoef(*masks)[0, 1]) < 0.05


def test_replicas_draw_from_their_own_seed():
    """Each is traced in a thread of its own, and they take turns within a step."""
    entered, done = threading.Event(), threading.Event()

    def other_replica():
        with step_seed(tf.constant([7, 8192], tf.int64)):
            entered.set()
            done.wait(10)

    with step_seed(tf.constant([7, 4096], tf.int64)):
        thread = threading.Thread(target=other_replica)
        thread.start()
        entered.wait(10)
        assert layer_seed(1).numpy().tolist() == [8, 4097]
        done.set()
        thread.join()


def test_dropout_is_independent_of_its_neighbours():
    layer = layers.Dropout(0.5)
    with step_seed(tf.constant([0, 0], tf.int64)):
        mask = np.asarray(layer(np.ones((64, 32, 32, 16), np.float32), training=True)) > 0
    for axis in range(4):
        for distance in (1, 2, 8):
            first = np.take(mask, range(distance, mask.shape[axis]), axis).ravel()
            second = np.take(mask, range(mask.shape[axis] - distance), axis).ravel()
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.006  # 5 standard deviations
