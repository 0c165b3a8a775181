"""Brings the MLflow store in step with the records on disk: `python -m pipeline.sync`, the last stage."""

import sys

from pipeline import tracking
from pipeline.config import params
from pipeline.records import record, references
from pipeline.system import command


def main() -> None:
    """Syncs every run of params.yaml's list, and the published results."""
    tracking.check()
    if warning := tracking.file_store_warning():
        print(f"warning: {warning}", file=sys.stderr)
    loaded = [record.load(run) for run in params.read().runs]
    runs = [run for run in loaded if run.training.status != "running"]  # killed; it will resume, or be made anew
    published = references.names()
    if tracking.in_sync([*(run.digest() for run in runs), *map(tracking.reference_digest, published)]):
        return
    tracking.end_dead_runs()
    for name in published:
        tracking.sync_reference(name)
    for run in runs:
        tracking.sync_run(run)


if __name__ == "__main__":
    command.run(main)
