"""Record -> store: makes MLflow's run say what the record says, as often as it is called."""

import json
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.records.files import read_json
from pipeline.records.record import Record
from pipeline.system.command import PipelineError
from pipeline.tracking import address, comparison, embedded, experiment, model, registry, relocation, runs, store, tags

if TYPE_CHECKING:
    from mlflow.entities import Metric

SYNCED = "record_digest"  # the tag that is set last: the digest of the record that the run shows
TRAINING_METRICS = ("epoch_seconds", "images_per_second")
# Numbers that describe, not measure; and val_*, which the last epoch has already.
NOT_METRICS = {"evaluated_ms", "epochs", "test_images", "batch_size", "threads", "val_accuracy", "val_loss"}
MOST_METRICS = 1_000  # that MLflow takes in one call


def sync_run(record: Record, live: bool = False, with_model: bool = True) -> str | None:
    """Makes MLflow's run of this record say what the record says. Idempotent.

    Args:
        record: of a training run, running or ended.
        live: it is being trained now; otherwise a run that is made here is marked as replayed.
        with_model: log the trained model too, which takes TensorFlow and 7 s. Without it the run is not complete, and
            the next call completes it.

    Returns:
        The MLflow run's id, or None if the store failed.
    """
    return store.attempt(f"log {record.run}", lambda: _sync_run(record, live, with_model))


def is_copied(record: Record) -> bool:
    """Whether this is a copy of a record of the repository, in a workspace or an experiment: others log that one."""
    original = address.root() / record.folder / "training.json"
    if original.resolve() == (record.folder / "training.json").resolve():
        return False
    try:
        return read_json(original).get("record_id") == record.id
    except PipelineError:  # it is not there, or damaged
        return False


def end_dead_runs() -> None:
    """Ends as killed what says RUNNING in the store, but is not, of this machine's training runs."""
    store.attempt("end dead runs", runs.end_dead)


def in_sync(digests: Iterable[str], champions: Iterable[registry.Champion] | None = None) -> bool:
    """Whether the embedded store, made where it is, shows all these digests and has nothing RUNNING that is not.

    Args:
        digests: of records, published results and comparisons.
        champions: what the registry holds, and nothing else; None if it may hold anything.
    """
    database = address.database()
    if database is None or not database.exists():
        return False
    try:
        if relocation.is_moved(database):
            return False
        with embedded.reading(database) as connection:
            synced = connection.execute(
                "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid JOIN experiments "
                "ON experiments.experiment_id = runs.experiment_id WHERE tags.key IN (?, ?) "
                "AND runs.lifecycle_stage = 'active' AND ? IN (experiments.name, experiments.experiment_id)",
                (SYNCED, comparison.DIGEST, os.environ.get("MLFLOW_EXPERIMENT_ID") or experiment.name()),
            ).fetchall()
            running = connection.execute(
                "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid "
                "WHERE tags.key IN (?, ?) AND runs.status = 'RUNNING' AND runs.lifecycle_stage = 'active'",
                (runs.LOCATION, runs.RECORD_ID),
            ).fetchall()
            registered = registry.digests(connection)
    except sqlite3.Error:
        return False
    if champions is not None and registered != {champion.digest for champion in champions}:
        return False
    is_stale = any(runs.is_dead(value) or value.startswith(runs.SWEEP) for (value,) in running)
    return set(digests) <= {value for (value,) in synced} and not is_stale


def _sync_run(record: Record, live: bool, with_model: bool) -> str:
    from mlflow.entities import Metric, RunTag

    client, training = store.client(), record.training
    experiment_id = experiment.current_id()
    evaluation, speed = _numbers(record.evaluation), _numbers(record.speed)
    run = runs.find(experiment_id, record.id)
    if run and any(run.data.metrics.get(key, value) != value for key, value in evaluation.items()):
        # Evaluated anew with other results: MLflow would keep both values. Speed differs each time, and may.
        original = replace(record, folder=address.root() / record.folder)
        if is_copied(record) and run.data.tags.get(SYNCED) == original.digest():
            print(f"MLflow keeps the recorded results of {record.run}, not those of this evaluation", file=sys.stderr)
            return run.info.run_id
        client.delete_run(run.info.run_id)
        run = None
    if run is None:
        name = " ".join(map(str, filter(None, [record.run, training.environment.get("dvc_experiment")])))
        run = runs.make(experiment_id, training.started_ms, tags.of(record, live), name)
    run_id, digest = run.info.run_id, record.digest()
    if run.data.tags.get(SYNCED) == digest:
        return run_id
    if live and training.status == "running" and run.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")  # it resumes after it was ended
    if not training.end_reason and runs.END_REASON in run.data.tags:
        client.delete_tag(run_id, runs.END_REASON)
    if not run.inputs.dataset_inputs:
        _log_inputs(run_id, record)
    if after := training.resumed_after_epochs:
        resumed = {"resumed_after_epochs": ", ".join(map(str, after))}
        resumed |= {runs.LOCATION: runs.location(record.run)} if live else {}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in resumed.items()])
    _log_epochs(run_id, record)
    if totals := evaluation | speed:  # without steps: MLflow draws bars
        evaluated_ms = record.speed["evaluated_ms"]
        client.log_batch(run_id, metrics=[Metric(key, value, evaluated_ms, 0) for key, value in totals.items()])
    if training.status == "running":
        return run_id
    for path in record.files():
        client.log_artifact(run_id, str(path))
    is_complete = training.status != "finished" or not record.model_file.exists() or bool(run.outputs.model_outputs)
    if with_model and not is_complete:
        model.log(experiment_id, run_id, record, _params(record))
    client.set_terminated(run_id, training.status.upper(), training.ended_ms)
    ended = tags.at_end(record, run.data.tags)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in ended.items()])
    if with_model or is_complete:
        client.log_batch(run_id, tags=[RunTag(SYNCED, digest)])
    return run_id


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    """What is measured in a file of the record, by name."""
    return {
        key: float(value) for key, value in content.items() if isinstance(value, int | float) and key not in NOT_METRICS
    }


def _log_epochs(run_id: str, record: Record) -> None:
    """Logs the epochs that the store lacks; each whole or not at all, so that `loss` speaks for all its metrics."""
    from mlflow.entities import Metric

    client = store.client()
    there = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    logs = {log.epoch: log for log in record.training.epochs}
    epochs = []
    for row in record.history:
        step = int(row["epoch"])
        if step not in there and (log := logs.get(step)):
            metrics = {key: value for key, value in row.items() if key != "epoch"}
            metrics |= {key: getattr(log, key) for key in TRAINING_METRICS}
            epochs.append([Metric(key, value, log.ended_ms, step) for key, value in metrics.items()])
    for batch in _batches(epochs):
        client.log_batch(run_id, metrics=batch)


def _batches(epochs: list[list["Metric"]]) -> Iterator[list["Metric"]]:
    """As many whole epochs as fit into one call."""
    size = MOST_METRICS // max(map(len, epochs), default=1)
    for start in range(0, len(epochs), size):
        yield list(chain.from_iterable(epochs[start : start + size]))


def _params(record: Record) -> dict[str, str]:
    return {key: str(value) for key, value in record.training.params.items()}


def _log_inputs(run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    from pipeline.sources import ARCHIVE_URL

    client, training = store.client(), record.training
    client.log_batch(run_id, params=[Param(key, value) for key, value in _params(record).items()])
    if "data_hash" not in training.environment:  # it failed before its data was read
        return
    sizes = {key: training.params[key] for key in ("train_images", "val_images")}
    data = Dataset(
        name="cifar10",
        digest=training.environment["data_hash"],
        source_type="http",
        source=json.dumps({"url": ARCHIVE_URL}),
        profile=json.dumps(sizes),
    )
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
