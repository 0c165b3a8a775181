"""The report on disk: written whole, and `report/comparison.json` read again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.records import files
from pipeline.system.command import PipelineError

REPORT = Path("report")
COMPARISON = REPORT / "comparison.json"
PAGE = REPORT / "index.html"

T = TypeVar("T")


def write(contents: dict[str, bytes]) -> None:
    """Writes the report's files: every one is written before the first takes an earlier one's place."""
    REPORT.mkdir(exist_ok=True)
    partials = {name: REPORT / f".{name.replace('/', '-')}.partial" for name in contents}
    try:
        for name, content in contents.items():
            partials[name].write_bytes(content)
        for name in contents:
            (REPORT / name).parent.mkdir(exist_ok=True)
        for name, partial in partials.items():
            os.replace(partial, REPORT / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


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
