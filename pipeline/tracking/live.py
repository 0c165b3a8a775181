"""Following a training run: a thread keeps its MLflow run in sync while it trains."""

import queue
import threading
from functools import partial
from typing import Any

from pipeline.records.record import Record
from pipeline.tracking import address, runs, store
from pipeline.tracking.sync import sync_run

LAST_WAIT = 10.0  # seconds, for what is still being logged when a training run ends


class Live:
    """The MLflow run of a training run, kept in sync by a thread of its own.

    Training never waits for it: a store that is slow, or away, costs an epoch nothing. MLflow's own sampling of
    processor, memory and GPU goes into the same run, if it is computed on this machine.
    """

    def __init__(self, record: Record, texts: dict[str, str], system_metrics: bool = True, with_model: bool = True):
        """Begins with the record as it is now.

        Args:
            record: of the training run.
            texts: text files for the run, by name.
            system_metrics: whether it is computed on this machine.
            with_model: whether to log the trained model at its end.
        """
        self._first, self._texts, self._system_metrics, self._with_model = record, texts, system_metrics, with_model
        self._monitor: Any = None
        self._bug: Exception | None = None
        self._records: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.update(record)
        self._thread.start()

    def update(self, record: Record) -> None:
        """Takes note of what the record says now."""
        self._records.put(record.snapshot())

    def close(self, record: Record) -> None:
        """Logs the record's end; returns after seconds if the store does not answer. The sync stage completes it.

        Raises what the thread raised: a failing store raises nothing, so it is a bug.
        """
        self._records.put(None)
        self._thread.join(LAST_WAIT)
        if self._bug:
            raise self._bug
        if not self._thread.is_alive():
            sync_run(record, live=True, with_model=self._with_model)

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            self._bug = error

    def _follow(self) -> None:
        begun = False
        while record := self._latest():
            run_id = sync_run(record, live=True, with_model=self._with_model)
            if run_id and not begun:
                begun = store.attempt(f"begin {record.run}", partial(self._begin, run_id)) is not None
        if self._monitor:
            store.attempt("end system metrics", self._monitor.finish)

    def _begin(self, run_id: str) -> bool:
        runs.end_dead(self._first)
        for name, text in self._texts.items():
            store.client().log_text(run_id, text, name)
        self._monitor = _started_monitor(run_id) if self._system_metrics else None
        return True

    def _latest(self) -> Record | None:
        """The newest of what waits; None after `close`."""
        record = self._records.get()
        while record and not self._records.empty():
            newer = self._records.get()
            if newer is None:
                self._records.put(None)
                return record
            record = newer
        return record


def _started_monitor(run_id: str) -> Any:
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(address.store_uri())
    monitor = SystemMetricsMonitor(run_id, sampling_interval=10, samples_before_logging=1, resume_logging=True)
    monitor.start()
    return monitor
