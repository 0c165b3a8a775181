"""A sweep in MLflow: one parent run, of which the trials are children. It never says RUNNING: none runs it alone."""

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.records import record as records
from pipeline.system.command import shortened
from pipeline.tracking import experiment, runs, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CHARACTERS = 6_000  # of a param
PARENT = "mlflow.parentRunId"


def begin_sweep(study: str, params: Mapping[str, Any]) -> None:
    """Finds or makes the parent run of a study; training runs of this process become its children."""
    if run_id := store.attempt(f"begin {study}", lambda: _begin(study, params)):
        os.environ["MLFLOW_RUN_ID"] = run_id


def end_sweep(
    study: str,
    params: Mapping[str, Any],
    is_done: bool,
    table: str,
    plots: Mapping[str, "Figure | None"],
    best: float | None,
) -> None:
    """Logs what came of a study so far.

    Args:
        study: its name.
        params: as for `begin_sweep`, which may have failed.
        is_done: whether it has all its trials.
        table: the trials, as text.
        plots: by file name.
        best: the best val_accuracy, if there is one.
    """

    def end() -> None:
        client, run_id = store.client(), _parent(study, params)
        trials = partial(client.search_runs, [experiment.current_id()], f"tags.sweep = '{study}'")
        for run in store.pages(trials):
            if run.info.run_id != run_id and run.data.tags.get(PARENT) != run_id:  # the store was away when it began
                client.set_tag(run.info.run_id, PARENT, run_id)
        client.log_text(run_id, table, "trials.txt")
        for name, figure in plots.items():
            client.log_figure(run_id, figure, name)
        if best is not None:
            client.log_metric(run_id, "val_accuracy", best)
        if is_done:
            client.set_terminated(run_id, "FINISHED")
        runs.end_dead()  # trials that were killed here, and taken over by another machine

    store.attempt(f"end {study}", end)


def _begin(study: str, params: Mapping[str, Any]) -> str:
    run_id = _parent(study, params)
    store.client().update_run(run_id, "SCHEDULED")
    return run_id


def _parent(study: str, params: Mapping[str, Any]) -> str:
    """Finds or makes the parent run of a study."""
    from mlflow.entities import Param

    client, experiment_id = store.client(), experiment.current_id()
    found = runs.find(experiment_id, _id(study))
    if found is None:
        note = "A sweep: its children are its trials, compared by `val_accuracy` of the validation split alone."
        tags = {runs.RECORD_ID: _id(study), runs.NOTE: note, "sweep": study}
        if parent := os.environ.get("MLFLOW_RUN_ID"):  # we are inside `mlflow run`
            tags[PARENT] = parent
        found = runs.make(experiment_id, records.now_ms(), tags, f"sweep {study}")
        client.update_run(found.info.run_id, "SCHEDULED")
    values = {key: it if isinstance(it, str) else json.dumps(it) for key, it in params.items() if it is not None}
    missing = [Param(key, shortened(it, MOST_CHARACTERS)) for key, it in values.items() if key not in found.data.params]
    client.log_batch(found.info.run_id, params=missing)
    return found.info.run_id


def _id(study: str) -> str:
    return f"{runs.SWEEP}{study}"
