"""A sweep's trials, in a database of Optuna's own: several processes and machines may work on one sweep.

A trial that runs says where; if nobody runs there any more it waits to be tried again, under its number.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline import tracking
from pipeline.config.params import Dimension, Params, Sweep
from pipeline.records import fingerprint, record
from pipeline.system.command import PipelineError, shortened

VARIABLE = "OPTUNA_STORAGE"
DATABASE = "optuna.db"  # beside MLflow's: both would use one table for their versions
BEAT_SECONDS, DEAD_SECONDS = 30.0, 600.0
LOCATION, SEEN, REASON = "location", "seen_ms", "reason"  # of a trial
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


class Study:
    """The trials of one sweep, of these params and this code: a change of either begins another study.

    Args:
        config: the whole of params.yaml.
        name: the sweep's.

    Raises:
        PipelineError: the database cannot be opened.
    """

    def __init__(self, config: Params, name: str):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep = config.sweeps[name]
        self.name = f"{name}-{_digest(config, self.sweep)}"
        self._distributions = {key: _distribution(it) for key, it in self.sweep.space.items()}
        self._asking, self._running = threading.Lock(), dict[int, Trial]()
        address = os.environ.get(VARIABLE) or f"sqlite:///{tracking.root() / DATABASE}"
        if address == tracking.store_uri():
            raise PipelineError(f"{VARIABLE}: received MLflow's own store; name another database")
        try:
            self._study = optuna.create_study(
                storage=_storage(address),
                study_name=self.name,
                sampler=_sampler(self.sweep),
                pruner=_pruner(self.sweep, self.sweep.epochs or config.recipes[self.sweep.recipe].epochs),
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # of SQLAlchemy, a driver or Alembic
            reason = shortened(tracking.without_secrets(str(error)))
            raise PipelineError(
                f"{VARIABLE}: {tracking.without_secrets(address)} cannot be opened: {reason}; unset it, or correct it"
            ) from None

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
        with self._asking:
            self._release_dead()
            if not self.trials(TrialState.WAITING) and len(self.trials()) >= self.sweep.trials:
                return None
            trial = self._study.ask(self._distributions)
            trial.set_user_attr(SEEN, record.now_ms())
            self._running[trial.number] = trial
            return trial

    def run_of(self, trial: Trial | FrozenTrial) -> str:
        """The name of a trial's run."""
        return f"{self.name.rpartition('-')[0]}-trial-{trial.number}"

    def begin(self, trial: Trial) -> None:
        """Notes where a trial runs, once its run's folder is locked there: until then nobody could see that it does."""
        trial.set_user_attr(LOCATION, tracking.location(self.run_of(trial)))

    def tell(self, trial: Trial, state: TrialState, value: float | None = None, reason: str = "") -> None:
        """Notes how a trial ended, before its run's folder is unlocked: a trial that runs nowhere is tried again."""
        if reason:
            trial.set_user_attr(REASON, reason)
        self._study.tell(trial, value, state)
        with self._asking:
            del self._running[trial.number]

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Meanwhile, other machines see that this one's trials are alive."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                for trial in list(self._running.values()):
                    with contextlib.suppress(OptunaError):  # it has just ended, or the database is away
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
            if trial.number not in self._running and (tracking.is_dead(where) or silent_ms > 1000 * DEAD_SECONDS):
                self._study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def _digest(config: Params, sweep: Sweep) -> str:
    """Changes with all that makes a trial's result what it is; not with the number of trials."""
    recipe = config.recipes[sweep.recipe]
    parts = [
        sweep.model_dump(exclude={"trials"}),
        recipe.model_dump(),
        config.data.model_dump(),
        config.train.model_dump(),
    ]
    parts += [fingerprint.code_hashes(recipe.model)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _storage(address: str) -> optuna.storages.RDBStorage:
    # A database that another process writes to is waited for.
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(address, engine_kwargs=arguments)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    kind = IntDistribution if isinstance(dimension.low, int) and isinstance(dimension.high, int) else FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def _sampler(sweep: Sweep) -> optuna.samplers.BaseSampler:
    """Without a seed: each process draws its own values, a resumed one new ones."""
    if sweep.sampler == "grid":
        return _GridSampler({key: it.choices for key, it in sweep.space.items()})
    return SAMPLERS[sweep.sampler]()


def _pruner(sweep: Sweep, epochs: int) -> optuna.pruners.BasePruner:
    if sweep.pruner == "median":
        return optuna.pruners.MedianPruner()
    if sweep.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(max_resource=epochs)
    return optuna.pruners.NopPruner()


class _GridSampler(optuna.samplers.GridSampler):
    """Leaves the end to `ask`: at its last point Optuna's would stop a loop that is not there."""

    def after_trial(self, *_: object) -> None:
        """Does nothing."""
