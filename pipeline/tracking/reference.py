"""Published results as MLflow runs, beside ours."""

import hashlib
import json

from pipeline.records import references
from pipeline.tracking import experiment, runs, store
from pipeline.tracking.sync import SYNCED


def sync_reference(name: str) -> str | None:
    """Makes MLflow hold a published result, with its epochs if they were published. Idempotent."""
    return store.attempt(f"log {name}", lambda: _sync(name))


def reference_digest(name: str) -> str:
    """Changes whenever the published result's files do."""
    content = json.dumps(references.load_reference(name), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _sync(name: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    client, published = store.client(), references.load_reference(name)
    experiment_id = experiment.current_id()
    digest = reference_digest(name)
    # Published without times: the day of transcription stands in for them.
    started_ms = references.day_ms(published["transcribed"])
    seconds = published["training_seconds"] or 0
    tags = {
        runs.RECORD_ID: name,
        "model": published["model"],
        "published": "true",
        runs.NOTE: " ".join([published["source"], *published["notes"]]),
    }
    run = runs.find(experiment_id, name) or runs.make(experiment_id, started_ms, tags, name)
    run_id = run.info.run_id
    if run.data.tags.get(SYNCED) == digest:
        return run_id
    ended_ms = started_ms + int(1_000 * seconds)
    last = published["epochs"]
    metrics = [
        Metric(key, value, started_ms + int(1_000 * seconds * row["epoch"] / last), int(row["epoch"]))
        for row in published["history"]
        for key, value in row.items()
        if key != "epoch"
    ]
    totals = {key: published[key] for key in ("parameters", "multiply_adds")}
    totals["test_accuracy"] = published["accuracy"]
    metrics += [Metric(key, value, ended_ms, 0) for key, value in totals.items()]
    if not published["history"]:
        metrics.append(Metric("val_accuracy", published["accuracy"], ended_ms, last))
    client.log_batch(run_id, metrics=metrics, params=[Param("model", published["model"]), Param("epochs", str(last))])
    client.set_terminated(run_id, "FINISHED", ended_ms)
    client.log_batch(run_id, tags=[RunTag(SYNCED, digest)])
    return run_id
