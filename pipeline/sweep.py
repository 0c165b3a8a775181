"""Searches for better values of a recipe on the validation split: `python -m pipeline.sweep NAME`.

The same command resumes what was interrupted: trials that ran are tried again, finished ones are kept.
"""

import argparse
import contextlib
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import engine, tracking, train
from pipeline.config import new_recipe, params, sweeps
from pipeline.engine.driver import Driver
from pipeline.records import checkpoint, record
from pipeline.report.trials import plots, table
from pipeline.system import command
from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.file_lock import BusyError
from pipeline.system.progress import RunsProgress
from pipeline.tracking import pending
from pipeline.workspace import reproduce

if TYPE_CHECKING:
    from optuna.trial import Trial

    from pipeline.engine.study import Study

SEEDS = 3  # that the advice names


def main() -> None:
    """Searches, and says what was found."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="a sweep of params.yaml")
    parser.add_argument("--write", action="store_true", help="add the best trial's recipe to params.yaml: NAME-best")
    engine.add_arguments(parser)
    arguments = parser.parse_args()
    config, name = params.read(), arguments.name
    if name not in config.sweeps:
        listed = ", ".join(config.sweeps) or "none"
        raise PipelineError(f"unknown sweep {command.shown(name)}; params.yaml lists: {listed}")
    base = config.recipes[config.sweeps[name].recipe]
    if arguments.write:
        new_recipe.check_new(Path("params.yaml"), f"{name}-best")
    tracking.check()
    from pipeline.engine.study import Study  # Optuna takes a second to import

    study = Study(config, name)
    sweep = study.sweep
    if arguments.engine == "local" and (status := reproduce(Path(), ["--quiet", "fetch"])):
        sys.exit(status)
    with study.one_line_errors():
        print(f"{study.name}: {len(study.trials())} of {command.counted(sweep.trials, 'trial')} begun", flush=True)
        tracking.begin_sweep(study.name, sweep.model_dump())
        try:
            with engine.opened(arguments.engine, arguments.parallel) as workers, RunsProgress() as progress:
                search(config, study, Driver(workers, progress, train.code_origin()), workers.parallel)
        finally:
            best, unfinished = study.best(), study.unfinished()
            value = best[0].value if best else None
            tracking.end_sweep(study.name, sweep.model_dump(), not unfinished, table(study), plots(study), value)
    print(table(study))
    if unfinished:
        raise PipelineError(
            f"{name}: {command.counted(unfinished, 'trial')} not ended. Other processes may be training them; if their "
            "machine is gone, call the same command again after 10 minutes"
        )
    if not best:
        raise PipelineError(f"{name}: no trial finished; its trials' reasons are above")
    recipe = base.model_dump() | best[0].params
    print(
        f"One seed does not tell the best trials apart: train {SEEDS} seeds of a recipe before you prefer it.\n"
        f"The best one's lines for params.yaml:\n\nrecipes:\n{new_recipe.lines(f'{name}-best', recipe)}runs:"
    )
    needs = params.needs(recipe["teacher"])
    for seed in range(SEEDS):
        print(f"  {name}-best-{seed}: {{recipe: {name}-best, model: {base.model}, seed: {seed}, needs: {needs}}}")
    if arguments.write:
        new_recipe.add(Path("params.yaml"), f"{name}-best", recipe)
        print(f"\nrecipes.{name}-best is in params.yaml; add its runs to train it")


def search(config: params.Params, study: "Study", driver: Driver, parallel: int) -> None:
    """Runs trials, so many at a time, until the sweep has as many as it wants."""
    folder = pending.WORKSPACES / f"sweep-{study.name}"
    folder.mkdir(parents=True, exist_ok=True)

    def run_trials() -> None:
        while trial := study.ask():
            run_trial(config, study, trial, driver)

    with contextlib.chdir(folder), study.heartbeat(), ThreadPoolExecutor(parallel) as threads:
        try:
            running = [threads.submit(run_trials) for _ in range(parallel)]
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException as error:
            driver.stop(train.reason_of(error))
            raise
        for path in sorted(record.RESULTS.glob("*/training.json")):  # what a store that was away lacks
            log = record.load(path.parent.name)
            if log.training.status != "running":  # else another process trains it here, or a machine took it over
                tracking.sync_run(log, live=True, with_model=False)


def run_trial(config: params.Params, study: "Study", trial: "Trial", driver: Driver) -> None:
    """Trains a trial and notes how it ended, unless another process here is training it.

    One that is stopped, or that ends for a reason which is not in its values, stays as it is, to be resumed.
    """
    from optuna.trial import TrialState

    from pipeline.engine.study import PrunedError

    run = study.run_of(trial)

    def on_epoch(metrics: dict[str, float]) -> None:
        study.report(trial, int(metrics["epoch"]), metrics["val_accuracy"])

    described = {"sweep": study.name, "trial": trial.number}
    ours = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(train.locked(run))
            study.begin(trial)
            ours = sweeps.trial_params(config, study.sweep, run, trial.params)
            log, _ = driver.train(run, ours, described, on_epoch, study.origin)
        except BusyError:
            study.leave(trial)
            return
        except PrunedError as error:
            end_record(run, "killed", train.reason_of(error))
            study.tell(trial, TrialState.PRUNED, reason=str(error))
        except RecipeError as error:
            if ours and not has_record(run):  # before a worker had begun; MLflow gets a child all the same
                record.begin(run, run, ours.flat(run), driver.environment | described)
            end_record(run, "failed", train.reason_of(error))
            study.tell(trial, TrialState.FAIL, reason=str(error))
        else:
            study.tell(trial, TrialState.COMPLETE, log.history[-1]["val_accuracy"])
        checkpoint.clear(record.CHECKPOINTS / run)


def has_record(run: str) -> bool:
    """Whether an attempt at a trial came as far as a record."""
    return (record.RESULTS / run / "training.json").exists()


def end_record(run: str, status: Literal["failed", "killed"], reason: str) -> None:
    """Lets the record say how a trial ended, even if an attempt at it was killed before it could."""
    if has_record(run):
        log = record.load(run)
        if (log.training.status, log.training.end_reason) != (status, reason):
            log.end(status, reason)


if __name__ == "__main__":
    command.run(main)
