"""Hands training runs to an engine and records what comes back, as `pipeline.train` does for its own."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import tracking, train
from pipeline.config.params import Params
from pipeline.engine import (
    Begun,
    Engine,
    EngineError,
    Epoch,
    Failed,
    Finished,
    Job,
    Message,
    NodeRefusedError,
    Resume,
    Steps,
    Worker,
    WorkerDiedError,
)
from pipeline.records import files, record
from pipeline.system import command
from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.progress import RunsProgress

MOST_DEATHS = 3  # of workers, one after the other, that finish no epoch of a run


class NeverBeganError(WorkerDiedError):
    """A worker ended before its run could begin: hardly because of the recipe's values."""


class Driver:
    """Trains runs by an engine's workers. `train` may be called by several threads at a time.

    Args:
        engine: where the workers are.
        progress: what a person sees.
        environment: what each record says besides what its worker says.
    """

    def __init__(self, engine: Engine, progress: RunsProgress, environment: dict[str, Any]):
        self._engine, self._progress, self.environment = engine, progress, environment
        self._folder = Path.cwd()  # where a teacher's results are
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._stopped = ""

    def train(
        self,
        run: str,
        config: Params,
        environment: dict[str, Any] | None = None,
        on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
        expected: Mapping[str, str] | None = None,
    ) -> tuple[record.Record, dict[str, Any]]:
        """Trains a run to its end, resuming after its last finished epoch, with as many workers as it takes.

        The last checkpoint stays: as long as it does, the run resumes after its last epoch.

        Args:
            run: its name; `train.locked` keeps others out meanwhile.
            config: the whole of params.yaml.
            environment: what this record says besides.
            on_epoch: is called with the metrics of each new epoch, when it is recorded. What it raises ends the run.
            expected: what the worker's code and teacher must be, by their names in fingerprint and record.

        Returns:
            The record, and the fingerprint of what the weights depend on.

        Raises:
            EngineError: there can be no worker, or none that begins.
            PipelineError: as `train.train`, or workers die again and again.
            StoppedError: `stop` was called.
        """
        deaths, has_begun = 0, False
        while True:
            epochs: list[dict[str, float]] = []
            try:
                return self._train_once(run, config, environment or {}, [epochs.append, on_epoch], expected or {})
            except WorkerDiedError as error:
                if epochs or isinstance(error, NodeRefusedError):
                    deaths = 0
                deaths += not isinstance(error, NodeRefusedError)
                has_begun |= not isinstance(error, NeverBeganError | NodeRefusedError)
                if deaths >= MOST_DEATHS and not has_begun:  # mostly: the code is broken
                    raise EngineError(
                        f"{run}: {deaths} workers died before they began; the last one: {error}"
                    ) from None
                if deaths >= MOST_DEATHS:
                    raise RecipeError(  # mostly: no memory left for its batches
                        f"{run}: {deaths} workers died without finishing an epoch; the last one: {error}"
                    ) from None
                print(f"warning: {run}: {error}; another worker resumes it", file=sys.stderr)

    def stop(self, reason: str) -> None:
        """Ends all workers; what trains now is recorded as killed for this reason."""
        with self._lock:
            self._stopped = reason
            workers = list(self._workers)
        self._engine.stop()
        for worker in workers:
            worker.end()

    def _train_once(
        self,
        run: str,
        config: Params,
        environment: dict[str, Any],
        on_epoch: list[Callable[[dict[str, float]], None]],
        expected: Mapping[str, str],
    ) -> tuple[record.Record, dict[str, Any]]:
        """The record and the fingerprint, by one worker. Raises WorkerDiedError, and as `train`."""
        worker = self._start(Job(run, config, self._teacher_files(config.teacher_of(run))))
        try:
            try:
                begun = self._receive(worker)
            except NodeRefusedError:
                raise
            except WorkerDiedError as error:
                raise NeverBeganError(error) from None
            if not isinstance(begun, Begun):
                raise _failure(run, begun)
            mark, environment = begun.fingerprint, self.environment | begun.environment | environment
            known = mark | environment
            if changed := [key for key, value in expected.items() if known.get(key) != value]:
                raise PipelineError(f"{run}: {changed[0]} has changed since the start; call the same command again")
            log, found = train.begin_or_resume(run, config, mark, environment)
            # evaluate logs the model: TensorFlow, in this process, would cost each run some seconds.
            live = tracking.Live(log, {"geometry.json": begun.layers}, worker.is_here, with_model=False)
            row = self._progress.row(
                run, config.recipe_of(run).epochs, begun.title, worker.location, found.epoch if found else 0
            )
            record_epoch = train.EpochRecorder(log, mark, row, live)
            with train.recorded_end(log, live), row:
                worker.send(Resume(found.epoch, found.values) if found else Resume(0, []))
                while not isinstance(message := self._receive(worker), Finished):
                    if isinstance(message, Steps):
                        row.steps(*message)
                    elif isinstance(message, Epoch):
                        record_epoch(*message)
                        for call in on_epoch:
                            call(message.metrics)
                    else:
                        raise _failure(run, message)
                files.write(log.model_file, message.model)
            return log, mark
        finally:
            with self._lock:
                self._workers.discard(worker)
            worker.end()

    def _teacher_files(self, teacher: str | None) -> dict[str, bytes]:
        """What `train.read_teacher` reads, by path."""
        names = [record.RESULTS / teacher / name for name in (*record.TRAINING_FILES, "model.keras")] if teacher else []
        return {str(name): (self._folder / name).read_bytes() for name in names}

    def _start(self, job: Job) -> Worker:
        try:
            worker = self._engine.start(job)
        except EngineError:
            if self._stopped:
                raise train.StoppedError(self._stopped) from None
            raise
        with self._lock:
            self._workers.add(worker)
            stopped = self._stopped
        if stopped:
            worker.end()
        return worker

    def _receive(self, worker: Worker) -> Message:
        try:
            return worker.receive()
        except WorkerDiedError:
            if self._stopped:
                raise train.StoppedError(self._stopped) from None
            raise


def _failure(run: str, message: Message) -> PipelineError:
    if not isinstance(message, Failed):
        return PipelineError(f"{run}: its worker said {command.shown(message)}")
    if message.trace and os.environ.get(command.TRACE):
        print(message.trace, file=sys.stderr)
    return RecipeError(message.reason) if message.by_recipe else PipelineError(message.reason)
