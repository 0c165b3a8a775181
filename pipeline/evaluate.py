"""Evaluates one run: `python -m pipeline.evaluate RUN`. Besides export, the only reader of the test split."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import splits
from pipeline.config import params
from pipeline.evaluation import metrics, predictions
from pipeline.records import files, record
from pipeline.report import terminal
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.training.cifar10 import CLASS_NAMES

if TYPE_CHECKING:
    from pipeline.training.dataset import Split


def main() -> None:
    """Evaluates the run named on the command line and writes what it finds to `results/<run>/`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run of params.yaml")
    run = parser.parse_args().run
    config = params.read()
    config.check_run(run)
    log = record.load_finished(run)
    import_tensorflow()
    import tensorflow as tf

    from pipeline import tracking
    from pipeline.evaluation import geometry, inference
    from pipeline.report import run_plots
    from pipeline.system import device

    machine = device.resolve(config.train.device, "float32")
    if machine.name != "CPU":  # by default a GPU rounds products to 10 bits and varies in the last digits
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
    model = inference.load_model(log.model_file, run, log.training.model)
    test, (_, val) = splits.read_test(config.data), splits.read_train_val(config.data)
    layers = geometry.geometry(model)
    test_probabilities, val_probabilities = (inference.predict(model, split.images) for split in (test, val))
    flipped = inference.predict(model, test.images[:, :, ::-1])
    evaluation = {
        **measure(test, test_probabilities, flipped, val, val_probabilities, config.evaluate.calibration_bins),
        "parameters": model.count_params(),
        "multiply_adds": geometry.total_multiply_adds(layers),
        "model_bytes": log.model_file.stat().st_size,
        "epochs": len(log.history),
        "test_images": len(test.labels),
    }
    confusion = metrics.confusion_matrix(test_probabilities, test.labels)
    speed = {
        **inference.measure_speed(model),
        "device": machine.name,
        "processor": machine.processor,
        "threads": machine.threads,
        "evaluated_ms": record.now_ms(),
        "model_sha256": files.sha256(log.model_file),  # of the model that was evaluated
    }
    plots = {
        "curves.png": run_plots.learning_curves(run, log.history),
        "confusion_matrix.png": run_plots.confusion_matrix(run, confusion),
        "most_confident_errors.png": run_plots.most_confident_errors(
            run, test.images, test.labels, test_probabilities, config.evaluate.most_confident_errors
        ),
    }

    kept = predictions.encode(test_probabilities, test.labels, val_probabilities, val.labels)
    try:
        predictions.decode(kept).check(evaluation)
    except ValueError as error:
        raise PipelineError(f"{log.folder / predictions.FILE} is not written: {error}") from None

    for name, content in (plots | {predictions.FILE: kept}).items():
        files.write(log.folder / name, content)
    files.write_json(log.folder / "geometry.json", geometry.as_rows(layers))
    files.write_json(log.folder / "classes.json", by_class(confusion))
    files.write_json(log.folder / "speed.json", speed)
    files.write_json(log.folder / "evaluation.json", evaluation)  # last: it makes the evaluation complete
    terminal.show_evaluation(run, evaluation, speed, config.data.comparable)
    tracking.sync_run(record.load(run))


def measure(
    test: Split,
    test_probabilities: np.ndarray,
    flipped: np.ndarray,
    val: Split,
    val_probabilities: np.ndarray,
    bins: int,
) -> dict[str, float]:
    """Metrics, equal for equal weights: fractions 0..1, losses in nats."""
    values = {
        "test_loss": metrics.cross_entropy(test_probabilities, test.labels),
        "test_accuracy": metrics.accuracy(test_probabilities, test.labels),
        "test_accuracy_flip": metrics.accuracy((test_probabilities + flipped) / 2, test.labels),
        "val_loss": metrics.cross_entropy(val_probabilities, val.labels),
        "val_accuracy": metrics.accuracy(val_probabilities, val.labels),
        "calibration_error": metrics.calibration_error(test_probabilities, test.labels, bins),
    }
    return {name: round(value, 6) for name, value in values.items()}


def by_class(confusion: np.ndarray) -> dict[str, Any]:
    """Precision and recall of each class, and the confusion matrix with a row for each true class."""
    return {
        "precision": dict(zip(CLASS_NAMES, metrics.precision(confusion).round(6).tolist(), strict=True)),
        "recall": dict(zip(CLASS_NAMES, metrics.recall(confusion).round(6).tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


if __name__ == "__main__":
    command.run(main)
