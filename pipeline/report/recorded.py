"""The recorded comparison, `report/comparison.json`, read again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.records import files
from pipeline.system.command import PipelineError

REPORT = Path("report")
COMPARISON = REPORT / "comparison.json"

T = TypeVar("T")


def from_comparison(use: Callable[[dict[str, Any]], T]) -> T:
    """What a function makes of the recorded comparison.

    Raises:
        PipelineError: the file cannot be read, or does not hold what the function needs.
    """
    comparison = files.read_json(COMPARISON)
    try:
        return use(comparison)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PipelineError(
            f"{COMPARISON} does not hold a comparison ({type(error).__name__}: {error}); "
            "make it with `dvc repro compare`"
        ) from None
