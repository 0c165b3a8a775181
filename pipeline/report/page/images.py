"""The pictures in the page: images of the validation split. The test images stay unseen."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import params
from pipeline.evaluation.predictions import Predictions
from pipeline.records import record
from pipeline.splits import read_train_val
from pipeline.system.command import PipelineError
from pipeline.training.cifar10 import CLASS_NAMES, SIDE
from pipeline.training.dataset import Split

MAX_THUMBNAILS = 300
COLUMNS = 20  # of the sprite


def read_validation(config: params.Params) -> Split | None:
    """The validation split; none where the data was not fetched.

    Raises:
        PipelineError: the data is damaged.
    """
    if not record.DATA.exists():
        return None
    return read_train_val(config.data)[1]


def check(split: Split, predictions: dict[str, Predictions]) -> None:
    """Raises PipelineError if a run's validation probabilities are of other images than these."""
    for run, found in predictions.items():
        if not np.array_equal(split.labels, found.val_labels):
            raise PipelineError(
                f"run {run!r} was evaluated on other validation images than params.yaml's: "
                f"make it with `dvc repro evaluate@{run}`"
            )


def disagreements(predictions: dict[str, Predictions]) -> dict[str, Any]:
    """Validation images that one recipe classifies correctly and another does not.

    Args:
        predictions: by recipe, of one run each.

    Returns:
        `images`: how many there are. `counts[a][b]`: how many of them a gets right and b wrong. `thumbnails`: at most
        300 of these, the most confident of each pair first: index in the split, label, and per recipe the predicted
        class and its probability in percent.
    """
    labels = next(iter(predictions.values())).val_labels
    probabilities = {recipe: found.val_probabilities.astype(np.float64) for recipe, found in predictions.items()}
    predicted = {recipe: values.argmax(axis=1) for recipe, values in probabilities.items()}
    of_label = {recipe: values[np.arange(len(labels)), labels] for recipe, values in probabilities.items()}
    counts: dict[str, dict[str, int]] = {recipe: {} for recipe in predictions}
    queues = []
    for ours in predictions:
        for theirs in predictions:
            if ours != theirs:
                found = np.flatnonzero((predicted[ours] == labels) & (predicted[theirs] != labels))
                counts[ours][theirs] = len(found)
                queues.append(found[np.argsort(of_label[theirs][found] - of_label[ours][found], kind="stable")])
    chosen: dict[int, None] = {}
    for rank in range(max(map(len, queues), default=0)):
        for queue in queues:  # interleaved: each pair has as many
            if rank < len(queue) and len(chosen) < MAX_THUMBNAILS:
                chosen[int(queue[rank])] = None
    return {
        "images": len(labels),
        "counts": counts,
        "thumbnails": [
            {
                "index": index,
                "label": int(labels[index]),
                "predicted": {recipe: int(classes[index]) for recipe, classes in predicted.items()},
                "percent": {
                    recipe: round(100 * float(values[index].max())) for recipe, values in probabilities.items()
                },
            }
            for index in sorted(chosen)
        ],
    }


def sprite(images: np.ndarray, indices: list[int]) -> str:
    """Thumbnails in rows of 20, as the address of a JPEG.

    JPEG halves the bytes of PNG. Its blocks of 8 pixels, without subsampling, end where a thumbnail does.
    """
    rows = max(1, -(-len(indices) // COLUMNS))
    sheet = np.zeros((rows, SIDE, COLUMNS, SIDE, 3), np.uint8)
    for position, index in enumerate(indices):
        sheet[position // COLUMNS, :, position % COLUMNS] = images[index]
    pixels = sheet.reshape(rows * SIDE, COLUMNS * SIDE, 3)
    return _address(Image.fromarray(pixels), "JPEG", quality=90, subsampling=0)


def examples(split: Split) -> list[dict[str, str]]:
    """The first image of each class: its class, and the address of a PNG with its very pixels."""
    firsts = {label: int(np.flatnonzero(split.labels == label)[0]) for label in sorted(set(split.labels.tolist()))}
    return [
        {"class": CLASS_NAMES[label], "address": _address(Image.fromarray(split.images[index]), "PNG", optimize=True)}
        for label, index in firsts.items()
    ]


def _address(image: Image.Image, kind: str, **options: Any) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
