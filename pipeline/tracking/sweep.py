"""A sweep in MLflow: one parent run, of which the trials are children. It never says RUNNING: none runs it alone."""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.records import record as records
from pipeline.tracking import experiment, runs, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def begin_sweep(study: str, params: Mapping[str, Any]) -> None:
    """Finds or makes the parent run of a study; training runs of this process become its children."""
    if run_id := store.attempt(f"begin {study}", lambda: _begin(study, params)):
        os.environ["MLFLOW_RUN_ID"] = run_id


def end_sweep(study: str, is_done: bool, table: str, plots: Mapping[str, "Figure | None"], best: float | None) -> None:
    """Logs what came of a study so far.

    Args:
        study: its name.
        is_done: whether it has all its trials.
        table: the trials, as text.
        plots: by file name.
        best: the best val_accuracy, if there is one.
    """
    store.attempt(f"end {study}", lambda: _end(study, is_done, table, plots, best))


def _begin(study: str, params: Mapping[str, Any]) -> str:
    from mlflow.entities import Param

    client, experiment_id = store.client(), experiment.current_id()
    found = runs.find(experiment_id, _id(study))
    if found is None:
        note = "A sweep: its children are its trials, compared by `val_accuracy` of the validation split alone."
        tags = {runs.RECORD_ID: _id(study), runs.NOTE: note, "sweep": study}
        if parent := os.environ.get("MLFLOW_RUN_ID"):  # we are inside `mlflow run`
            tags["mlflow.parentRunId"] = parent
        found = runs.make(experiment_id, records.now_ms(), tags, f"sweep {study}")
        values = {key: it if isinstance(it, str) else json.dumps(it) for key, it in params.items() if it is not None}
        client.log_batch(found.info.run_id, params=[Param(key, value) for key, value in values.items()])
    client.update_run(found.info.run_id, "SCHEDULED")
    return found.info.run_id


def _end(study: str, is_done: bool, table: str, plots: Mapping[str, "Figure | None"], best: float | None) -> None:
    client = store.client()
    found = runs.find(experiment.current_id(), _id(study))
    if found is None:
        return
    run_id = found.info.run_id
    client.log_text(run_id, table, "trials.txt")
    for name, figure in plots.items():
        client.log_figure(run_id, figure, name)
    if best is not None:
        client.log_metric(run_id, "val_accuracy", best)
    if is_done:
        client.set_terminated(run_id, "FINISHED")
    runs.end_dead()  # trials that were killed here, and taken over by another machine


def _id(study: str) -> str:
    return f"sweep {study}"
