"""What a run's tags and its note say, which the pages of MLflow show first."""

import os

from pipeline.records import record as records
from pipeline.records.record import Record
from pipeline.system.command import counted
from pipeline.tracking import runs

COMPARABLE = "comparable"  # false: of a part of the images
REPLAYED = {"replayed": "true"}  # made from its record, after it was trained


def of(record: Record, live: bool) -> dict[str, str]:
    """The tags of a run that is made now."""
    training, environment = record.training, record.training.environment
    tags = {runs.RECORD_ID: record.id, "run": record.run, runs.NOTE: note(record)}
    tags |= {key: str(getattr(training, key)) for key in ("recipe", "model", "seed")}
    tags |= {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in environment.items()}
    tags |= {"mlflow.source.git.commit": str(environment["commit"]), "mlflow.source.name": f"train@{record.run}"}
    tags |= {"mlflow.source.type": "LOCAL"}
    if not record.comparable:
        tags[COMPARABLE] = "false"
    if not live:
        return tags | REPLAYED
    tags[runs.LOCATION] = runs.location(record.run)
    if parent := os.environ.get("MLFLOW_RUN_ID"):  # we are inside `mlflow run`
        tags["mlflow.parentRunId"] = parent
    return tags


def at_end(record: Record, present: dict[str, str]) -> dict[str, str]:
    """The tags that a run gets when it has ended, besides those present; a note that somebody changed stays."""
    tags = {runs.END_REASON: record.training.end_reason} if record.training.end_reason else {}
    if not record.comparable or COMPARABLE in present:  # the test images may be others than when training began
        tags[COMPARABLE] = str(record.comparable).lower()
    if present.get(runs.NOTE, "").startswith(_beginning(record)):
        tags[runs.NOTE] = note(record)
    return tags


def note(record: Record) -> str:
    """What the run is and, when it has ended, what came of it."""
    training, evaluation = record.training, record.evaluation
    lines = [_beginning(record)]
    if not record.comparable:
        lines.append(f"{records.NOT_COMPARABLE}.".capitalize())
    if training.status in ("failed", "killed"):
        lines.append(runs.end_note(training.status, training.end_reason))
    if "test_accuracy" in evaluation:
        lines.append(f"Test accuracy {100 * evaluation['test_accuracy']:.2f} %.")
    return "\n\n".join(lines)


def _beginning(record: Record) -> str:
    params = record.training.params
    size = f"{counted(int(params['epochs']), 'epoch')} of {counted(int(params['train_images']), 'image')}"
    return f"Recipe `{record.training.recipe}`, model `{record.training.model}`, seed {record.training.seed}: {size}."
