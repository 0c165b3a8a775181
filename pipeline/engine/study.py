"""A sweep's trials, in a database of Optuna's own: several processes and machines may work on one sweep.

A trial that runs says where; if nobody runs there any more it waits to be tried again, under its number.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline import tracking
from pipeline.config.params import NONE, Dimension, Params, Recipe, Sweep
from pipeline.engine import EngineError
from pipeline.records import fingerprint, record
from pipeline.system.command import PipelineError, shortened
from pipeline.system.file_lock import LOCK, BusyError
from pipeline.tracking import pending
from pipeline.train import StoppedError

VARIABLE = "OPTUNA_STORAGE"
DATABASE = "optuna.db"  # beside MLflow's: both would use one table for their versions
BEAT_SECONDS, DEAD_SECONDS = 30.0, 600.0
BEGIN_SECONDS = 30.0  # more than there are between `ask` and `begin`
LOCATION, SEEN, PRUNED, REASON = "location", "seen_ms", "pruned", "reason"  # of a trial
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
DATABASE_ERRORS = (OptunaError, SQLAlchemyError)
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


class PrunedError(StoppedError):
    """Ends a trial that lags behind the others."""


class Study:
    """The trials of one sweep, of these params, this code and this teacher: a change of any begins another study.

    Args:
        config: the whole of params.yaml.
        name: the sweep's.

    Attributes:
        origin: digests of the code that changes weights; the record of the teacher, if there is one.

    Raises:
        PipelineError: the database cannot be opened, or the teacher is not trained.
    """

    def __init__(self, config: Params, name: str):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep = config.sweeps[name]
        self.origin = _origin(config.recipes[self.sweep.recipe])
        self.name = f"{name}-{_digest(config, self.sweep, self.origin)}"
        self._distributions = {key: _distribution(key, it) for key, it in self.sweep.space.items()}
        self._epochs = self.sweep.epochs or config.recipes[self.sweep.recipe].epochs
        self._asking, self._running = threading.Lock(), dict[int, Trial]()
        given = os.environ.get(VARIABLE)
        address = given or f"sqlite:///{tracking.root() / DATABASE}"
        self._named = f"{VARIABLE}: {tracking.without_secrets(address)}" if given else str(tracking.root() / DATABASE)
        file = tracking.sqlite_path(address)
        self._is_file = file is not None  # whose users are all on this machine
        if tracking.is_store(address):
            raise PipelineError(f"{VARIABLE}: received MLflow's own store; name another database")
        pending.WORKSPACES.mkdir(exist_ok=True)
        # One process at a time, of this machine: of two that make the tables one would fail, and on SQLite Optuna would
        # hand a waiting trial to two.
        self._lock = FileLock(f"{file}.lock" if file and file.parent.is_dir() else pending.WORKSPACES / LOCK)
        try:
            with self._lock:
                self._study = optuna.create_study(
                    storage=_storage(address),
                    study_name=self.name,
                    sampler=_sampler(self.sweep),
                    pruner=_pruner(self.sweep, self._epochs),
                    direction="maximize",
                    load_if_exists=True,
                )
        except Exception as error:  # of SQLAlchemy, a driver or Alembic
            reason = shortened(tracking.without_secrets(str(error)))
            is_damaged = "not a database" in reason or "malformed" in reason
            anew = "move it away to begin anew" if is_damaged else "the same command tries again"
            fix = "unset it, or correct it" if given else anew
            raise PipelineError(f"{self._named} cannot be opened: {reason}; {fix}") from None

    @property
    def optuna(self) -> optuna.Study:
        """As Optuna's plots take it."""
        return self._study

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states, or all."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def best(self) -> list[FrozenTrial]:
        """The finished trials, the best first."""
        return sorted(self.trials(TrialState.COMPLETE), key=lambda trial: -(trial.value or 0.0))

    def unfinished(self) -> int:
        """How many trials have not ended yet, or not begun."""
        return max(self.sweep.trials, len(self.trials())) - len(self.trials(*ENDED))

    def ask(self) -> Trial | None:
        """The next trial, to be run in the working directory; None if there are as many as the sweep wants."""
        with self._asking, self._lock:
            self._release_dead()
            if not self.trials(TrialState.WAITING) and len(self.trials()) >= self.sweep.trials:
                return None
            trial = self._study.ask(self._distributions)
            trial.set_user_attr(SEEN, record.now_ms())
            self._running.setdefault(trial.number, trial)  # another machine released it, a thread here still trains it
            return trial

    def run_of(self, trial: Trial | FrozenTrial) -> str:
        """The name of a trial's run."""
        return f"{self.name.rpartition('-')[0]}-trial-{trial.number}"

    def begin(self, trial: Trial) -> None:
        """Notes where a trial runs, once its run's folder is locked there: until then nobody could see that it does.

        Raises:
            BusyError: another process was faster, and has ended it.
            PrunedError: it was to end, and killed before `tell`.
        """
        try:
            trial.set_user_attr(LOCATION, tracking.location(self.run_of(trial)))
        except UpdateFinishedTrialError as error:
            raise BusyError(str(error)) from None
        if reason := trial.user_attrs.get(PRUNED):
            raise PrunedError(reason)

    def leave(self, trial: Trial) -> None:
        """Leaves a trial to the process that trains it here, or has."""
        with contextlib.suppress(UpdateFinishedTrialError):  # it has just ended
            trial.set_user_attr(LOCATION, tracking.location(self.run_of(trial)))
        with self._asking:
            if self._running.get(trial.number) is trial:
                del self._running[trial.number]

    def report(self, trial: Trial, epoch: int, val_accuracy: float) -> None:
        """Notes an epoch, unless an earlier attempt at this trial came as far. Raises PrunedError if it is to end."""
        if epoch <= (self._study._storage.get_trial(trial._trial_id).last_step or 0):
            return
        try:
            trial.report(val_accuracy, epoch)
        except UpdateFinishedTrialError:
            raise PrunedError("another process took it over, and has ended it") from None
        if epoch < self._epochs and trial.should_prune():
            reason = f"pruned after epoch {epoch} by the {self.sweep.pruner} pruner"
            trial.set_user_attr(PRUNED, reason)  # once asked, hyperband takes it for promoted
            raise PrunedError(reason)

    def tell(self, trial: Trial, state: TrialState, value: float | None = None, reason: str = "") -> None:
        """Notes how a trial ended, before its run's folder is unlocked: a trial that runs nowhere is tried again."""
        try:
            if reason:
                trial.set_user_attr(REASON, reason)
            self._study.tell(trial, value, state)
        except (UpdateFinishedTrialError, ValueError):
            print(f"warning: {self.run_of(trial)} was taken over by another process meanwhile", file=sys.stderr)
        with self._asking:
            self._running.pop(trial.number, None)

    @contextlib.contextmanager
    def one_line_errors(self) -> Iterator[None]:
        """Turns what a database says that is away, or was, into an EngineError."""
        try:
            yield
        except DATABASE_ERRORS as error:
            reason = shortened(tracking.without_secrets(str(error)))
            raise EngineError(f"{self._named}: {reason}; the same command resumes it") from None

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Meanwhile, other machines see that this one's trials are alive."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                for trial in list(self._running.values()):
                    with contextlib.suppress(*DATABASE_ERRORS):  # it has just ended, or the database is away
                        trial.set_user_attr(SEEN, record.now_ms())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _release_dead(self) -> None:
        """Lets trials wait again whose process is gone: at once on this machine, after minutes on another."""
        for trial in self.trials(TrialState.RUNNING):
            where = trial.user_attrs.get(LOCATION, "")
            began_ms = trial.datetime_start.timestamp() * 1000 if trial.datetime_start else 0
            silent_ms = record.now_ms() - trial.user_attrs.get(SEEN, began_ms)
            # Killed before `begin`, it has no location: of a file it can only have been a process here.
            most_seconds = BEGIN_SECONDS if self._is_file and not where else DEAD_SECONDS
            is_silent = not tracking.is_here(where) and silent_ms > 1000 * most_seconds
            if trial.number in self._running or not (tracking.is_dead(where) or is_silent):
                continue
            storage = self._study._storage
            now = storage.get_trial(trial._trial_id)
            if now.state != TrialState.RUNNING or now.user_attrs.get(LOCATION, "") != where:
                continue  # another process was faster
            with contextlib.suppress(UpdateFinishedTrialError):  # it has just ended
                storage.set_trial_user_attr(trial._trial_id, LOCATION, "")  # whoever takes it has not locked it yet
                storage.set_trial_user_attr(trial._trial_id, SEEN, record.now_ms())
                storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def _origin(recipe: Recipe) -> dict[str, str]:
    teacher = {} if recipe.teacher == NONE else {"teacher_record_id": record.load(recipe.teacher).id}
    return fingerprint.code_hashes(recipe.model) | teacher


def _digest(config: Params, sweep: Sweep, origin: dict[str, str]) -> str:
    """Changes with all that makes a trial's result what it is; not with the number of trials."""
    sections = (config.recipes[sweep.recipe], config.data, config.train)
    parts = [sweep.model_dump(exclude={"trials"}), *(section.model_dump() for section in sections), origin]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _storage(address: str) -> optuna.storages.RDBStorage:
    # A file that another process writes to is waited for; a server may have closed what nobody used for minutes.
    is_file = address.startswith("sqlite")
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if is_file else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(address, engine_kwargs=arguments)


def _distribution(key: str, dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    kind = IntDistribution if Recipe.model_fields[key].annotation is int else FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def _sampler(sweep: Sweep) -> optuna.samplers.BaseSampler:
    """Without a seed: each process draws its own values, a resumed one new ones."""
    if sweep.sampler == "grid":
        return _GridSampler({key: it.choices for key, it in sweep.space.items()})
    return SAMPLERS[sweep.sampler]()


def _pruner(sweep: Sweep, epochs: int) -> optuna.pruners.BasePruner:
    if sweep.pruner == "median":
        # While the rate is high validation lags, most with the rates that are best in the end: not in the first half.
        return optuna.pruners.MedianPruner(n_warmup_steps=epochs // 2 + 1)
    if sweep.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=epochs)
    return optuna.pruners.NopPruner()


class _GridSampler(optuna.samplers.GridSampler):
    """Leaves the end to `ask`: at its last point Optuna's would stop a loop that is not there."""

    def after_trial(self, *_: object) -> None:
        """Does nothing."""
