"""What the comparison says of a run, as tags of its MLflow run."""

import hashlib
import json

from pipeline.records.record import Record
from pipeline.tracking import experiment, runs, store

PREFIX = "compare."
DIGEST = "comparison_digest"  # the tag that is set last


def sync_comparison(record: Record, tags: dict[str, str]) -> None:
    """Makes the run's tags that begin with `compare.` these, by their names without that. Idempotent."""
    store.attempt(f"tag {record.run}", lambda: _sync(record, tags))


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
    for name in run.data.tags:
        if name.startswith(PREFIX) and name not in wanted:
            client.delete_tag(run.info.run_id, name)
    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in wanted.items()])
    client.log_batch(run.info.run_id, tags=[RunTag(DIGEST, digest)])
