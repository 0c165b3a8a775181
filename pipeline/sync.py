"""Brings the MLflow store in step with the records on disk: `python -m pipeline.sync`, the last stage."""

import sys

from pipeline import tracking
from pipeline.config import params
from pipeline.records import record, references
from pipeline.report import run_tags
from pipeline.report.recorded import COMPARISON, from_comparison
from pipeline.system import command
from pipeline.tracking import pending


def main() -> None:
    """Syncs the records here, and what `mlflow run` did not finish logging."""
    tracking.check()
    if warning := tracking.file_store_warning():
        print(f"warning: {warning}", file=sys.stderr)
    sync_records()
    pending.complete_all()


def sync_records() -> None:
    """Syncs every run of params.yaml's list, the published results, and what the comparison says of each run."""
    loaded = [record.load(run) for run in params.read().runs]
    runs = [run for run in loaded if run.training.status != "running"]  # killed; it will resume, or be made anew
    published = references.names()
    tags = from_comparison(run_tags.by_run) if COMPARISON.exists() else {}
    compared = {run.run: tags[run.run] for run in runs if run.run in tags}
    digests = [run.digest() for run in runs] + [tracking.reference_digest(name) for name in published]
    digests += [tracking.comparison_digest(run, compared[run.run]) for run in runs if run.run in compared]
    if tracking.in_sync(digests):
        return
    tracking.end_dead_runs()
    for name in published:
        tracking.sync_reference(name)
    for run in runs:
        tracking.sync_run(run)
        if run.run in compared:
            tracking.sync_comparison(run, compared[run.run])


if __name__ == "__main__":
    command.run(main)
