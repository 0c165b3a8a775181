"""The comparison's page as an artifact of one run of the experiment, which the experiment's description links."""

import hashlib
from pathlib import Path

from pipeline.records import record
from pipeline.tracking import address, experiment, pending, runs, store
from pipeline.tracking.sync import SYNCED

RUN = "comparison"
FOLDER = "folder"  # the tag: whose page it is, the repository's or a workspace's
NOTE = "All runs beside each other: the page under *Artifacts*, `{page}`."


def sync_page(page: Path) -> str | None:
    """Makes the summary run hold the page, and the experiment's description link it. Idempotent.

    A workspace's page does not take the place of the repository's.

    Returns:
        The MLflow run's id, or None if the store failed.
    """
    return store.attempt(f"log {page}", lambda: _sync(page))


def page_digest(page: Path) -> str:
    """Changes whenever the page does."""
    return hashlib.sha256(page.read_bytes()).hexdigest()[:32]


def _sync(page: Path) -> str:
    from mlflow.entities import RunTag

    client, experiment_id, digest = store.client(), experiment.current_id(), page_digest(page)
    folder = address.folder()
    tags = {runs.RECORD_ID: RUN, runs.NOTE: NOTE.format(page=page.name), FOLDER: folder}
    run = runs.find(experiment_id, RUN) or runs.make(experiment_id, record.now_ms(), tags, RUN)
    run_id = run.info.run_id
    is_of_others = pending.WORKSPACES.name in Path(folder).parts and run.data.tags.get(FOLDER, folder) != folder
    if run.data.tags.get(SYNCED) == digest or is_of_others:
        return run_id
    client.log_artifact(run_id, str(page))
    client.set_terminated(run_id, "FINISHED")
    experiment.link_page(experiment_id, run_id, page.name)
    client.log_batch(run_id, tags=[RunTag(FOLDER, folder), RunTag(SYNCED, digest)])
    return run_id
