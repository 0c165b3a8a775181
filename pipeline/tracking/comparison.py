"""What the comparison says of a run, as tags of its MLflow run."""

import hashlib
import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.records.record import Record
from pipeline.tracking import address, experiment, runs, store

PREFIX = "compare."
FOLDER = "comparison_folder"  # the tag: whose comparison it is, the repository's or a copy's
DIGEST = "comparison_digest"  # the tag that is set last


def sync_comparison(record: Record, tags: dict[str, str]) -> None:
    """Makes the run's tags that begin with `compare.` these, by their names without that. Idempotent."""
    store.attempt(f"tag {record.run}", lambda: _sync(record, tags))


def end_comparisons(compared: list[Record]) -> None:
    """Takes back what this folder's comparison said of earlier records of its runs."""
    store.attempt("take back tags", lambda: _end({record.run: record.id for record in compared}))


def comparison_digest(record: Record, tags: dict[str, str]) -> str:
    """Changes whenever the tags do."""
    return hashlib.sha256(json.dumps([record.id, tags], sort_keys=True).encode()).hexdigest()[:32]


def _sync(record: Record, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    client, digest = store.client(), comparison_digest(record, tags)
    run = runs.find(experiment.current_id(), record.id)
    if run is None or run.data.tags.get(DIGEST) == digest:
        return
    wanted = {PREFIX + name: value for name, value in tags.items()}
    _delete_tags(run, {name for name in run.data.tags if name.startswith(PREFIX)} - set(wanted))
    wanted[FOLDER] = _folder()
    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in wanted.items()])
    client.log_batch(run.info.run_id, tags=[RunTag(DIGEST, digest)])


def _folder() -> str:
    """Whose comparison it is; in a store that others may use too, by machine and path."""
    return address.folder() if address.database() else f"{socket.gethostname()}:{Path.cwd()}"


def _end(compared: dict[str, str]) -> None:
    search = partial(store.client().search_runs, [experiment.current_id()], f"tags.{DIGEST} LIKE '%'")
    for run in list(store.pages(search)):
        folder, name, record_id = (run.data.tags.get(key) for key in (FOLDER, "run", runs.RECORD_ID))
        if (folder or ".") == _folder() and name in compared and record_id != compared[name]:
            _delete_tags(run, {name for name in run.data.tags if name.startswith(PREFIX) or name in (FOLDER, DIGEST)})


def _delete_tags(run: Any, names: set[str]) -> None:
    for name in names:
        store.client().delete_tag(run.info.run_id, name)
