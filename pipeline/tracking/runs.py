"""MLflow's runs, found by the record that they show; one run a record, whoever makes it."""

import random
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.records import record as records
from pipeline.records.record import Record
from pipeline.system.file_lock import is_locked
from pipeline.tracking import store

RECORD_ID = "record_id"  # the tag that a run is found by
NOTE = "mlflow.note.content"  # the tag that MLflow shows as the description
END_REASON = "end_reason"  # the tag that says why a run was killed or failed
GONE = "its process is gone, and did not say why"
SWEEP = "sweep "  # begins the RECORD_ID of a sweep's parent run
LOCATION = "location"  # the tag that says where a run is being trained


def find(experiment: str, record_id: str) -> Any:
    """The run of this record, or None."""
    return next(iter(_of_record(experiment, record_id)), None)


def make(experiment: str, started_ms: int, tags: dict[str, str], name: str) -> Any:
    """Makes a record's run; one only, however many processes make it at the same time.

    A process that sees another's run beside its own deletes its own and, some time later, takes what is there. Of two
    runs the later one's maker sees both: so two never stay.
    """
    while True:
        made = store.client().create_run(experiment, started_ms, tags, name).info.run_id
        found = _of_record(experiment, tags[RECORD_ID])
        if [run.info.run_id for run in found] == [made]:
            return found[0]
        store.client().delete_run(made)
        time.sleep(random.uniform(0.1, 1))
        if run := find(experiment, tags[RECORD_ID]):
            return run


def _of_record(experiment: str, record_id: str) -> list:
    return store.client().search_runs([experiment], f"tags.{RECORD_ID} = '{record_id}'", max_results=2)


def end_dead(training: Record | None = None) -> None:
    """Ends as killed what says RUNNING in the store, but is not, of this machine's training runs.

    The parent run of a sweep says so only if its maker was killed just then: it is SCHEDULED.

    Args:
        training: of this process, which holds the lock of its folder: nothing else runs there.
    """
    client = store.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        where = run.data.tags.get(LOCATION, "")
        if training and run.data.tags.get(RECORD_ID) == training.id:
            continue
        if run.data.tags.get(RECORD_ID, "").startswith(SWEEP):
            client.update_run(run.info.run_id, "SCHEDULED")
        elif is_dead(where) or (training and where == location(training.run)):
            client.set_tag(run.info.run_id, END_REASON, GONE)
            note = run.data.tags.get(NOTE, "")
            client.set_tag(run.info.run_id, NOTE, f"{note}\n\n{end_note('killed', GONE)}".strip())
            client.set_terminated(run.info.run_id, "KILLED")


def end_note(status: str, reason: str) -> str:
    """A sentence on how a run ended."""
    return f"{status.capitalize()}: {reason or 'for no recorded reason'}."


def location(run: str) -> str:
    """Where a training run runs: a machine and the folder that it locks. In the store only, not in the record."""
    return f"{socket.gethostname()}:{Path.cwd() / records.CHECKPOINTS / run}"


def is_dead(where: str) -> bool:
    """Whether a location is of this machine and nobody trains there."""
    return is_here(where) and not is_locked(Path(where.partition(":")[2]))


def is_here(where: str) -> bool:
    """Whether a location is of this machine."""
    return where.partition(":")[0] == socket.gethostname()
