"""Published results, `reference/<name>.json`, their epochs where they were published; and published files."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.records.files import Content, read_json
from pipeline.records.record import Count, Fraction, Measure, read_history

REFERENCE = Path("reference")
EXPORTED = REFERENCE / "exported"


class _Published(Content):
    run: str
    model: str
    accuracy: Fraction
    accuracy_measured_on: str
    parameters: Count
    multiply_adds: Count
    epochs: Count
    training_seconds: Measure | None
    transcribed: str
    source: str
    notes: list[str]


class _File(Content):
    bytes: Count
    test_accuracy: Fraction
    arena_bytes: Count | None = None


class _PublishedFiles(Content):
    name: str
    parameters: Count
    multiply_adds: Count
    int8_accuracy_to_reach: Fraction
    float32: _File
    int8: _File
    source: str
    notes: list[str]


def load_reference(name: str) -> dict[str, Any]:
    """A published result; its epochs, if published, as rows under `history`."""
    published = read_json(REFERENCE / f"{name}.json", _Published)
    history = REFERENCE / f"{name}.csv"
    return published | {"history": read_history(history) if history.exists() else []}


def names() -> list[str]:
    """The names of the published results."""
    return sorted(path.stem for path in REFERENCE.glob("*.json"))


def exported_files() -> list[dict[str, Any]]:
    """Published models as files: no budget and no verdict counts them."""
    return [read_json(path, _PublishedFiles) for path in sorted(EXPORTED.glob("*.json"))]


def day_ms(day: str) -> int:
    """The start of a day, `YYYY-MM-DD` in UTC, in ms since 1970."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1_000)
