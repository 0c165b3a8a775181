"""What may happen to a training, made to happen: it costs an epoch, and the store does not lie."""

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from conftest import ROOT, keep_runs, sh, small_clone, tiny_tree, write_project

from pipeline import tracking
from pipeline.records import checkpoint, record
from pipeline.tracking import store

pytestmark = [pytest.mark.faults, pytest.mark.slow]

EPOCHS = 8
KILLS = int(os.environ.get("KILLS", "6"))  # of the random ones; `make test-faults` makes it 20


def longer_tree() -> dict:
    """A tiny training run of several epochs, with everything that is random in it."""
    tree = tiny_tree()
    tree["recipes"]["custom"] |= {"epochs": EPOCHS, "flip": "random", "crop_pixels": 4, "ema_decay": 0.9}
    return keep_runs(tree, "custom-0")


@pytest.fixture
def longer(project) -> Path:
    """The project of `longer_tree`."""
    store.reconnect()  # each has a store of its own
    (project / "params.yaml").write_text(yaml.safe_dump(longer_tree()))
    return project


class Undisturbed(NamedTuple):
    """What the training run leaves when nothing happens to it, and how many seconds it takes."""

    left: tuple[bytes, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_cifar10) -> Undisturbed:
    """The run of `longer`, in a folder of its own."""
    folder = write_project(tmp_path_factory.mktemp("undisturbed"), tiny_cifar10, longer_tree())
    began = time.monotonic()
    finish(folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    return Undisturbed(left(folder), time.monotonic() - began)


def start(project: Path, code: str = "", **environment: str) -> subprocess.Popen:
    """The trainer as DVC starts it; `code` runs in its process before."""
    trains = (
        "import sys; from pipeline import train; from pipeline.system import command; "
        "sys.argv = ['', 'custom-0']; command.run(train.main)"
    )
    asked = ["-c", f"{textwrap.dedent(code)}\n{trains}"] if code else ["-m", "pipeline.train", "custom-0"]
    return subprocess.Popen(
        [sys.executable, *asked],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(project: Path, **environment: str) -> str:
    """Trains to the end; returns what was printed."""
    process = start(project, **environment)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def left(project: Path) -> tuple[bytes, bytes]:
    """What is equal for equal weights."""
    folder = project / "results/custom-0"
    return (folder / "model.keras").read_bytes(), (folder / "history.csv").read_bytes()


def has_ended(project: Path) -> bool:
    """Whether the training run has finished, so that nothing is left to resume."""
    file = project / "results/custom-0/training.json"
    status = json.loads(file.read_text())["status"] if file.exists() else "running"
    return status == "finished" and not list((project / "checkpoints/custom-0").glob("*.ckpt"))


def check_store(runs: int = 1) -> None:
    """Each finished run has each step of each metric once; none says RUNNING."""
    store.reconnect()
    tracking.end_dead_runs()
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == runs
    assert {run.info.status for run in found} == {"FINISHED"}
    for run in found:
        for key in ("loss", "val_accuracy", "epoch_seconds"):
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
            assert steps == list(range(1, EPOCHS + 1)), key


def test_training_killed_at_random_moments_ends_with_the_same_weights(longer, undisturbed):
    moments, killed = random.Random(0), 0
    while killed < KILLS:
        process = start(longer)
        try:
            process.communicate(timeout=moments.uniform(0.3, 1.0) * undisturbed.seconds)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        if has_ended(longer):  # killed in its last tenth of a second too: the next one is a training run of its own
            assert left(longer) == undisturbed.left
            subprocess.run(["rm", "-rf", longer / "mlruns"], check=True)
            (longer / "mlflow.db").unlink()
        subprocess.run(["rm", "-rf", longer / "results"], check=True)  # as DVC does before a stage
    finish(longer)
    assert left(longer) == undisturbed.left
    check_store()
    assert not list((longer / "checkpoints/custom-0").glob("*.ckpt"))


# Where the process is killed: the function, and which of its calls (of those whose last argument ends so); before or
# after it does its work.
POINTS = {
    "before the first checkpoint is there": ("checkpoint", "write", 1, "before"),
    "while a checkpoint is written": ("os", "replace", 3, "before", ".ckpt"),
    "between checkpoint and store": ("checkpoint", "write", 3, "after"),
    "before the model is saved": ("keras_file", "save", 1, "before"),
    "between model and record": ("keras_file", "save", 1, "after"),
    "before the checkpoints are removed": ("checkpoint", "clear", 1, "before"),
    "while the store takes an epoch": ("runs", "find", 2, "after"),
    "while the store takes the end": ("model", "log", 1, "after"),
}


@pytest.mark.parametrize("point", POINTS)
def test_training_killed_at(point, longer, undisturbed):
    module, name, call, when, *suffix = POINTS[point]
    process = start(
        longer,
        f"""
        import os, signal
        from pipeline import train
        from pipeline.tracking import model, runs
        from pipeline.records import checkpoint, keras_file
        does, calls = {module}.{name}, []
        def killing(*arguments, **named):
            if str(arguments[-1]).endswith({"".join(suffix)!r}):
                calls.append(1)
            if len(calls) == {call} and {when!r} == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = does(*arguments, **named)
            if len(calls) == {call}:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        {module}.{name} = killing
        """,
    )
    said = process.communicate(timeout=300)[0]
    assert process.returncode == -signal.SIGKILL, said
    finish(longer)
    assert left(longer) == undisturbed.left
    check_store()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_training_that_is_told_to_end_does_and_goes_on_later(number, status, longer, undisturbed):
    process = start(longer)
    lines = iter(process.stdout.readline, "")
    next(line for line in lines if line.startswith("epoch 2/"))
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status
    assert "Traceback" not in said
    store.reconnect()
    client = store.client()
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "KILLED"
    said = finish(longer)
    assert "resumes after epoch" in said
    assert left(longer) == undisturbed.left
    check_store()


def test_equal_trainings_beside_each_other_on_one_store_lose_nothing(longer, undisturbed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("data", "reference", "params.yaml"):
        (other / name).symlink_to(longer / name)
    processes = [start(folder) for folder in (longer, other)]
    for process in processes:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
        assert "MLflow could not" not in said
    assert left(longer) == left(other) == undisturbed.left
    check_store(runs=2)


def test_trainer_ends_when_dvc_alone_is_killed_and_the_next_repro_goes_on(tmp_path, environment):
    folder = small_clone(tmp_path / "project", environment, epochs=12)
    sh("dvc repro -q fetch", folder, environment)
    with (tmp_path / "said").open("w") as said:
        dvc = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "train@custom-0"],
            cwd=folder,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        while "epoch  2/12" not in (tmp_path / "said").read_text():
            assert dvc.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        children = psutil.Process(dvc.pid).children(recursive=True)
        (trainer,) = (child for child in children if "pipeline.train" in child.cmdline())
        dvc.kill()
        dvc.wait()
    again = sh("dvc repro train@custom-0", folder, environment)
    assert not trainer.is_running()
    assert "DVC is gone" in (tmp_path / "said").read_text()
    assert "resumes after epoch" in again
    training = json.loads((folder / "results/custom-0/training.json").read_text())
    assert [epoch["epoch"] for epoch in training["epochs"]] == list(range(1, 13))
    assert training["resumed_after_epochs"] == [training["resumed_after_epochs"][0]]


def test_multi_threaded_bfloat16_training_repeats_itself_to_the_bit(environment, tmp_path):
    code = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}]
        from pipeline import models
        from pipeline.config import params
        from pipeline.system import device
        from pipeline.training import dataset, loop
        machine = device.resolve("cpu", {{"precision"}})
        settings = params.read({str(ROOT / "params.yaml")!r})
        splits = dataset.read_train_val({str(ROOT / "data/cifar10")!r}, 2560, 500, 0)
        for name, recipe in settings.recipes.items():
            model = models.build(recipe.model)
            loop.train(model, recipe.model_copy(update=dict(epochs=1)), 0, *splits, policy=machine.policy)
            print(name, machine.threads, machine.policy, loop.digest(model))
    """
    code = textwrap.dedent(code).replace('{"precision"}', '"bfloat16"')
    first, again = (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == again
    assert "mixed_bfloat16" in first


class Server:
    """Listens on a free port of the loopback; does to every caller what `answer` does with its connection."""

    def __init__(self, answer):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.kept = []

        def serve():
            while True:
                connection, _ = self.socket.accept()
                self.kept.append(connection)
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()


def fail(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
    connection.close()


def drip(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with contextlib.suppress(OSError):  # the trainer has ended
        while True:
            connection.sendall(b" ")
            time.sleep(0.5)


@pytest.mark.parametrize("answer", [lambda connection: None, drip, fail], ids=["hangs", "drips", "fails"])
def test_server_that(answer, longer, undisturbed):
    began = time.monotonic()
    said = finish(longer, MLFLOW_TRACKING_URI=Server(answer).address)
    assert time.monotonic() - began < 1.3 * undisturbed.seconds + 30
    assert said.count("warning: MLflow could not") <= 3
    assert "Traceback" not in said
    epochs = json.loads((longer / "results/custom-0/training.json").read_text())["epochs"]
    assert max(epoch["epoch_seconds"] for epoch in epochs[1:]) < 10
    assert left(longer) == undisturbed.left
    store.reconnect()
    tracking.sync_run(record.load("custom-0"))
    check_store()


def test_store_that_is_locked_meanwhile_is_completed_later(longer, undisturbed):
    store.client()  # makes it
    lock = sqlite3.connect(longer / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    said = finish(longer)
    lock.execute("ROLLBACK")
    assert "warning: MLflow could not open its store" in said
    assert left(longer) == undisturbed.left
    tracking.sync_run(record.load("custom-0"))
    check_store()


def test_checkpoint_that_is_damaged_falls_back_to_the_one_before(longer, undisturbed):
    files = stopped_after(longer, 3)
    with files[-1].open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    said = finish(longer)
    assert "is damaged" in said
    assert "resumes after epoch 2" in said
    assert left(longer) == undisturbed.left
    check_store()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("recipes", "custom", "learning_rate", 0.02), "its learning_rate is 0.01, now 0.02"),
        (("recipes", "custom", "precision", "float32"), "its precision is bfloat16, now float32"),
        (("data", "train_images", 120), "its train_images is 100, now 120"),
    ],
)
def test_checkpoint_of_other_params_is_not_used(change, words, longer):
    stopped_after(longer, 2)
    tree = yaml.safe_load((longer / "params.yaml").read_text())
    *path, key, value = change
    section = tree
    for part in path:
        section = section[part]
    if words.startswith("its precision") and record_precision(longer) != "bfloat16":
        pytest.skip("this processor has no bfloat16")
    section[key] = value
    (longer / "params.yaml").write_text(yaml.safe_dump(tree))
    said = finish(longer)
    assert words in said
    assert "resumes after" not in said


def record_precision(project: Path) -> str:
    (file, *_) = sorted((project / "checkpoints/custom-0").glob("*.ckpt"))
    return checkpoint.read(file).fingerprint["precision"]


def stopped_after(project: Path, epoch: int) -> list[Path]:
    """Kills a training right after the checkpoint of this epoch; the files of its folder, the latest last."""
    process = start(
        project,
        f"""
        import os, signal
        from pipeline.records import checkpoint
        write = checkpoint.write
        def killing(folder, made):
            write(folder, made)
            if made.epoch == {epoch}:
                os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.write = killing
        """,
    )
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    return sorted((project / "checkpoints/custom-0").glob("*.ckpt"))
