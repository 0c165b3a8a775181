"""A sweep tries what it may, on validation images alone, and goes on after whatever ended it."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import optuna
import pytest
import yaml
from conftest import ROOT
from factories import change_training, write_run
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from pipeline import sweep, tracking, train
from pipeline.config import new_recipe, params, sweeps
from pipeline.engine import EngineError
from pipeline.engine.study import Study
from pipeline.records import record
from pipeline.report import trials
from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import pending, store

SPACE = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "flip": {"choices": ["none", "random"]}}
RATE = {"recipe": "custom", "trials": 6, "epochs": 3, "sampler": "random", "pruner": "none", "space": SPACE}


class TestParams:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"recipe": "kustom"}, "sweeps.rate.recipe: received 'kustom'; allowed: one of baseline, custom"),
            ({"trials": 0}, "sweeps.rate.trials: received 0; allowed: a whole number from 1 to 10000"),
            ({"epochs": 0}, "sweeps.rate.epochs: received 0; allowed: a whole number from 1 to 1000"),
            ({"sampler": "cma"}, "sweeps.rate.sampler: received 'cma'; allowed: one of tpe, random, grid"),
            ({"prunner": "none"}, "unknown key sweeps.rate.prunner; allowed here: recipe, trials"),
            ({"space": {}}, "sweeps.rate.space: received {}; allowed: a mapping with at least one key"),
            ({"space": {"lr": {"low": 1, "high": 2}}}, "sweeps.rate.space.lr: received an unknown key; allowed: opt"),
            ({"space": {"epochs": {"low": 1, "high": 2}}}, "space.epochs: received an unknown key"),
            ({"space": {"teacher": {"choices": ["none", "x"]}}}, "space.teacher: received an unknown key"),
            ({"space": {"momentum": {"low": 0.5, "high": 1.0}}}, "space.momentum.high: received 1.0; allowed: a numb"),
            ({"space": {"momentum": {"low": 0.5}}}, "sweeps.rate.space.momentum.high is missing; add it, or choices"),
            (
                {"space": {"momentum": {"low": 0.5, "high": 0.2}}},
                "momentum.low: received 0.5; allowed: below high, 0.2",
            ),
            (
                {"space": {"momentum": {"low": 0.0, "high": 0.5, "log": True}}},
                "momentum.low: received 0.0; allowed with log: above 0",
            ),
            ({"space": {"momentum": {"lo": 0.1, "high": 0.5}}}, "unknown key sweeps.rate.space.momentum.lo"),
            ({"space": {"momentum": {"low": "a", "high": 0.5}}}, "momentum.low: received 'a'; allowed: a number from"),
            (
                {"space": {"flip": {"low": "none", "high": "random"}}},
                "flip.low: received 'none'; allowed for flip: cho",
            ),
            ({"space": {"flip": {"choices": ["none", "up"]}}}, "flip.choices: received 'up'; allowed: one of none,"),
            ({"space": {"batch_size": {"choices": [10, 20.5]}}}, "batch_size.choices: received 20.5; allowed: a whole"),
            ({"space": {"batch_size": {"choices": [10, "20"]}}}, "batch_size.choices: received '20'; allowed: a whole"),
            ({"space": {"batch_size": {"choices": [10]}}}, "batch_size.choices: received [10]; allowed: a list of at"),
            ({"space": {"flip": {"choices": ["none", "none"]}}}, "flip.choices: received 'none' twice"),
            ({"space": {"flip": {"choices": ["none", "random"], "low": 1}}}, "flip: received choices beside low"),
            (
                {"sampler": "grid"},
                "sweeps.rate.space.learning_rate: received no choices; allowed with the sampler grid",
            ),
            (
                {"sampler": "grid", "space": {"flip": {"choices": ["none", "random"]}}},
                "sweeps.rate.trials: received 6; allowed: at most 2, the points of the grid",
            ),
            (
                {"space": {"augment_policy": {"choices": ["none", "trivial"]}}},
                "sweeps.rate.space: received values that contradict each other (augment_policy trivial)",
            ),
            ({"space": {"batch_size": {"low": 10, "high": 10_000}}}, "batch_size: received 10000; allowed: at most"),
            (
                {
                    "space": {
                        "augment_policy": {"choices": ["none", "trivial"]},
                        **{
                            key: {"choices": [0.1, 0.2, 0.3, 0.4]} for key in ("learning_rate", "momentum", "ema_decay")
                        },
                        "weight_decay": {"choices": [0.1, 0.2]},
                    }
                },
                "contradict each other (augment_policy trivial, learning_rate 0.1, momentum 0.1, ema_decay 0.1, weight",
            ),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_starts(self, tiny_params, change, said):
        tiny_params["sweeps"] = {"rate": RATE | change}
        with pytest.raises(PipelineError) as error:
            params.check(tiny_params)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    def test_name_of_a_reference_is_refused(self, tiny_params):
        tiny_params["sweeps"] = {"published-rate": RATE}
        with pytest.raises(PipelineError, match=r"sweeps\.published-rate: received a name that begins with published-"):
            params.check(tiny_params)

    def test_values_that_need_each_other_may_be_tried_together(self, tiny_params):
        space = {"augment_policy": {"choices": ["trivial", "none"]}, "augment_strength": {"low": 0.1, "high": 0.5}}
        tiny_params["sweeps"] = {"rate": RATE | {"space": space}}
        with pytest.raises(PipelineError, match="contradict each other"):
            params.check(tiny_params)
        tiny_params["recipes"]["custom"] |= {"augment_policy": "trivial", "augment_strength": 0.2}
        tiny_params["sweeps"] = {"rate": RATE | {"space": {"augment_strength": space["augment_strength"]}}}
        params.check(tiny_params)

    def test_trial_is_the_recipe_with_its_values_and_epochs(self, tiny_params):
        tiny_params["sweeps"] = {"rate": RATE}
        config = params.check(tiny_params)
        ours = sweeps.trial_params(config, config.sweeps["rate"], "rate-trial-3", {"learning_rate": 0.05})
        recipe = config.recipes["custom"].model_dump() | {"learning_rate": 0.05, "epochs": 3}
        assert ours.recipe_of("rate-trial-3").model_dump() == recipe
        assert ours.recipes["custom"] == config.recipes["custom"]


class TestNewRecipe:
    def test_all_lines_of_the_file_stay(self, tmp_path):
        path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
        path.write_text(text)
        recipe = params.read(path).recipes["custom"].model_dump() | {"learning_rate": 0.0125}
        new_recipe.add(path, "rate-best", recipe)
        after = path.read_text().splitlines()
        added = new_recipe.lines("rate-best", recipe).splitlines()
        start = after.index("  rate-best:")
        assert after[start : start + len(added)] == added
        assert after[:start] + after[start + len(added) :] == text.splitlines()
        assert params.read(path).recipes["rate-best"].learning_rate == 0.0125

    def test_recipe_that_is_there_is_not_replaced(self, project):
        with pytest.raises(PipelineError, match="has a recipe custom already; rename or remove it"):
            new_recipe.add(project / "params.yaml", "custom", {})

    def test_file_without_a_place_for_it_stays_as_it_is(self, project):
        path = project / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(tree, default_flow_style=True, width=10**6))
        before = path.read_text()
        with pytest.raises(PipelineError, match=r"there is no place for recipes\.x .* add its lines by hand"):
            new_recipe.add(path, "x", tree["recipes"]["custom"])
        assert path.read_text() == before


@pytest.fixture
def config(project, monkeypatch):
    """A sweep `rate`; stores of its own."""
    store.reconnect()
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{project}/optuna.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["sweeps"] = {"rate": RATE}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    return params.read()


class FakeDriver:
    """Trains in no time: the lower the learning rate, the better. `ends`: what happens to a trial, by its number."""

    def __init__(self, ends=()):
        self.ends, self.trained, self.stopped = dict(ends), [], ""
        self.environment = {"commit": "0" * 40, "dirty": False}

    def train(self, run, config, environment, on_epoch, expected):
        recipe = config.recipe_of(run)
        self.trained.append(environment["trial"])
        for epoch in range(1, recipe.epochs + 1):
            on_epoch({"epoch": epoch, "val_accuracy": 0.9 - recipe.learning_rate})
            if error := self.ends.pop(environment["trial"], None):
                raise error
        history = [{"val_accuracy": 0.9 - recipe.learning_rate}]
        return record.Record(Path(), None, history), {}

    def stop(self, reason):
        self.stopped = reason


def sweep_folder(study):
    """Where its trials run, made."""
    folder = pending.WORKSPACES / f"sweep-{study.name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_record(config, study, trial):
    """The record of a trial that has just begun, in the working directory."""
    run = f"rate-trial-{trial}"
    ours = sweeps.trial_params(config, study.sweep, run, {"learning_rate": 0.01})
    environment = {"commit": "0" * 40, "data_hash": "1" * 32, "sweep": study.name, "trial": trial}
    return record.begin(run, run, ours.flat(run), environment)


def states(study):
    return [trial.state.name for trial in study.trials()]


class TestSearch:
    def test_best_trial_is_that_of_the_highest_validation_accuracy(self, config):
        study = Study(config, "rate")
        sweep.search(config, study, FakeDriver(), 1)
        assert states(study) == ["COMPLETE"] * 6
        rates = [trial.params["learning_rate"] for trial in study.best()]
        assert rates == sorted(rates)
        assert all(0.001 <= rate <= 0.1 for rate in rates)
        assert len(set(rates)) == 6
        assert trials.table(study).splitlines()[0].startswith(f"trial {study.best()[0].number:>3}  val_accuracy 0.")
        colour = matplotlib.rcParams["axes.facecolor"]
        assert set(trials.plots(study)) == {"importances.png", "parallel_coordinates.png"}
        assert matplotlib.rcParams["axes.facecolor"] == colour
        assert study.unfinished() == 0

    def test_trial_that_fails_is_noted_and_ends_nothing(self, config, monkeypatch):
        monkeypatch.setattr(tracking, "sync_run", lambda *_, **__: None)
        study = Study(config, "rate")
        sweep.search(config, study, FakeDriver({1: RecipeError("rate-trial-1: the loss is nan")}), 2)
        assert sorted(states(study)) == ["COMPLETE"] * 5 + ["FAIL"]
        assert "trial   1  fail: rate-trial-1: the loss is nan" in trials.table(study)
        with contextlib.chdir(sweep_folder(study)):
            assert record.load("rate-trial-1").training.status == "failed"

    def test_trial_that_lags_behind_is_pruned(self, config):
        rated = config.sweeps["rate"].model_copy(update={"pruner": "median", "trials": 30})
        study = Study(config.model_copy(update={"sweeps": {"rate": rated}}), "rate")
        sweep.search(config, study, FakeDriver(), 1)
        assert states(study)[:5] == ["COMPLETE"] * 5  # the pruner knows nothing yet
        assert "PRUNED" in states(study)
        # Of three epochs none is judged in the first half.
        assert "pruned: pruned after epoch 2 by the median pruner" in trials.table(study)
        assert "after epoch 1" not in trials.table(study)

    def test_trial_that_hyperband_pruned_stays_pruned_when_it_is_killed_before_that_is_noted(self, config, monkeypatch):
        rate = config.sweeps["rate"].model_copy(update={"pruner": "hyperband", "trials": 30, "epochs": 9})
        config = config.model_copy(update={"sweeps": {"rate": rate}})
        study = Study(config, "rate")
        tell = Study.tell

        def killed(study, trial, state, *arguments, **named):
            if state is TrialState.PRUNED:
                raise KeyboardInterrupt
            tell(study, trial, state, *arguments, **named)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Study, "tell", killed)
            sweep.search(config, study, FakeDriver(), 1)
        (open_trial,) = study.trials(TrialState.RUNNING)
        again, driver = Study(config, "rate"), FakeDriver()
        sweep.search(config, again, driver, 1)
        assert open_trial.number not in driver.trained
        ended = again.trials()[open_trial.number]
        assert (ended.state, ended.last_step) == (TrialState.PRUNED, open_trial.last_step)
        assert f"pruned after epoch {ended.last_step} by the hyperband pruner" in trials.table(again)
        assert set(states(again)) == {"COMPLETE", "PRUNED"}

    def test_record_of_a_trial_that_was_killed_while_it_was_pruned_says_so(self, config, monkeypatch):
        monkeypatch.setattr(tracking, "sync_run", lambda *_, **__: None)
        study = Study(config, "rate")
        trial = study.ask()
        study.begin(trial)
        trial.set_user_attr("pruned", "pruned after epoch 2")
        folder = sweep_folder(study)
        with contextlib.chdir(folder):
            begin_record(config, study, 0)
        sweep.search(config, Study(config, "rate"), FakeDriver(), 1)
        with contextlib.chdir(folder):
            training = record.load("rate-trial-0").training
        assert (training.status, training.end_reason) == ("killed", "pruned after epoch 2")

    @pytest.mark.filterwarnings("error:The reported value is ignored")
    def test_trial_that_begins_anew_is_judged_by_epochs_that_were_not_judged_before(self, config):
        study = Study(config, "rate")
        driver = FakeDriver({0: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            sweep.search(config, study, driver, 1)
        assert study.trials()[0].last_step == 1
        sweep.search(config, again := Study(config, "rate"), FakeDriver(), 1)  # from epoch 1: no checkpoint was left
        assert set(again.trials()[0].intermediate_values) == {1, 2, 3}

    def test_interrupted_sweep_tries_the_same_trial_again(self, config):
        study = Study(config, "rate")
        driver = FakeDriver({2: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            sweep.search(config, study, driver, 1)
        assert driver.stopped == "interrupted by Ctrl-C"
        assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING"]
        values = study.trials()[2].params
        again, driver = Study(config, "rate"), FakeDriver()
        sweep.search(config, again, driver, 1)
        assert driver.trained == [2, 3, 4, 5]
        assert again.trials()[2].params == values
        assert states(again) == ["COMPLETE"] * 6

    def test_trial_of_a_machine_that_is_silent_is_taken_over(self, config, monkeypatch):
        study = Study(config, "rate")
        monkeypatch.setattr(tracking, "location", lambda run: f"elsewhere:/{run}")
        alive, silent = study.ask(), study.ask()
        for trial in (alive, silent):
            study.begin(trial)
        silent.set_user_attr("seen_ms", record.now_ms() - 700_000)
        other, driver = Study(config, "rate"), FakeDriver()
        sweep.search(config, other, driver, 1)
        assert driver.trained == [1, 2, 3, 4, 5]
        assert states(other) == ["RUNNING"] + ["COMPLETE"] * 5
        assert other.unfinished() == 1

    @pytest.mark.parametrize("error", [EngineError("no node is left"), PipelineError("TensorFlow sees no GPU")])
    def test_machine_or_engine_that_fails_burns_no_trial(self, config, error):
        study = Study(config, "rate")
        with pytest.raises(type(error)):
            sweep.search(config, study, FakeDriver({0: error}), 1)
        assert states(study) == ["RUNNING"]
        sweep.search(config, again := Study(config, "rate"), FakeDriver(), 1)
        assert states(again) == ["COMPLETE"] * 6

    def test_trial_that_was_released_is_released_once(self, config):
        study, other = Study(config, "rate"), Study(config, "rate")
        study.begin(study.ask())  # and its lock is not held: it is dead
        taken = other.ask()
        assert taken.number == 0
        third = Study(config, "rate")
        assert third.ask().number == 1  # `other` has not locked its trial yet

    def test_trial_whose_process_was_killed_before_it_had_begun_is_released(self, config):
        study = Study(config, "rate")
        study.ask().set_user_attr("seen_ms", record.now_ms() - 31_000)
        assert Study(config, "rate").ask().number == 0

    def test_trial_that_runs_here_is_not_taken_over_however_long_this_machine_slept(self, config):
        study = Study(config, "rate")
        trial = study.ask()
        with train.locked(study.run_of(trial)):
            study.begin(trial)
            trial.set_user_attr("seen_ms", record.now_ms() - 700_000)
            assert Study(config, "rate").ask().number == 1

    def test_trial_that_another_process_here_trains_is_left_to_it(self, config):
        study, other = Study(config, "rate"), Study(config, "rate")
        theirs, driver = other.ask(), FakeDriver()
        with train.locked(other.run_of(theirs)):
            other.begin(theirs)
            storage = other._study._storage
            storage.set_trial_user_attr(theirs._trial_id, "location", "")
            storage.set_trial_state_values(theirs._trial_id, TrialState.WAITING)  # by one that took it for dead
            while trial := study.ask():
                sweep.run_trial(config, study, trial, driver)
            assert driver.trained == [1, 2, 3, 4, 5]
            assert study.trials()[0].user_attrs["location"] == tracking.location("rate-trial-0")
            other.tell(theirs, TrialState.COMPLETE, 0.9)
        assert states(study) == ["COMPLETE"] * 6

    def test_trial_that_another_process_has_ended_before_it_began_here_is_left_to_it(self, config):
        study, driver = Study(config, "rate"), FakeDriver()
        late = study.ask()
        Study(config, "rate")._study.tell(late.number, 0.5)
        sweep.run_trial(config, study, late, driver)
        assert driver.trained == []
        assert study.trials()[0].value == 0.5

    def test_one_process_at_a_time_makes_the_database_and_asks(self, config):
        lock = {"folder": Path.cwd(), "busy": "", "name": "optuna.db.lock"}
        with ThreadPoolExecutor() as threads:
            with file_lock(**lock):
                opened = threads.submit(Study, config, "rate")
                with pytest.raises(TimeoutError):
                    opened.result(timeout=0.5)
                assert not Path("optuna.db").exists()
            study = opened.result(timeout=60)
            with file_lock(**lock):
                asked = threads.submit(study.ask)
                with pytest.raises(TimeoutError):
                    asked.result(timeout=0.5)
                assert states(study) == []
            assert asked.result(timeout=60).number == 0

    def test_result_that_comes_after_another_process_had_taken_over_is_not_used(self, config, monkeypatch, capsys):
        monkeypatch.setattr(tracking, "location", lambda run: f"elsewhere:/{run}")
        study = Study(config, "rate")
        late = study.ask()
        study.begin(late)
        late.set_user_attr("seen_ms", record.now_ms() - 700_000)
        other = Study(config, "rate")
        other.tell(other.ask(), TrialState.COMPLETE, 0.9)
        study.tell(late, TrialState.COMPLETE, 0.1)
        assert "warning: rate-trial-0 was taken over by another process meanwhile" in capsys.readouterr().err
        assert study.trials()[0].value == 0.9

    def test_trial_that_another_process_took_over_and_ended_ends_here_and_nothing_else(self, config, capsys):
        study = Study(config, "rate")

        class Overtaken(FakeDriver):
            def train(self, run, config, environment, on_epoch, expected):
                if environment["trial"] == 0 and not self.trained:
                    study._study.tell(0, 0.5)  # by the other one
                return super().train(run, config, environment, on_epoch, expected)

        sweep.search(config, study, Overtaken(), 1)
        assert "warning: rate-trial-0 was taken over by another process meanwhile" in capsys.readouterr().err
        assert states(study) == ["COMPLETE"] * 6
        assert study.trials()[0].value == 0.5

    def test_database_that_goes_away_is_one_line(self, config, monkeypatch):
        study = Study(config, "rate")

        def away(*_):
            raise StorageInternalError("the server closed\n the connection")

        monkeypatch.setattr(study._study, "ask", away)
        said = r"OPTUNA_STORAGE: sqlite:.*/optuna\.db: the server closed the connection; the same command resumes it"
        with pytest.raises(EngineError, match=said), study.one_line_errors():
            sweep.search(config, study, FakeDriver(), 1)

    @pytest.mark.parametrize("sampler", ["tpe", "grid"])
    def test_samplers(self, config, sampler):
        trials = 6 if sampler == "grid" else 14  # tpe draws the first ten at random
        space = {"flip": {"choices": ["none", "random", "alternating"]}, "crop_pixels": {"choices": [0, 4]}}
        change = {"sampler": sampler, "space": space} if sampler == "grid" else {"sampler": sampler}
        rate = params.Sweep.model_validate(RATE | change | {"trials": trials})
        study = Study(config.model_copy(update={"sweeps": {"rate": rate}}), "rate")
        sweep.search(config, study, FakeDriver(), 1)
        assert states(study) == ["COMPLETE"] * trials
        if sampler == "grid":
            assert len({tuple(trial.params.values()) for trial in study.trials()}) == 6


class TestStudy:
    def test_range_is_of_the_keys_type_whatever_its_ends_are(self, config):
        space = {"weight_decay": {"low": 0, "high": 10}, "crop_pixels": {"low": 0, "high": 4}}
        rate = params.Sweep.model_validate(RATE | {"space": space})
        trial = Study(config.model_copy(update={"sweeps": {"rate": rate}}), "rate").ask()
        kinds = {key: type(it) for key, it in trial.distributions.items()}
        assert kinds == {"weight_decay": FloatDistribution, "crop_pixels": IntDistribution}

    def test_teacher_that_was_trained_again_begins_another(self, config):
        taught = config.recipes["custom"].model_copy(update={"teacher": "baseline-0", "teacher_weight": 0.5})
        config = config.model_copy(update={"recipes": config.recipes | {"custom": taught}})
        with pytest.raises(PipelineError, match="baseline-0"):
            Study(config, "rate")
        write_run("baseline-0")
        name = Study(config, "rate").name
        assert Study(config, "rate").name == name
        change_training("baseline-0", record_id="another")
        assert Study(config, "rate").name != name

    def test_more_trials_extend_it_and_other_params_begin_another(self, config, monkeypatch):
        name = Study(config, "rate").name

        def named(**change):
            rate = config.sweeps["rate"].model_copy(update=change)
            return Study(config.model_copy(update={"sweeps": {"rate": rate}}), "rate").name

        assert named(trials=50) == name
        assert named(epochs=4) != name
        assert named(pruner="median") != name
        recipes = config.recipes | {"custom": config.recipes["custom"].model_copy(update={"momentum": 0.5})}
        assert Study(config.model_copy(update={"recipes": recipes}), "rate").name != name

    @pytest.mark.parametrize("address", ["sqlite:///{}", "sqlite:///mlflow.db", "sqlite+pysqlite:///{}?timeout=9"])
    def test_database_of_mlflow_is_refused(self, config, project, monkeypatch, address):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
        monkeypatch.setenv("OPTUNA_STORAGE", address.format(project / "mlflow.db"))
        with pytest.raises(PipelineError, match="OPTUNA_STORAGE: received MLflow's own store; name another database"):
            Study(config, "rate")

    @pytest.mark.parametrize(
        "address", ["sqlite:////nowhere/optuna.db", "what", "postgresql://me:secret@127.0.0.1:1/x"]
    )
    def test_database_that_cannot_be_opened_is_one_line(self, config, monkeypatch, address):
        monkeypatch.setenv("OPTUNA_STORAGE", address)
        with pytest.raises(PipelineError, match=r"OPTUNA_STORAGE: .* cannot be opened") as error:
            Study(config, "rate")
        assert "\n" not in str(error.value)
        assert "secret" not in str(error.value)

    def test_damaged_file_of_our_own_is_named(self, config, project, monkeypatch):
        monkeypatch.delenv("OPTUNA_STORAGE")
        monkeypatch.setattr(tracking, "root", lambda: project)
        (project / "optuna.db").write_text("no database" * 1000)
        with pytest.raises(PipelineError, match=r"^/.*/optuna\.db cannot be opened: .*; move it away to begin anew"):
            Study(config, "rate")


def test_nothing_is_written_as_long_as_a_trial_has_not_ended(config, monkeypatch):
    for name in ("begin_sweep", "end_sweep", "sync_run"):
        monkeypatch.setattr(tracking, name, lambda *_: None)
    monkeypatch.setattr(sweep, "reproduce", lambda *_: 0)
    monkeypatch.setattr(sweep, "plots", lambda _: {})
    monkeypatch.setattr(sweep, "Driver", lambda *_: FakeDriver())
    monkeypatch.setattr(tracking, "location", lambda run: f"elsewhere:/{run}")
    monkeypatch.setattr(sys, "argv", ["", "rate", "--write"])
    study, before = Study(config, "rate"), Path("params.yaml").read_bytes()
    trial = study.ask()
    study.begin(trial)
    with pytest.raises(
        PipelineError, match=r"^rate: 1 trial not ended. Other processes may be training them; if their machine"
    ):
        sweep.main()
    assert Path("params.yaml").read_bytes() == before
    study.tell(trial, TrialState.COMPLETE, 0.1)
    sweep.main()
    assert "rate-best" in params.read().recipes


def runs_of(study):
    """What MLflow has of a study: its parent run, then its trials."""
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], f"tags.sweep = '{study}'")
    return sorted(found, key=lambda run: run.data.tags.get("trial", ""))


def test_parent_run_is_finished_with_the_sweep_and_never_running(config, monkeypatch):
    def parent():
        (run,) = runs_of("rate-1")
        return run

    def away(*_, **__):
        raise OSError("the disk is full")

    long = RATE | {"space": {"learning_rate": {"choices": list(range(2000))}}}
    with monkeypatch.context() as patched:
        patched.setattr(type(store.client()), "log_batch", away)
        tracking.begin_sweep("rate-1", long)
    assert parent().info.status == "SCHEDULED"
    store.reconnect()
    tracking.begin_sweep("rate-1", long)
    client = store.client()
    assert parent().data.params["sampler"] == "random"
    assert parent().data.params["space"].endswith(" …")
    client.update_run(parent().info.run_id, "RUNNING")  # as its maker leaves it that is killed
    assert not tracking.in_sync([])
    tracking.end_dead_runs()
    assert parent().info.status == "SCHEDULED"
    assert tracking.in_sync([])
    study = Study(config, "rate")
    sweep.search(config, study, FakeDriver(), 1)
    tracking.end_sweep("rate-1", RATE, False, "table", {}, None)
    assert parent().info.status == "SCHEDULED"
    tracking.end_sweep("rate-1", RATE, True, "table", trials.plots(study), 0.5)
    assert parent().info.status == "FINISHED"
    assert parent().data.metrics == {"val_accuracy": 0.5}
    files = {file.path for file in client.list_artifacts(parent().info.run_id)}
    assert files == {"trials.txt", "importances.png", "parallel_coordinates.png"}
    tracking.begin_sweep("rate-1", RATE)
    assert parent().info.status == "SCHEDULED"


def test_child_of_a_trial_that_runs_here_no_more_is_ended_and_of_one_that_runs_is_not_touched(config):
    rate = config.sweeps["rate"].model_copy(update={"trials": 3})
    study = Study(config.model_copy(update={"sweeps": {"rate": rate}}), "rate")
    taken_over, running = study.ask(), study.ask()
    with contextlib.chdir(sweep_folder(study)):
        for trial in (0, 1):
            tracking.sync_run(begin_record(config, study, trial), live=True)
        lock = contextlib.ExitStack()
        lock.enter_context(train.locked("rate-trial-1"))  # by a second driver
        study.begin(running)
    study.tell(taken_over, TrialState.COMPLETE, 0.5)
    with lock:
        sweep.search(config, study, FakeDriver({2: RecipeError("a CPU has no float16")}), 1)
        tracking.end_sweep(study.name, RATE, False, "table", {}, None)
    parent, *children = runs_of(study.name)
    assert [run.info.status for run in (parent, *children)] == ["SCHEDULED", "KILLED", "RUNNING", "FAILED"]
    assert children[2].data.tags["end_reason"] == "a CPU has no float16"  # although it had no record
    assert float(children[2].data.params["learning_rate"]) == study.trials()[2].params["learning_rate"]
    assert children[0].data.tags["end_reason"] == "its process is gone, and did not say why"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {
        parent.info.run_id
    }  # not there when they began


@pytest.mark.slow
def test_sweep_that_is_killed_resumes_without_the_test_split(config, project, tmp_path_factory):
    """Real trials by processes here, of which one diverges; the folder of the data has no test images."""
    data = tmp_path_factory.mktemp("without-test")
    for file in (project / "data/cifar10").glob("data_batch_*"):
        (data / file.name).symlink_to(file.resolve())
    (project / "data/cifar10").unlink()
    (project / "data/cifar10").symlink_to(data)
    tree = yaml.safe_load((project / "params.yaml").read_text())
    space = {"learning_rate": {"choices": [0.01, 0.02, 100.0]}}
    tree["sweeps"] = {"rate": RATE | {"sampler": "grid", "trials": 3, "space": space}}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    before = (project / "params.yaml").read_bytes()
    code = "from pipeline import sweep, workspace; sweep.reproduce = lambda *_: 0; sweep.command.run(sweep.main)"
    asked = [sys.executable, "-c", code, "rate"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    killed = subprocess.Popen(asked, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    next(line for line in killed.stdout if ": epoch 1/3" in line)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = subprocess.run([*asked, "--write"], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumes after epoch" in done.stdout
    assert "One seed does not tell the best trials apart" in done.stdout
    assert "fail: rate-trial-" in done.stdout

    study = Study(params.read(), "rate")
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = study.trials(TrialState.FAIL)
    assert failed.params == {"learning_rate": 100.0}
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [run for run in found if run.info.run_name == f"sweep {study.name}"]
    children = {run.data.tags["trial"]: run for run in found if run is not parent}
    assert set(children) == {"0", "1", "2"}
    assert parent.info.status == "FINISHED"
    for trial in study.trials():
        run = children[str(trial.number)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert float(run.data.params["learning_rate"]) == trial.params["learning_rate"]
        assert run.info.status == ("FAILED" if trial is failed else "FINISHED")
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val_accuracy")]
        assert trial is failed or steps == [1, 2, 3]

    config = params.read()
    best = config.recipes["rate-best"]
    assert best.learning_rate == study.best()[0].params["learning_rate"]
    assert best.epochs == config.recipes["custom"].epochs
    rest = iter((project / "params.yaml").read_bytes().splitlines())
    assert all(line in rest for line in before.splitlines())
    assert not (project / "results").exists()
    assert optuna.study.get_all_study_names(os.environ["OPTUNA_STORAGE"]) == [study.name]
