"""Runs side by side leave what `dvc repro` leaves; what ends one of them, or all, costs no other and no epoch."""

import json
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
import yaml
from conftest import sh, small_clone, until

from pipeline import launch
from pipeline.config import params
from pipeline.records import fingerprint
from pipeline.system.command import PipelineError


def add_run(tree, name, teacher="none", **recipe):
    """A run of `custom`, in seed 0, by a recipe of its own."""
    tree["recipes"][name[:-2]] = tree["recipes"]["custom"] | {"teacher": teacher} | recipe
    tree["runs"][name] = {"recipe": name[:-2], "model": "custom", "seed": 0, "needs": params.needs(teacher)}


@pytest.fixture
def taught(tiny_params):
    """custom-0 teaches middle-0, which teaches last-0."""
    add_run(tiny_params, "last-0", "middle-0", teacher_weight=0.5)
    add_run(tiny_params, "middle-0", "custom-0", teacher_weight=0.5)
    return params.check(tiny_params)


class TestOrder:
    def test_teachers_come_first_and_once(self, taught):
        assert launch.with_teachers(taught, ["last-0", "custom-0"]) == ["custom-0", "middle-0", "last-0"]

    def test_unknown_run_is_named(self, taught):
        with pytest.raises(PipelineError, match=r"unknown run 'custom-7'; params\.yaml lists: baseline-0"):
            launch.with_teachers(taught, ["custom-7"])

    def test_who_learns_from_a_stale_run_is_stale(self, taught, monkeypatch):
        answer = subprocess.CompletedProcess([], 0, stdout='{"train@middle-0": [], "compare": []}')
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
        assert launch.stale_runs(taught, ["custom-0", "middle-0", "last-0"]) == ["middle-0", "last-0"]


@pytest.mark.parametrize(
    ("named", "targets"),
    [([], []), (["custom-0", "baseline-0"], ["evaluate@custom-0", "evaluate@baseline-0"])],
)
def test_evaluation_that_fails_ends_no_other_and_fails_the_command(project, monkeypatch, named, targets):
    asked = []
    monkeypatch.setattr(launch, "reproduce", lambda _, targets: asked.append(targets) or 255 * (len(asked) - 1))
    monkeypatch.setattr(launch, "stale_runs", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["", *named])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert ended.value.code == 255
    assert asked == [["--quiet", "fetch"], ["--keep-going", *targets]]


class FakeDriver:
    def __init__(self, failing=(), raises=None):
        self.begun, self.ended, self.stopped, self.failing, self.raises = [], [], "", failing, raises

    def train(self, run, config):
        self.begun.append((run, list(self.ended)))
        if run in self.failing:
            raise PipelineError(f"{run}: the loss is nan")
        if self.raises:
            raise self.raises
        self.ended.append(run)
        return run, {}

    def stop(self, reason):
        self.stopped = reason


class TestTrainAll:
    @pytest.fixture(autouse=True)
    def committed(self, monkeypatch, tmp_path):
        """What dvc.lock was told of."""
        committed = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(launch, "commit", lambda log, mark: committed.append(log))
        return committed

    def test_run_begins_after_its_teacher(self, taught, committed):
        driver = FakeDriver()
        assert launch.train_all(taught, ["custom-0", "middle-0", "last-0", "baseline-0"], driver, 4) == {}
        before = dict(driver.begun)
        assert "custom-0" in before["middle-0"]
        assert "middle-0" in before["last-0"]
        assert sorted(committed) == ["baseline-0", "custom-0", "last-0", "middle-0"]

    def test_failure_ends_who_learns_from_it_alone(self, taught, committed):
        driver = FakeDriver(failing=["custom-0"])
        failures = launch.train_all(taught, ["custom-0", "middle-0", "last-0", "baseline-0"], driver, 2)
        assert failures == {
            "custom-0": "custom-0: the loss is nan",
            "middle-0": "its teacher custom-0 failed",
            "last-0": "its teacher middle-0 failed",
        }
        assert committed == driver.ended == ["baseline-0"]

    def test_bug_ends_all_and_is_seen(self, taught):
        driver = FakeDriver(raises=ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError):
            launch.train_all(taught, ["custom-0"], driver, 1)
        assert driver.stopped == "a bug"


class TestCommit:
    """DVC would note what is there after the training, whatever was there before."""

    class Log:
        run = "custom-0"

        def __init__(self, config):
            self.training = type("Training", (), {"params": config.flat("custom-0"), "model": "custom"})

    @pytest.fixture
    def asked(self, monkeypatch):
        asked = []
        done = subprocess.CompletedProcess([], 0)
        monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command[3:]) or done)
        return asked

    def test_run_of_these_params_and_this_code_is_noted(self, project, asked):
        mark = fingerprint.code_hashes("custom") | {"precision": "bfloat16"}
        launch.commit(self.Log(params.read()), mark)
        assert asked == [["--wait-for-lock", "commit", "--quiet", "--force", "train@custom-0"]]

    def test_other_test_images_are_no_other_training(self, project, asked):
        log = self.Log(params.read())
        tree = yaml.safe_load((project / "params.yaml").read_text())
        tree["data"]["test_images"] = 500
        (project / "params.yaml").write_text(yaml.safe_dump(tree))
        launch.commit(log, fingerprint.code_hashes("custom"))
        assert len(asked) == 1

    def test_run_that_left_the_list_meanwhile_is_named(self, project, asked):
        log = self.Log(params.read())
        tree = yaml.safe_load((project / "params.yaml").read_text())
        del tree["runs"]["custom-0"], tree["export"]["runs"]["custom-0"]
        (project / "params.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(PipelineError, match=r"unknown run 'custom-0'; params\.yaml lists: "):
            launch.commit(log, fingerprint.code_hashes("custom"))
        assert asked == []

    def test_code_that_was_edited_meanwhile_is_not(self, project, asked):
        mark = fingerprint.code_hashes("custom") | {"code training/loop.py": "0" * 16}
        with pytest.raises(PipelineError, match=r"code training/loop\.py was changed while it was trained"):
            launch.commit(self.Log(params.read()), mark)
        assert asked == []

    def test_params_that_were_edited_meanwhile_are_not(self, project, asked):
        log = self.Log(params.read())
        tree = yaml.safe_load((project / "params.yaml").read_text())
        tree["recipes"]["custom"]["learning_rate"] = 0.5
        (project / "params.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(PipelineError, match="learning_rate was changed while it was trained"):
            launch.commit(log, fingerprint.code_hashes("custom"))
        assert asked == []


@pytest.mark.slow
def test_launch_leaves_what_dvc_repro_leaves_whatever_happens_to_it(environment, tmp_path):
    clone = small_clone(tmp_path / "project", environment, epochs=3)
    tree = yaml.safe_load((clone / "params.yaml").read_text())
    add_run(tree, "student-0", "custom-0", teacher_weight=0.5)
    add_run(tree, "wild-0", learning_rate=100.0)
    (clone / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sh("git commit -qam runs", clone, environment)
    command = [sys.executable, "-m", "pipeline.launch", "--parallel", "2"]
    command = command if len(psutil.Process().cpu_affinity()) > 1 else command[:-2]

    # Ctrl-C after an epoch of the teacher: nothing that was started is left, and nothing says that it runs.
    process = subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True)
    until(process, "custom-0: epoch 1/3")
    workers = [child for child in psutil.Process(process.pid).children() if child.is_running()]
    assert workers
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode == 130
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    ended = json.loads((clone / "results/custom-0/training.json").read_text())
    assert (ended["status"], ended["end_reason"]) == ("killed", "interrupted by Ctrl-C")

    # One run fails: the others are trained and evaluated, the exit status says it.
    again = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert again.returncode == 1
    assert "resumes after epoch 1" in again.stdout or "resumes after epoch 2" in again.stdout
    assert again.stderr.strip().splitlines()[-1].startswith("error: 1 of 3 runs failed: wild-0")
    assert "lower recipes.wild.learning_rate" in again.stderr
    assert {"evaluate@custom-0", "train@custom-0", "evaluate@student-0"}.isdisjoint(changed(clone, environment))
    assert (clone / "results/student-0/evaluation.json").exists()

    tree["recipes"]["wild"]["learning_rate"] = 0.01
    (clone / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sh(shlex.join(command), clone, environment)
    assert changed(clone, environment) == {"sync"}
    before = {path: path.read_bytes() for path in (clone / "results").rglob("*.*")} | {"": lock(clone)}
    assert "pipeline.train" not in sh("dvc repro", clone, environment)
    assert before == {path: path.read_bytes() for path in (clone / "results").rglob("*.*")} | {"": lock(clone)}


def changed(clone, environment):
    return set(json.loads(sh("dvc status --json", clone, environment)))


def lock(clone):
    return (clone / "dvc.lock").read_bytes()
