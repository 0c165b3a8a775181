"""The exported models that the page runs itself: each recipe's float32 file, if it is small."""

import base64
from typing import Any, NamedTuple

from pipeline.records import exports, files
from pipeline.system.command import PipelineError

MAX_BYTES = 500_000  # of a file
MAX_TOTAL = 2_200_000  # of all: base64 adds a third, and the page shall stay below 4 MB


class Model(NamedTuple):
    """A model in the page; `content` is base64."""

    recipe: str
    run: str
    content: str


def embedded(comparison: dict[str, Any]) -> tuple[list[Model], list[str]]:
    """The models, the best by validation accuracy first, and in words what is left out.

    Raises:
        PipelineError: a file is missing, or not the one that was evaluated.
    """
    recipes, models, left_out, total = comparison["recipes"], [], [], 0
    for recipe in sorted(comparison["exports"], key=lambda name: -recipes[name]["val_accuracy"]):
        run, size = comparison["exports"][recipe]["run"], comparison["exports"][recipe]["float32"]["bytes"]
        if size > MAX_BYTES:
            left_out.append(f"{recipe} ({size:,} bytes; limit {MAX_BYTES:,} per file)")
        elif total + size > MAX_TOTAL:
            left_out.append(f"{recipe} (limit {MAX_TOTAL:,} bytes in all)")
        else:
            total += size
            models.append(Model(recipe, run, _read(run, comparison["exports"][recipe]["float32"]["sha256"])))
    return models, left_out + [f"{recipe} (not exported)" for recipe in recipes if recipe not in comparison["exports"]]


def _read(run: str, sha256: str) -> str:
    path = exports.folder(run) / exports.FILES["float32"]
    try:
        content = files.read(path, MAX_BYTES)
        if files.sha256(path) != sha256:
            raise ValueError("it is not the file that export.json describes")
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path} cannot be used ({error}): {exports.fix(run)}") from None
    return base64.b64encode(content).decode()
