"""What converted files are worth beside the Keras model that they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.evaluation import metrics
from pipeline.training.cifar10 import CLASS_NAMES

if TYPE_CHECKING:
    import keras

    from pipeline.config import params
    from pipeline.training.dataset import Split


class Runtime(Protocol):
    """A loaded file."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [n, 10], of images, uint8 [n, 32, 32, 3]."""


def evaluate_files(
    model: keras.Model, runtimes: dict[str, Runtime], split: Split, name: str
) -> dict[str, dict[str, Any]]:
    """Metrics of the Keras model and of its files on a split.

    Of a file: accuracy, loss, the fraction of images to which it gives the model's class, the largest difference of a
    probability, and by how much each class's recall is lower than the model's.
    """
    from pipeline.evaluation import inference

    results: dict[str, dict[str, Any]] = {}
    expected = inference.predict(model, split.images)
    recall = metrics.recall(metrics.confusion_matrix(expected, split.labels))
    for kind, runtime in {"keras": None, **runtimes}.items():
        received = runtime.predict(split.images) if runtime else expected
        results[kind] = {
            f"{name}_accuracy": round(metrics.accuracy(received, split.labels), 6),
            f"{name}_loss": round(metrics.cross_entropy(received, split.labels), 6),
        }
        if runtime:
            lost = recall - metrics.recall(metrics.confusion_matrix(received, split.labels))
            results[kind] |= {
                f"{name}_agreement": round(metrics.accuracy(received, expected.argmax(axis=1)), 6),
                f"{name}_largest_difference": round(float(np.abs(received - expected).max()), 6),
                f"{name}_recall_lost": dict(zip(CLASS_NAMES, lost.round(6).tolist(), strict=True)),
            }
    return results


def violations(config: params.Export, run: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """Each limit of params.yaml that the int8 file does not keep."""
    if "int8" not in results:
        return []
    found = []
    lost = round(results["float32"]["val_accuracy"] - results["int8"]["val_accuracy"], 6)
    if lost > config.max_int8_loss:
        found.append(
            f"int8 loses {100 * lost:.2f} points of validation accuracy; max_int8_loss is "
            f"{100 * config.max_int8_loss:g} points"
        )
    limit = config.runs[run].max_bytes if run in config.runs else None
    if limit and results["int8"]["bytes"] > limit:
        found.append(f"the int8 file has {results['int8']['bytes']:,} bytes; max_bytes is {limit:,}")
    return found
