"""Trains all runs that need it, several at a time, here or on a cluster: `python -m pipeline.launch [RUN…]`.

Leaves the working files as `dvc repro` does. The same command resumes what was interrupted.
"""

import argparse
import json
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pipeline import engine, tracking, train
from pipeline.config import params
from pipeline.engine.driver import Driver
from pipeline.records import checkpoint, fingerprint, record
from pipeline.system import command, provenance
from pipeline.system.command import PipelineError
from pipeline.system.progress import RunsProgress
from pipeline.workspace import reproduce


def main() -> None:
    """Trains, evaluates, and ends with 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.launch", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of params.yaml, and their teachers; default: all")
    engine.add_arguments(parser)
    arguments = parser.parse_args()
    config = params.read()
    runs = with_teachers(config, arguments.runs or list(config.runs))
    tracking.check()
    if warning := provenance.read().warning():
        print(f"warning: {warning}", file=sys.stderr)
    if status := reproduce(Path(), ["--quiet", "fetch"]):
        sys.exit(status)
    stale = stale_runs(config, runs)
    print(f"{len(runs) - len(stale)} of {command.counted(len(runs), 'run')} up to date", flush=True)
    failures = {}
    if stale:
        with engine.opened(arguments.engine, arguments.parallel) as workers, RunsProgress() as progress:
            failures = train_all(config, stale, Driver(workers, progress, train.code_origin()), workers.parallel)
    for run, reason in failures.items():
        print(f"error: {reason if reason.startswith(run) else f'{run}: {reason}'}", file=sys.stderr)
    trained = [run for run in runs if run not in failures]
    all_of_them = not arguments.runs and not failures
    targets = [] if all_of_them else [f"evaluate@{run}" for run in trained]
    if trained and (status := reproduce(Path(), ["--keep-going", *targets])):
        sys.exit(status)
    if failures:
        raise PipelineError(
            f"{len(failures)} of {command.counted(len(runs), 'run')} failed: {', '.join(failures)}; "
            "the same command tries again"
        )


def with_teachers(config: params.Params, runs: list[str]) -> list[str]:
    """The runs, each once and after its teacher."""
    ordered: list[str] = []

    def add(run: str) -> None:
        if teacher := config.teacher_of(config.check_run(run)):
            add(teacher)
        if run not in ordered:
            ordered.append(run)

    for run in runs:
        add(run)
    return ordered


def stale_runs(config: params.Params, runs: list[str]) -> list[str]:
    """Those that `dvc repro` would train, or restore from its run cache; after a teacher, those that learn from it."""
    asked = [sys.executable, "-m", "dvc", "status", "--json", *(f"train@{run}" for run in runs)]
    answer = subprocess.run(asked, capture_output=True, text=True)
    if answer.returncode:
        raise PipelineError(f"`dvc status` failed: {command.shortened(answer.stderr)}")
    changed = json.loads(answer.stdout)
    stale: list[str] = []
    for run in runs:
        if f"train@{run}" in changed or config.teacher_of(run) in stale:
            stale.append(run)
    return stale


def train_all(config: params.Params, runs: list[str], driver: Driver, parallel: int) -> dict[str, str]:
    """Trains the runs, so many at a time, each after its teacher. Returns why those failed that did."""
    committing = threading.Lock()

    def train_one(run: str) -> None:
        with train.locked(run):
            trained = driver.train(run, config)
            with committing:
                commit(*trained)
            checkpoint.clear(record.CHECKPOINTS / run)

    waiting, failures = list(runs), dict[str, str]()
    running: dict[Future, str] = {}
    with ThreadPoolExecutor(parallel) as threads:
        try:
            while waiting or running:
                for run in list(waiting):
                    teacher = config.teacher_of(run)
                    if teacher in failures:
                        failures[run] = f"its teacher {teacher} failed"
                        waiting.remove(run)
                    elif teacher not in waiting and teacher not in running.values():
                        running[threads.submit(train_one, run)] = run
                        waiting.remove(run)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    if isinstance(error := future.exception(), PipelineError | OSError):
                        failures[run] = str(error)
                    else:
                        future.result()
        except BaseException as error:
            driver.stop(train.reason_of(error))
            threads.shutdown(cancel_futures=True)
            raise
    return failures


def commit(log: record.Record, mark: dict[str, Any]) -> None:
    """Lets dvc.lock say what `dvc repro` would have written after this training.

    Raises:
        PipelineError: it would be of other params or code than the run was trained with, or DVC fails.
    """
    trained = mark | log.training.params  # the fingerprint has what `auto` became
    config = params.read()
    now = config.weight_params(config.check_run(log.run)) | fingerprint.code_hashes(log.training.model)
    if changed := [key for key in now if now[key] != trained.get(key)]:
        raise PipelineError(
            f"{log.run}: {changed[0]} was changed while it was trained, so dvc.lock does not have it; "
            "restore the value, or train it again"
        )
    asked = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--quiet", "--force", f"train@{log.run}"]
    done = subprocess.run(asked, stderr=subprocess.PIPE, text=True, start_new_session=True)
    if done.returncode:
        reason = command.shortened(done.stderr)
        raise PipelineError(f"{log.run} is trained, but `dvc commit` failed: {reason}; the same command resumes it")


if __name__ == "__main__":
    command.run(main)
