"""What evaluate saw: the probabilities of each test and validation image, `results/<run>/probabilities.npz`.

They are float16, which keeps the file of a run below 0.3 MB, and small enough for git.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.evaluation import metrics
from pipeline.records import files
from pipeline.system.command import PipelineError

FILE = "probabilities.npz"


class Predictions(NamedTuple):
    """Probabilities float16 [n, 10] and labels uint8 [n], in the order of the split."""

    test_probabilities: np.ndarray
    test_labels: np.ndarray
    val_probabilities: np.ndarray
    val_labels: np.ndarray

    def check(self, evaluation: dict[str, float]) -> None:
        """Recomputes the accuracies.

        Raises:
            ValueError: they are not exactly those of evaluation.json.
        """
        for split, probabilities, labels in (("test", *self[:2]), ("val", *self[2:])):
            recomputed = round(metrics.accuracy(probabilities, labels), 6)
            if recomputed != evaluation[f"{split}_accuracy"]:
                raise ValueError(
                    f"its {split} accuracy is {recomputed}, that of evaluation.json {evaluation[f'{split}_accuracy']}"
                )


def to_float16(probabilities: np.ndarray) -> np.ndarray:
    """Rounds to float16 without changing the most probable class.

    Where rounding ties it with a class before it, it becomes the next larger float16.
    """
    rounded = probabilities.astype(np.float16)
    top = probabilities.argmax(axis=1)
    tied = np.flatnonzero(rounded.argmax(axis=1) != top)
    rounded[tied, top[tied]] = np.nextafter(rounded[tied, top[tied]], np.float16(2))
    return rounded


def encode(
    test_probabilities: np.ndarray, test_labels: np.ndarray, val_probabilities: np.ndarray, val_labels: np.ndarray
) -> bytes:
    """The content of the file, from probabilities float [n, 10] and labels int [n]. Equal arrays give equal bytes."""
    predictions = Predictions(
        to_float16(test_probabilities),
        test_labels.astype(np.uint8),
        to_float16(val_probabilities),
        val_labels.astype(np.uint8),
    )
    content = io.BytesIO()
    np.savez_compressed(content, **predictions._asdict())
    return content.getvalue()


def decode(content: bytes) -> Predictions:
    """The predictions in a file's content. Raises ValueError, of one line, if it holds none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > files.MAX_BYTES:
                raise ValueError("it unpacks to more than it may hold")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            predictions = Predictions(*(arrays[name] for name in Predictions._fields))
    except Exception as error:  # of zipfile, zlib or numpy, whichever meets the damage first
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split()):.200}") from None
    for probabilities, labels in (predictions[:2], predictions[2:]):
        if (probabilities.dtype, labels.dtype) != (np.float16, np.uint8) or labels.ndim != 1:
            raise ValueError(f"received arrays of {probabilities.dtype} and {labels.dtype}, not float16 and uint8")
        if probabilities.shape != (len(labels), 10) or not len(labels) or labels.max() > 9:
            raise ValueError(f"received probabilities {probabilities.shape} for labels {labels.shape}")
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN is neither
            raise ValueError("received probabilities outside 0..1")
    return predictions


def read(folder: Path, evaluation: dict[str, float]) -> Predictions:
    """The predictions of an evaluated run.

    Raises:
        PipelineError: the file is missing or damaged, or does not belong to this evaluation.
    """
    path = folder / FILE
    try:
        predictions = decode(files.read(path, files.MAX_BYTES))
        predictions.check(evaluation)
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{path} cannot be read ({error}); make it with `dvc repro evaluate@{folder.name}`"
        ) from None
    return predictions
