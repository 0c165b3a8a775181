"""MLflow, the copy of the records that people look at. The only importer of mlflow.

address.py: which store. store.py: the connection. experiment.py, runs.py, tags.py: one run a record.
embedded.py, relocation.py: a store in a SQLite file; one that was moved with its folder.
sync.py, model.py, reference.py, comparison.py, summary.py: record -> store, idempotent.
live.py: following a training run.
registry.py, photo_classifier.py: the champions as registered models, which `mlflow models serve` serves.
sweep.py: the parent run of a sweep's trials.
project_run.py, pending.py: the store that `mlflow run` was called for; what it did not finish logging.
"""

from pipeline.tracking.address import check, file_store_warning, is_store, root, sqlite_path, without_secrets
from pipeline.tracking.comparison import comparison_digest, end_comparisons, sync_comparison
from pipeline.tracking.live import Live
from pipeline.tracking.project_run import describe, use_callers_store
from pipeline.tracking.reference import reference_digest, sync_reference
from pipeline.tracking.registry import Champion, registered_name, sync_champions
from pipeline.tracking.runs import is_dead, is_here, location
from pipeline.tracking.summary import page_digest, sync_page
from pipeline.tracking.sweep import begin_sweep, end_sweep
from pipeline.tracking.sync import end_dead_runs, in_sync, is_copied, sync_run

__all__ = [
    "Champion",
    "Live",
    "begin_sweep",
    "check",
    "comparison_digest",
    "describe",
    "end_comparisons",
    "end_dead_runs",
    "end_sweep",
    "file_store_warning",
    "in_sync",
    "is_copied",
    "is_dead",
    "is_here",
    "is_store",
    "location",
    "page_digest",
    "reference_digest",
    "registered_name",
    "root",
    "sqlite_path",
    "sync_champions",
    "sync_comparison",
    "sync_page",
    "sync_reference",
    "sync_run",
    "use_callers_store",
    "without_secrets",
]
