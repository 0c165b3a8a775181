"""A worker computes, the driver records: whoever dies, the record and MLflow have each epoch once."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT

from pipeline import tracking, train
from pipeline.config import params
from pipeline.engine import (
    Begun,
    EngineError,
    Epoch,
    Failed,
    Finished,
    Job,
    NodeRefusedError,
    Steps,
    WorkerDiedError,
)
from pipeline.engine.driver import MOST_DEATHS, Driver
from pipeline.engine.local import LocalEngine
from pipeline.engine.worker import work
from pipeline.records import checkpoint, record
from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.file_lock import file_lock
from pipeline.system.progress import RunsProgress
from pipeline.tracking import live, store

ORIGIN = {"commit": "0" * 40, "dirty": False}


@pytest.fixture
def config(project, monkeypatch):
    """custom-0 for four epochs; its store is new, and waited for on a busy machine."""
    monkeypatch.setattr(live, "LAST_WAIT", 120.0)
    store.reconnect()
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["recipes"]["custom"] |= {"epochs": 4, "flip": "random", "ema_decay": 0.9}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    return params.read()


class Scripted:
    """An engine whose workers say what a script says: an epoch's number, or a message, or an error to raise."""

    parallel = 1

    def __init__(self, *scripts):
        self.scripts, self.resumed, self.ended = list(scripts), [], 0

    def start(self, job):
        return ScriptedWorker(self, self.scripts.pop(0))

    def stop(self):
        pass


class ScriptedWorker:
    location, is_here = "there", False

    def __init__(self, engine, script):
        self.engine, self.script, self.is_over = engine, list(script), threading.Event()
        self.script.insert(0, Begun({"seed": 0}, {"data_hash": "1", "device": "CPU"}, "[]", "custom-0: small"))

    def receive(self):
        if not self.script:
            self.is_over.wait()
        if self.is_over.is_set():
            raise WorkerDiedError("it was ended")
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        return epoch(said) if isinstance(said, int) else said

    def send(self, message):
        self.engine.resumed.append((message.epoch, [int(value[0]) for value in message.values]))

    def end(self):
        self.engine.ended += not self.is_over.is_set()
        self.is_over.set()


def epoch(number):
    metrics = {"epoch": number, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    return Epoch(metrics | {"learning_rate": 0.1}, 100.0, f"digest {number}", [np.array([number])])


def drive(engine, config, **arguments):
    with train.locked("custom-0"):
        return Driver(engine, RunsProgress(), ORIGIN).train("custom-0", config, **arguments)[0]


def logged_steps():
    """Status of MLflow's only run, and the steps that it has a loss of."""
    store.reconnect()
    tracking.end_dead_runs()
    client = store.client()
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run.info.status, [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]


def test_epochs_become_a_record_and_one_mlflow_run(config):
    seen = []
    log = drive(Scripted([1, Steps(2, 1, 5, 0.9), 2, 3, 4, Finished(b"model")]), config, on_epoch=seen.append)
    assert [row["epoch"] for row in log.history] == [row["epoch"] for row in seen] == [1, 2, 3, 4]
    loaded = record.load("custom-0")
    assert (loaded.training.status, loaded.training.environment["device"]) == ("finished", "CPU")
    assert [it.weights_digest for it in loaded.training.epochs] == [f"digest {n}" for n in (1, 2, 3, 4)]
    assert loaded.model_file.read_bytes() == b"model"
    assert logged_steps() == ("FINISHED", [1, 2, 3, 4])


def test_run_of_a_worker_that_died_goes_to_another_with_the_last_checkpoint(config, capsys):
    died = WorkerDiedError("its node is gone")
    engine = Scripted([1, 2, died], [died], [3, died], [4, Finished(b"model")])
    log = drive(engine, config)
    assert engine.resumed == [(0, []), (2, [2]), (2, [2]), (3, [3])]
    assert [row["epoch"] for row in log.history] == [1, 2, 3, 4]
    assert log.training.resumed_after_epochs == [2, 3]
    assert logged_steps() == ("FINISHED", [1, 2, 3, 4])
    assert "warning: custom-0: its node is gone; another worker resumes it" in capsys.readouterr().err


def test_workers_that_die_without_an_epoch_end_the_run(config):
    died = WorkerDiedError("killed by signal 9")
    with pytest.raises(PipelineError, match="3 workers died without finishing an epoch; the last one: killed by"):
        drive(Scripted([1, died], *[[died]] * (MOST_DEATHS - 1)), config)
    loaded = record.load("custom-0")
    assert (loaded.training.status, loaded.training.end_reason) == ("failed", "killed by signal 9")


def test_workers_that_die_before_they_begin_say_nothing_of_the_recipe(config):
    engine = Scripted(*[[]] * MOST_DEATHS)
    start = engine.start

    def start_a_broken_one(job):
        worker = start(job)
        worker.script[:] = [WorkerDiedError("its process ended with status 1: SyntaxError: invalid syntax")]
        return worker

    engine.start = start_a_broken_one
    with pytest.raises(EngineError, match=r"custom-0: 3 workers died before they began; the last one: .*SyntaxError"):
        drive(engine, config)


def test_cores_of_a_process_that_could_not_start_are_free_again(config, project, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    engine = LocalEngine(project)
    with monkeypatch.context() as context, pytest.raises(OSError, match="unavailable"):
        context.setattr(subprocess, "Popen", refuse)
        engine.start(Job("custom-0", config))
    engine.start(Job("custom-0", config)).end()


def test_nodes_that_are_refused_are_no_deaths_of_the_run(config):
    refused = NodeRefusedError("node full: no space")
    log = drive(Scripted([1, 2, 3, 4, refused], *[[refused]] * MOST_DEATHS, [Finished(b"model")]), config)
    assert log.training.status == "finished"


def test_failure_is_recorded_with_its_reason_and_not_tried_again(config):
    engine = Scripted([1, Failed("custom-0: the loss is nan")])
    with pytest.raises(PipelineError, match="the loss is nan"):
        drive(engine, config)
    assert (engine.scripts, engine.ended) == ([], 1)
    loaded = record.load("custom-0")
    assert (loaded.training.status, loaded.training.end_reason) == ("failed", "custom-0: the loss is nan")
    assert logged_steps() == ("FAILED", [1])


@pytest.mark.parametrize(("by_recipe", "kind"), [(True, RecipeError), (False, PipelineError)])
def test_failure_says_whether_the_recipe_is_at_fault(config, by_recipe, kind):
    with pytest.raises(PipelineError) as error:
        drive(Scripted([Failed("custom-0: no", by_recipe=by_recipe)]), config)
    assert type(error.value) is kind


def test_worker_with_other_code_or_another_teacher_than_expected_trains_nothing(config):
    for key in ("seed", "data_hash"):  # one is in its fingerprint, one in what it says of itself
        engine = Scripted([1, Finished(b"model")])
        with pytest.raises(PipelineError, match=f"custom-0: {key} has changed since the start; call the same"):
            drive(engine, config, expected={key: "another"})
        assert engine.resumed == []
    drive(Scripted([1, Finished(b"model")]), config, expected={"seed": 0, "data_hash": "1"})


def test_driver_that_stops_ends_its_workers_and_resumes_later(config):
    engine = Scripted([1, 2])
    driver = Driver(engine, RunsProgress(), ORIGIN)

    def stop_after_two(row):
        if row["epoch"] == 2:
            driver.stop("interrupted by Ctrl-C")

    with train.locked("custom-0"), pytest.raises(train.StoppedError):
        driver.train("custom-0", config, on_epoch=stop_after_two)
    loaded = record.load("custom-0")
    assert (loaded.training.status, loaded.training.end_reason) == ("killed", "interrupted by Ctrl-C")
    assert engine.ended == 1
    later = Scripted([3, 4, Finished(b"model")])
    assert [row["epoch"] for row in drive(later, config).history] == [1, 2, 3, 4]
    assert later.resumed == [(2, [2])]
    assert logged_steps() == ("FINISHED", [1, 2, 3, 4])


def test_run_whose_end_nobody_took_note_of_resumes_after_its_last_epoch(config):
    drive(Scripted([1, 2, 3, 4, Finished(b"model")]), config)
    later = Scripted([Finished(b"model")])
    assert len(drive(later, config).history) == 4
    assert later.resumed == [(4, [4])]


def test_run_that_another_process_trains_is_refused(config):
    with (
        file_lock(record.CHECKPOINTS / "custom-0", ""),
        pytest.raises(PipelineError, match="custom-0 is being trained by another process"),
    ):
        drive(Scripted([]), config)


@pytest.mark.parametrize("parallel", [0, 4096])
def test_more_runs_than_cores_are_refused(parallel, project):
    with pytest.raises(PipelineError, match=rf"--parallel: received {parallel}; allowed here: 1 to \d+"):
        LocalEngine(project, parallel)


def test_worker_says_why_it_cannot_compute(config, project):
    (project / "data/cifar10").unlink()
    engine = LocalEngine(project)
    worker = engine.start(Job("custom-0", config))
    try:
        message = worker.receive()
    finally:
        worker.end()
    assert isinstance(message, Failed)
    assert "`dvc repro fetch` fetches the data" in message.reason


@pytest.mark.parametrize(("error", "by_node"), [(OSError(28, "No space left on device"), True), (KeyError(1), False)])
def test_worker_says_whether_its_machine_is_at_fault(config, project, monkeypatch, error, by_node):
    def compute(job, channel):
        raise error

    monkeypatch.setattr("pipeline.engine.worker._compute", compute)
    said = []
    work(Job("custom-0", config), project, SimpleNamespace(send=said.append))
    (failed,) = said
    assert failed.reason.startswith(f"custom-0: {type(error).__name__}: ")
    assert failed.by_node == by_node


@pytest.mark.slow
def test_store_takes_the_epochs_of_many_runs_at_a_time(project, tiny_params, monkeypatch, capsys):
    """More than MLflow's pool has connections: 64 runs left 42 that said KILLED."""
    monkeypatch.setattr(live, "LAST_WAIT", 120.0)
    store.reconnect()
    tiny_params["recipes"]["custom"]["epochs"] = 2
    tiny_params["runs"] = {f"custom-{seed}": tiny_params["runs"]["custom-0"] | {"seed": seed} for seed in range(40)}
    tiny_params["export"]["runs"] = {}
    many = params.check(tiny_params)
    engine = Scripted(*([1, 2, Finished(b"model")] for _ in many.runs))
    driver = Driver(engine, RunsProgress(), ORIGIN)

    def train_one(run):
        with train.locked(run):
            driver.train(run, many)

    with ThreadPoolExecutor(len(many.runs)) as threads:
        list(threads.map(train_one, many.runs))
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.status for run in found] == ["FINISHED"] * 40
    for run in found:
        assert [it.step for it in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert "MLflow could not" not in capsys.readouterr().err


@pytest.mark.slow
class TestLocalProcesses:
    @pytest.fixture
    def undisturbed(self, config, project, tmp_path_factory):
        """What `pipeline.train` leaves on one core."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        code = (
            "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]); "
            "from pipeline import train; from pipeline.system import command; "
            "sys.argv[1:] = ['custom-0']; command.run(train.main)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, check=True)
        left = self.left(project)
        for path in (project / "results/custom-0").iterdir():
            path.unlink()
        (project / "mlflow.db").unlink()
        store.reconnect()
        return left

    @staticmethod
    def left(project):
        return [(project / "results/custom-0" / name).read_bytes() for name in ("model.keras", "history.csv")]

    def test_killed_workers_cost_epochs_and_no_bit(self, config, project, undisturbed):
        class Killing(LocalEngine):
            def start(self, job):
                self.worker = super().start(job)
                return self.worker

        engine, killed = Killing(project, len(os.sched_getaffinity(0))), []

        def kill_twice(row):
            if row["epoch"] in (1, 3) and row["epoch"] not in killed:
                killed.append(row["epoch"])
                engine.worker._process.kill()

        log = drive(engine, config, on_epoch=kill_twice)
        assert killed == [1, 3]
        assert log.training.environment["threads"] == 1
        assert self.left(project) == undisturbed
        assert logged_steps() == ("FINISHED", [1, 2, 3, 4])

    def test_worker_ends_with_its_driver(self, config, project):
        code = """
            import os, signal, sys
            from pathlib import Path
            from pipeline.config import params
            from pipeline.engine import Job, Resume
            from pipeline.engine import local
            from pipeline.engine.local import LocalEngine
            # It says nothing for a while, so that no broken pipe ends it.
            sleep = "from pipeline import train; import time; train.compute = lambda *_: time.sleep(60); "
            local.SERVE = sleep + local.SERVE
            worker = LocalEngine(Path()).start(Job("custom-0", params.read()))
            worker.receive()
            worker.send(Resume(0, []))
            print(worker._process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        driver = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        _, alive = psutil.wait_procs(
            [psutil.Process(int(driver.stdout))] if psutil.pid_exists(int(driver.stdout)) else [], timeout=20
        )
        assert not alive


def test_checkpoint_that_a_worker_resumes_from_is_the_records(config):
    died = WorkerDiedError("gone")
    engine = Scripted([1, 2, died], [3, 4, Finished(b"model")])
    found = []

    def look(row):
        files = sorted((record.CHECKPOINTS / "custom-0").glob("*.ckpt"))
        found.append([checkpoint.read(file).epoch for file in files])

    drive(engine, config, on_epoch=look)
    assert found == [[0, 1], [1, 2], [2, 3], [3, 4]]
