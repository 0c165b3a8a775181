"""A trained model at work: load it, predict with it, time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import models
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.training.cifar10 import IMAGE_SHAPE, NUM_CLASSES

if TYPE_CHECKING:
    import keras

PREDICTION_BATCH_SIZE = 500
THROUGHPUT_BATCH_SIZE = 256
LATENCY_CALLS, THROUGHPUT_CALLS = 200, 20  # timed, after a tenth as many to warm up


def load_model(path: Path, run: str, name: str = "") -> keras.Model:
    """The trained model of a run, uncompiled.

    Args:
        path: of the file.
        run: its name, for messages.
        name: of its model in pipeline/models, whose functions it may use.

    Raises:
        PipelineError: the file is missing or damaged, or its model does not map CIFAR-10 images to classes.
    """
    import keras

    try:
        models.register_layers(path, name)
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # of zipfile, json, h5py or Keras, whichever meets the damage first
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}" if path.exists() else "it is not there"
        raise PipelineError(f"{path} cannot be loaded ({reason:.200}): make it with `dvc repro train@{run}`") from None
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if shapes != ((None, *IMAGE_SHAPE), (None, NUM_CLASSES)):
        raise PipelineError(
            f"{path} is no model from images to classes: received the shapes {command.shown(shapes)}; "
            f"make it with `dvc repro train@{run}`"
        )
    return model


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Probabilities, float64 [n, 10], of images, uint8 [n, 32, 32, 3].

    Raises:
        PipelineError: the model outputs NaN or infinity.
    """
    predict_fn = _graph(model, None)
    starts = range(0, len(images), PREDICTION_BATCH_SIZE)
    probabilities = np.concatenate(
        [predict_fn(images[start : start + PREDICTION_BATCH_SIZE]).numpy() for start in starts]
    )
    is_finite = np.isfinite(probabilities).all(axis=1)
    if not is_finite.all():
        raise PipelineError(
            f"model {model.name!r} outputs NaN or infinity for {(~is_finite).sum()} of {len(images)} images: "
            "its training run diverged; lower the recipe's learning_rate and train it again"
        )
    return probabilities.astype(np.float64)


def measure_speed(model: keras.Model) -> dict[str, float]:
    """Median latency (ms, one image) and throughput (images/s), from pixels in memory to probabilities in memory."""
    one, many = _graph(model, 1), _graph(model, THROUGHPUT_BATCH_SIZE)
    throughput_seconds = _median_seconds(lambda images: many(images).numpy(), THROUGHPUT_BATCH_SIZE, THROUGHPUT_CALLS)
    return {
        "latency_ms": latency_ms(lambda images: one(images).numpy()),
        "throughput": round(THROUGHPUT_BATCH_SIZE / throughput_seconds, 1),
        "batch_size": THROUGHPUT_BATCH_SIZE,
    }


def latency_ms(predict: Callable[[np.ndarray], Any]) -> float:
    """Median time of one image, from pixels in memory to probabilities in memory."""
    return round(1_000 * _median_seconds(predict, 1, LATENCY_CALLS), 3)


def _median_seconds(predict: Callable[[np.ndarray], Any], batch_size: int, calls: int) -> float:
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    seconds = []
    for _ in range(calls + ceil(calls / 10)):
        began = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[-calls:]))


def _graph(model: keras.Model, batch_size: int | None) -> Any:
    """The model as one graph call. Not `model.predict`, which compiles with XLA: many times slower on a CPU."""
    import tensorflow as tf

    pixels = tf.TensorSpec((batch_size, *IMAGE_SHAPE), tf.uint8)
    return tf.function(lambda images: model(images, training=False), input_signature=[pixels])
