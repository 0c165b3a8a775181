"""A model of any kind trains as stock Keras trains it, repeatably, and is loaded as it was saved."""

import subprocess
import sys
import textwrap

import keras
import model_kinds
import numpy as np
import pytest
from conftest import ROOT

from pipeline.config import params
from pipeline.training import dataset, loop
from pipeline.training.initial_weights import initial_weights
from pipeline.training.reproducible import build_seed
from pipeline.training.trainable import check_trainable

KINDS = model_kinds.EXACT | model_kinds.RANDOM
# Fast; the others are slow only by their number
SMALL = ["published_form", "nested", "custom", "regularizers", "frozen_block", "adapted", "penalized_probabilities"]


def kinds(names):
    return [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def recipe(tree):
    changes = {"model": "custom", "batch_size": 20, "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.0}
    tree["recipes"]["custom"] |= changes | {"epochs": 1, "schedule": "constant", "warmup_fraction": 0.0}
    return params.check(tree).recipes["custom"]


@pytest.fixture(scope="module")
def splits():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (120, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 120).astype(np.int32)
    return dataset.Split(images[:100], labels[:100]), dataset.Split(images[100:], labels[100:])


def build(name: str, seed: int = 0) -> keras.Model:
    with build_seed(seed):
        return KINDS[name]()


def trained(name, recipe, splits, seed=0, **options):
    """The trained model, and its epochs with their states."""
    model, epochs = build(name, seed), []
    loop.train(model, recipe, seed, *splits, on_epoch=lambda *epoch: epochs.append(epoch), **options)
    return model, epochs


@pytest.mark.parametrize("name", kinds(KINDS))
def test_precise_statistics_change_nothing_else(recipe, splits, name):
    (moving, epochs), (precise, others) = (
        trained(name, recipe.model_copy(update={"epochs": 2, "norm_statistics": statistics}), splits)
        for statistics in ("moving", "precise")
    )
    for ours, theirs in zip(moving.weights, precise.weights, strict=True):
        if "moving_" not in ours.name:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for (ours, state), (theirs, same_state) in zip(epochs, others, strict=True):
        assert (ours.loss, ours.accuracy) == (theirs.loss, theirs.accuracy)
        assert all(map(np.array_equal, state.values, same_state.values))
    assert np.isfinite([epoch.val_loss for epoch, _ in others]).all()


@pytest.mark.parametrize("name", kinds(model_kinds.EXACT))
def test_five_steps_are_those_of_stock_keras(recipe, splits, name):
    ours, epochs = trained(name, recipe, splits)
    stock = build(name)
    initial = initial_weights(stock, 0)
    stock.set_weights(initial)
    optimizer = keras.optimizers.SGD(recipe.learning_rate, recipe.momentum, nesterov=True)
    stock.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    images, labels = splits[0]
    metrics = []
    for batch in dataset.permutation(0, 1, 100).reshape(5, 20):
        stock.reset_metrics()
        metrics.append(stock.train_on_batch(images[batch], labels[batch]))
    for weight, mine, theirs in zip(stock.weights, ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4, err_msg=weight.path)
    assert any(np.abs(new - old).max() > 1e-2 for new, old in zip(stock.get_weights(), initial, strict=True))
    assert (epochs[0][0].loss, epochs[0][0].accuracy) == pytest.approx(np.mean(metrics, axis=0), rel=1e-4)
    val_loss, val_accuracy = stock.evaluate(*splits[1], batch_size=20, verbose=0)
    assert (epochs[0][0].val_loss, epochs[0][0].val_accuracy) == pytest.approx((val_loss, val_accuracy), rel=1e-3)


@pytest.mark.parametrize("name", kinds(name for name in KINDS if name != "mobilenet"))  # which has nothing new here
def test_training_run_is_a_function_of_the_seed_and_resumes(recipe, splits, name):
    recipe = recipe.model_copy(update={"epochs": 2, "ema_decay": 0.5})
    keras.utils.set_random_seed(1)
    first, epochs = trained(name, recipe, splits)
    keras.utils.set_random_seed(2)
    resumed, rest = trained(name, recipe, splits, resume=epochs[0][1])
    assert loop.digest(resumed) == loop.digest(first)
    assert rest[0][0].metrics() == epochs[1][0].metrics()


@pytest.mark.slow
@pytest.mark.parametrize("name", model_kinds.RANDOM)
def test_random_numbers_differ_by_seed_and_are_none_in_validation(recipe, splits, name):
    model, epochs = trained(name, recipe, splits)
    with build_seed(0):
        plain = KINDS[name]()
    plain.set_weights(initial_weights(plain, 0))
    other, _ = trained(name, recipe, splits, seed=1)
    assert loop.digest(other) != loop.digest(model)
    probabilities = np.asarray(model(splits[1].images, training=False))
    losses = -np.log(probabilities[np.arange(20), splits[1].labels])
    assert epochs[0][0].val_loss == pytest.approx(losses.mean(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["softmax_by_an_operation", "averaged_twins", "attention", "norms", "custom", "custom_noise", "random_layers"],
)
def test_mixed_precision_trains_what_float32_trains(recipe, splits, name):
    losses = [trained(name, recipe, splits, policy=policy)[1][0][0].loss for policy in ("float32", "mixed_bfloat16")]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
def test_models_are_loaded_in_a_fresh_process_as_they_were_saved(tmp_path, splits):
    images = splits[1].images
    for name in KINDS:
        model = build(name)
        check_trainable(model)
        keras.saving.save_model(model, tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model(images, training=False))
    np.save(tmp_path / "images.npy", images)
    code = textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import keras, model_kinds, numpy as np
        for name in {list(KINDS)}:
            outputs = keras.saving.load_model(name + ".keras")(np.load("images.npy"), training=False)
            np.testing.assert_allclose(outputs, np.load(name + ".npy"), atol=1e-6, err_msg=name)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
