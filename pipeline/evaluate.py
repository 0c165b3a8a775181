"""Evaluates one run: `python -m pipeline.evaluate RUN`. The only reader of the test split.

The metrics are functions of probabilities, float [n, 10], and labels, int [n]. Whoever imports them gets no TensorFlow.
"""

from __future__ import annotations

import argparse
import io
import time
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import params
from pipeline.records import record
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.training.cifar10 import CLASS_NAMES, IMAGE_SHAPE

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

    from pipeline.training.dataset import Split

PREDICTION_BATCH = 500  # images
THROUGHPUT_BATCH = 256  # images
LATENCY_CALLS, THROUGHPUT_CALLS = 200, 20  # timed, after a tenth as many that are not
SPLITS = (("training", "", "#0072B2", "--"), ("validation", "val_", "#D55E00", "-"))  # colours: Okabe and Ito


def main() -> None:
    """Evaluates the run named on the command line and adds what it finds to `results/<run>/`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run of params.yaml")
    run = parser.parse_args().run
    settings = params.read()
    settings.check_run(run)
    log = record.load(run)
    if (status := log.training["status"]) != "finished":  # a model file beside it is that of an earlier training
        raise PipelineError(f"the training of {run} is {status}, not finished: train it with `dvc repro train@{run}`")

    import_tensorflow()
    import tensorflow as tf

    from pipeline import tracking
    from pipeline.evaluation import geometry
    from pipeline.system import device

    machine = device.resolve(settings.train.device, "float32")
    if machine.name != "CPU":  # a GPU left to itself rounds products to 10 bits and gives other last digits each time
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
    model = load_model(log.model_file, run)
    test, val = read_splits(settings.data)
    layers = geometry.geometry(model)
    figures, classes, probabilities = evaluate(model, test, val, settings.evaluate.calibration_bins)
    evaluation = {
        **figures,
        "parameters": model.count_params(),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "model_bytes": log.model_file.stat().st_size,
        "epochs": len(log.history),
        "test_images": len(test.labels),
    }
    speed = {
        **measure_speed(model),
        "device": machine.name,
        "processor": machine.processor,
        "threads": machine.threads,
        "evaluated_ms": record.now_ms(),
        "model_sha256": record.sha256(log.model_file),  # what was evaluated
    }
    pictures = {
        "curves.png": draw_curves(run, log.history),
        "confusion_matrix.png": draw_confusion(run, np.array(classes["confusion"])),
        "mistakes.png": draw_mistakes(run, test, probabilities, settings.evaluate.mistakes),
    }

    for name, picture in pictures.items():
        record.write(log.folder / name, picture)
    record.write_json(log.folder / "geometry.json", geometry.as_rows(layers))
    record.write_json(log.folder / "classes.json", classes)
    record.write_json(log.folder / "speed.json", speed)
    record.write_json(log.folder / "evaluation.json", evaluation)
    show(run, evaluation, speed, settings.data.comparable)
    tracking.mirror(record.load(run))


def load_model(path: Path, run: str) -> keras.Model:
    """The trained model, from stock Keras layers alone.

    Raises:
        PipelineError: the file is missing, damaged, or holds no such model.
    """
    import keras

    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # of zipfile, json, h5py or Keras, whichever comes upon the damage first
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}" if path.exists() else "it is not there"
        raise PipelineError(f"{path} cannot be loaded ({reason:.200}): make it with `dvc repro train@{run}`") from None
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if shapes != ((None, *IMAGE_SHAPE), (None, len(CLASS_NAMES))):
        raise PipelineError(
            f"{path} is no model from images to classes: received the shapes {command.shown(shapes)}; "
            f"make it with `dvc repro train@{run}`"
        )
    return model


def read_splits(data: params.Data) -> tuple[Split, Split]:
    """The test split and the hold-out.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    from pipeline.training import dataset

    try:
        record.check_data()
        test = dataset.read_test(record.DATA, data.test_images, data.split_seed)
        _, val = dataset.read_train_val(record.DATA, data.train_images, data.val_images, data.split_seed)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{error}; `dvc repro fetch` fetches the data") from None
    return test, val


def evaluate(
    model: keras.Model, test: Split, val: Split, calibration_bins: int
) -> tuple[dict[str, float], dict[str, Any], np.ndarray]:
    """What the model is worth: equal for equal weights.

    Returns:
        Figures by name: fractions 0..1, `test_loss` in nats; those of the classes: `precision`, `recall`, `confusion`
        with a row for each true class; and the probabilities on the test images, float64 [n, 10].

    Raises:
        PipelineError: the model outputs NaN or infinity.
    """
    chances = predict(model, test.images)
    mirrored = predict(model, test.images[:, :, ::-1])
    confusion = confusion_matrix(chances, test.labels)
    figures = {
        "test_loss": cross_entropy(chances, test.labels),
        "test_accuracy": accuracy(chances, test.labels),
        "test_accuracy_flip": accuracy((chances + mirrored) / 2, test.labels),
        "val_accuracy": accuracy(predict(model, val.images), val.labels),
        "calibration_error": calibration_error(chances, test.labels, calibration_bins),
    }
    classes = {
        "precision": dict(zip(CLASS_NAMES, precision(confusion).round(6).tolist(), strict=True)),
        "recall": dict(zip(CLASS_NAMES, recall(confusion).round(6).tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }
    return {name: round(value, 6) for name, value in figures.items()}, classes, chances


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Probabilities, float64 [n, 10], of images, uint8 [n, 32, 32, 3].

    Raises:
        PipelineError: one is NaN or infinite.
    """
    answer = _graph(model, None)
    starts = range(0, len(images), PREDICTION_BATCH)
    chances = np.concatenate([answer(images[start : start + PREDICTION_BATCH]).numpy() for start in starts])
    if not np.isfinite(chances).all():
        spoilt = len(chances) - np.isfinite(chances).all(axis=1).sum()
        raise PipelineError(
            f"model {model.name!r} outputs NaN or infinity for {spoilt} of {len(chances)} images: "
            "its training diverged; lower the recipe's learning_rate and train it again"
        )
    return chances.astype(np.float64)


def measure_speed(model: keras.Model) -> dict[str, float]:
    """Medians over many calls, from pixels in memory to probabilities in memory: ms for one image, images/s."""
    return {
        "latency_ms": round(1_000 * _median_seconds(model, 1, LATENCY_CALLS), 3),
        "throughput": round(THROUGHPUT_BATCH / _median_seconds(model, THROUGHPUT_BATCH, THROUGHPUT_CALLS), 1),
        "batch_size": THROUGHPUT_BATCH,
    }


def _median_seconds(model: keras.Model, batch_size: int, calls: int) -> float:
    answer = _graph(model, batch_size)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    seconds = []
    for _ in range(calls + ceil(calls / 10)):
        began = time.perf_counter()
        answer(images).numpy()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[-calls:]))


def _graph(model: keras.Model, batch_size: int | None) -> Any:
    """The model as one graph call. Not `model.predict`, which compiles with XLA: many times slower on a CPU."""
    import tensorflow as tf

    pixels = tf.TensorSpec((batch_size, *IMAGE_SHAPE), tf.uint8)
    return tf.function(lambda images: model(images, training=False), input_signature=[pixels])


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most probable class, of several the first, is the true one."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the true class's probability, in nats; below 1e-7 it counts as 1e-7, as in Keras."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean())


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of images by true class (row) and most probable class (column), int64 [10, 10]."""
    cells = labels * len(CLASS_NAMES) + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=len(CLASS_NAMES) ** 2).reshape(len(CLASS_NAMES), -1)


def precision(confusion: np.ndarray) -> np.ndarray:
    """Of the images given to a class, the share that belongs to it, [10]; 0 for a class that is given none."""
    return np.diag(confusion) / np.maximum(confusion.sum(axis=0), 1)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Of the images of a class, the share given to it, [10]; 0 for a class that has none."""
    return np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Expected calibration error, 0..1: how far confidence is from accuracy, on average.

    Confidence is the probability of the most probable class. In each bin |accuracy - mean confidence| is taken, and
    weighted by the bin's share of the images.

    Args:
        probabilities: float [n, 10].
        labels: int [n].
        bins: of equal width, open on the left: (0, 1/bins], …, (1 - 1/bins, 1].

    Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015; in this
        form Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, eq. 3.
    """
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(bin_of, weights=is_right - confidence)).sum() / len(labels))


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Places of at most `count` images with a wrong answer, the most confident first, int [m]."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]


def draw_curves(run: str, history: list[dict[str, float]]) -> bytes:
    """Loss and accuracy by epoch, as PNG."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9, 4, run)
    epochs = [row["epoch"] for row in history]
    marker = "." if len(epochs) < 20 else ""  # of a single epoch a line shows nothing
    for place, (key, unit, scale, form) in enumerate((("loss", "nats", 1, ".3f"), ("accuracy", "%", 100, ".2f")), 1):
        axes = figure.add_subplot(1, 2, place, xlabel="epoch", ylabel=f"{key}, {unit}")
        for split, prefix, colour, line in SPLITS:
            values = [scale * row[prefix + key] for row in history]
            axes.plot(epochs, values, line, color=colour, marker=marker, label=f"{split}: {values[-1]:{form}}")
        axes.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.legend(frameon=False)
    return _png(figure)


def draw_confusion(run: str, confusion: np.ndarray) -> bytes:
    """The confusion matrix, as PNG: numbers are images, colours shares of the true class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = _figure(8, 7, f"{run}\n{np.trace(confusion):,} of {confusion.sum():,} test images are right")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    # By the square root: what is off the diagonal would be white otherwise.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), images in np.ndenumerate(confusion):
        colour = "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, f"{images:,}" if images else "", ha="center", va="center", color=colour, fontsize=9)
    bar = figure.colorbar(picture, label="share of the true class", format=PercentFormatter(1, symbol=" %"), shrink=0.8)
    bar.outline.set_visible(False)
    return _png(figure)


def draw_mistakes(run: str, test: Split, probabilities: np.ndarray, count: int) -> bytes:
    """A gallery of the most confident mistakes, row by row, as PNG."""
    mistakes = worst_mistakes(probabilities, test.labels, count)
    columns = max(5, ceil(sqrt(len(mistakes))))
    rows = ceil(len(mistakes) / columns)
    what = "most confident mistakes: true class → predicted class, confidence" if rows else "no mistakes"
    figure = _figure(1.7 * columns, 2 * rows + 0.6, f"{run}, {len(test.labels):,} test images\n{what}")
    for place, image in enumerate(mistakes, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(test.images[image], interpolation="nearest")
        axes.set_axis_off()
        chances = probabilities[image]
        names = f"{CLASS_NAMES[test.labels[image]]} → {CLASS_NAMES[chances.argmax()]}"
        axes.set_title(f"{names}\n{100 * chances.max():.2f} %", fontsize=8)
    return _png(figure)


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure  # not pyplot, which costs 0.4 s more and keeps state

    figure = Figure((width, height), dpi=150, layout="constrained")
    figure.suptitle(title)
    return figure


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, metadata={"Software": None})  # by default it names matplotlib's version
    return content.getvalue()


def show(run: str, evaluation: dict[str, Any], speed: dict[str, Any], comparable: bool) -> None:
    """Prints the result in three lines."""
    from rich.console import Console

    percent = {key: f"{100 * value:.2f} %" for key, value in evaluation.items() if "accuracy" in key}
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{run}: {percent['test_accuracy']}[/] of {evaluation['test_images']:,} test images are right, "
        f"{percent['test_accuracy_flip']} with their mirror images; validation {percent['val_accuracy']}"
    )
    console.print(
        f"test loss {evaluation['test_loss']:.4f} nats, calibration error {evaluation['calibration_error']:.4f}; "
        f"{evaluation['parameters']:,} parameters, {evaluation['multiply_adds']:,} multiply-adds; "
        f"{speed['latency_ms']} ms for one image, {speed['throughput']:,.0f} images/s ({speed['device']})"
    )
    if not comparable:
        console.print(record.NOT_COMPARABLE)


if __name__ == "__main__":
    command.run(main)
