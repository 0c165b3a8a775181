"""What export left of a run, `results/<run>/export/`: its files, what they are worth, and how fast they are."""

from pathlib import Path
from typing import Any

from pipeline.records import files, record
from pipeline.records.files import Content
from pipeline.system.command import PipelineError

FILES = {"float32": "model.tflite", "int8": "model.int8.tflite"}


class _File(Content):
    sha256: str


class _Export(Content):
    """`export.json`, as far as every reader needs it."""

    model_sha256: str
    float32: _File
    int8: _File | None


class _Evaluated(_File):
    bytes: record.Count
    val_accuracy: record.Fraction
    test_accuracy: record.Fraction
    test_agreement: record.Fraction
    arena_bytes: record.Count | None = None


class _Compared(_Export):
    """The same, as a comparison needs it."""

    float32: _Evaluated
    int8: _Evaluated | None
    without_int8: str
    violations: list[str]


class _Speed(Content):
    latency_ms: dict[str, record.Measure]
    threads: record.Count
    processor: str
    processor_model: str = ""


def folder(run: str) -> Path:
    """Where a run's exported files lie."""
    return record.RESULTS / run / "export"


def fix(run: str) -> str:
    """How the exported files of a run are made, as a clause."""
    return f"make it with `python -m pipeline.export {run}`"


def read(run: str, kind: type[_Export] = _Export) -> dict[str, Any]:
    """A run's `export.json`.

    Raises:
        PipelineError: it is missing or damaged, or of another model than the one that is there.
    """
    path = folder(run) / "export.json"
    if not path.exists():
        raise PipelineError(f"{path} is not here: {fix(run)}")
    export = files.read_json(path, kind)
    model = record.RESULTS / run / "model.keras"
    if model.exists() and files.sha256(model) != export["model_sha256"]:
        raise PipelineError(f"{path} is of an earlier model: {fix(run)}")
    return export


def evaluated(run: str) -> dict[str, Any]:
    """What a comparison says of a run's files, by kind (`int8` is None if there is none); `latency_ms` among it.

    Raises:
        PipelineError: as `read`.
    """
    export, speed = read(run, _Compared), files.read_json(folder(run) / "speed.json", _Speed)
    if missing := [kind for kind in FILES if export[kind] and kind not in speed["latency_ms"]]:
        raise PipelineError(f"{folder(run)}/speed.json lacks the latency of {missing[0]}: {fix(run)}")
    kinds = {kind: export[kind] and {**export[kind], "latency_ms": speed["latency_ms"][kind]} for kind in FILES}
    of_all = {"without_int8": export["without_int8"], "violations": export["violations"]}
    return {"run": run, **kinds, **of_all, "threads": speed["threads"], "processor": record.processor(speed)}
