"""Runs on a cluster of two nodes on this machine: whoever is killed, weights and MLflow are those of one machine."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, recorded_tree, sh, small_clone, until

from pipeline import tracking
from pipeline.config import params
from pipeline.records import record
from pipeline.tracking import store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
if not os.environ.get("CI"):
    pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")

PORT = 6379 + os.getpid() % 1000
HEAD, OTHER, STRANGE = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # 127.0.0.1 becomes the machine's outer address
START_SECONDS = 90.0  # for a node to join
EPOCHS = 4
RUNS = ["custom-0", "custom-1", "custom-2"]
DRIVE = """
import sys
from pipeline import engine, launch, train
from pipeline.config import params
from pipeline.engine.driver import Driver
from pipeline.system import command
from pipeline.system.progress import RunsProgress

def main():
    launch.commit = lambda log, mark: None
    with engine.opened(sys.argv[1], None) as workers, RunsProgress() as progress:
        driver = Driver(workers, progress, {"commit": "0" * 40, "dirty": False})
        failures = launch.train_all(params.read(), sys.argv[2:], driver, workers.parallel)
    sys.exit(str(failures) if failures else 0)

command.run(main)
"""


@cache
def python() -> str:
    """This Python, by a path without a space: Ray does not start its processes from one that has any."""
    link = Path(tempfile.mkdtemp(prefix="python-")) / "environment"
    link.symlink_to(sys.prefix)
    return str(link / "bin" / Path(sys.executable).name)


class Cluster:
    """Nodes on this machine, each on one core and with a cache of its own."""

    def __init__(self, folder: Path, environment: dict):
        self.folder, self.nodes = folder, {}
        self.environment = environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": f"{HEAD}:{PORT}",
        }

    def start(self, address: str, core: int, **environment: str) -> None:
        """Starts a node and waits until it has joined."""
        where = ["--head", f"--port={PORT}"] if address == HEAD else [f"--address={HEAD}:{PORT}"]
        limits = ["--num-cpus=1", "--object-store-memory=100000000", "--include-dashboard=false"][
            : 3 if where[1:] else 2
        ]
        command = [
            python(),
            "-m",
            "ray.scripts.scripts",
            "start",
            *where,
            f"--node-ip-address={address}",
            *limits,
        ]
        cache = {"XDG_CACHE_HOME": str(self.folder / address)}
        self.nodes[address] = subprocess.Popen(
            [*command, "--block"],
            env={**self.environment, **cache, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, [core]),
        )
        late = threading.Timer(START_SECONDS, self.nodes[address].kill)
        late.start()
        said = []
        for line in self.nodes[address].stdout:
            said.append(line)
            if "Ray runtime started" in line:
                late.cancel()
                return
        raise AssertionError("".join(said))

    def kill(self, address: str) -> None:
        """Ends a node as a power cut does."""
        node = self.nodes.pop(address)
        processes = [*psutil.Process(node.pid).children(recursive=True), node]
        for process in processes:
            process.kill()
        node.wait()


@pytest.fixture(scope="module")
def cluster(environment, tmp_path_factory):
    cores = sorted(os.sched_getaffinity(0))
    made = Cluster(tmp_path_factory.mktemp("nodes"), environment)
    try:
        made.start(HEAD, cores[0])
        made.start(OTHER, cores[-1])
        yield made
    finally:
        for address in list(made.nodes):
            made.kill(address)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Three runs of seconds, in a folder without data; it is the cwd."""
    store.reconnect()
    return small_project(tmp_path, monkeypatch)


def small_project(folder, monkeypatch=None):
    tree = recorded_tree()
    tree["runs"] = {f"custom-{seed}": tree["runs"]["custom-0"] | {"seed": seed} for seed in range(3)}
    tree["runs"]["student-0"] = {
        "recipe": "student",
        "model": "custom",
        "seed": 0,
        "needs": "results/custom-1/model.keras",
    }
    tree["export"]["runs"] = {}
    tree["data"] |= {"train_images": 500, "val_images": 100, "test_images": 100}
    tree["recipes"]["custom"] |= {"epochs": EPOCHS, "batch_size": 100, "flip": "random"}
    tree["recipes"]["student"] = tree["recipes"]["custom"] | {"teacher": "custom-1", "teacher_weight": 0.5}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    if monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


@contextmanager
def driving(folder, environment, *arguments):
    """The driver's process; ended afterwards."""
    ours = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [python(), "-c", DRIVE, *arguments],
        cwd=folder,
        env=environment | ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def drive(folder, environment, *arguments):
    """Trains; what was printed."""
    with driving(folder, environment, *arguments) as process:
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
        return said


def left(folder, run="custom-0"):
    """What is equal for equal weights."""
    return [(folder / f"results/{run}" / name).read_bytes() for name in ("model.keras", "history.csv")]


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """custom-0 by a process here, on one core."""
    folder = small_project(tmp_path_factory.mktemp("undisturbed"))
    (folder / "data").mkdir()
    (folder / "data/cifar10").symlink_to(ROOT / "data/cifar10")
    core = sorted(os.sched_getaffinity(0))[:1]
    code = f"import os; os.sched_setaffinity(0, {core}){DRIVE}"
    ours = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT)}
    subprocess.run([python(), "-c", code, "local", "custom-0"], cwd=folder, env=environment | ours, check=True)
    return left(folder)


def check_store(runs):
    """Each run is finished and has each epoch once."""
    store.reconnect()
    for run in runs:  # as the sync stage does: on a busy machine the store may lag behind
        tracking.sync_run(record.load(run), with_model=False)
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted(run.data.tags["run"] for run in found) == sorted(runs)
    for run in found:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
        assert (run.info.status, steps) == ("FINISHED", list(range(1, EPOCHS + 1)))


def test_runs_on_two_nodes_end_with_the_weights_of_one_machine(cluster, small, undisturbed, tmp_path_factory):
    """And a third node, of another version, is refused with the difference."""
    fake = (
        "import importlib.metadata as metadata\n"
        "before = metadata.version\n"
        "metadata.version = lambda name: '0.0' if name == 'numpy' else before(name)\n"
    )
    strange = tmp_path_factory.mktemp("strange")
    (strange / "sitecustomize.py").write_text(fake)
    cluster.start(STRANGE, sorted(os.sched_getaffinity(0))[0], PYTHONPATH=str(strange))
    try:
        said = drive(small, cluster.environment, "ray", *RUNS, "student-0")
    finally:
        cluster.kill(STRANGE)
    assert f"warning: node {STRANGE} is not used: its numpy is 0.0, here {version('numpy')}" in said
    assert f"node {HEAD}" in said
    assert f"node {OTHER}" in said
    assert left(small) == undisturbed
    assert record.load("student-0").training.environment["teacher_record_id"] == record.load("custom-1").id
    assert {record.load(run).training.environment["threads"] for run in RUNS} == {1}
    check_store([*RUNS, "student-0"])
    for address in (HEAD, OTHER):
        assert (cluster.folder / address / "cifar10-small-models/data/cifar10/test_batch.bin").exists()


def test_driver_that_is_killed_resumes(cluster, small, undisturbed):
    with driving(small, cluster.environment, "ray", "custom-0") as process:
        until(process, "custom-0: epoch 2/")
        process.send_signal(signal.SIGKILL)
    assert "resumes after epoch" in drive(small, cluster.environment, "ray", "custom-0")
    assert left(small) == undisturbed
    check_store(["custom-0"])


def test_interrupted_driver_ends_what_runs_there(cluster, small):
    with driving(small, cluster.environment, "ray", "custom-0") as process:
        until(process, "custom-0: epoch 1/")
        process.send_signal(signal.SIGTERM)
        assert "terminated; the same command resumes it" in process.communicate(timeout=60)[0]
    assert process.returncode == 143
    training = record.load("custom-0").training
    assert (training.status, training.end_reason) == ("killed", "ended by SIGTERM")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RAY_ADDRESS": f"{HEAD}:1"}, f"error: RAY_ADDRESS: received {HEAD}:1, where nothing answers"),
        ({"RAY_ADDRESS": "ray://here:10001"}, "error: RAY_ADDRESS: received 'ray://here:10001'; allowed: HOST:PORT"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, f"error: RAY_ADDRESS: the cluster at {HEAD}:{PORT} refuses this token"),
    ],
    ids=["nothing there", "scheme", "token"],
)
def test_cluster_that_cannot_be_reached_is_one_line_in_seconds(cluster, small, change, said):
    began = time.monotonic()
    with driving(small, cluster.environment | change, "ray", "custom-0") as process:
        printed = process.communicate(timeout=60)[0].strip()
    assert printed.startswith(said)
    assert "\n" not in printed
    assert process.returncode == 1
    assert time.monotonic() - began < 30  # seconds on an idle machine


def test_launch_and_sweep_compute_on_the_cluster(cluster, tmp_path):
    clone = small_clone(tmp_path / "project", cluster.environment)
    tree = yaml.safe_load((clone / "params.yaml").read_text())
    space = {"learning_rate": {"choices": [0.01, 0.02]}}
    sweep = {"recipe": "custom", "trials": 2, "epochs": 1, "sampler": "grid", "pruner": "none", "space": space}
    (clone / "params.yaml").write_text(yaml.safe_dump(tree | {"sweeps": {"rate": sweep}}, sort_keys=False))
    sh("git commit -qam sweep", clone, cluster.environment)
    said = sh(f"{python()} -m pipeline.launch custom-0 --engine ray", clone, cluster.environment)
    assert "node 127.0.0." in said
    changed = json.loads(sh("dvc status --json", clone, cluster.environment))
    assert {"train@custom-0", "evaluate@custom-0"}.isdisjoint(changed)
    said = sh(f"{python()} -m pipeline.sweep rate --engine ray --write", clone, cluster.environment)
    assert "rate-trial-0: 92,027 parameters" in said
    assert "node 127.0.0." in said
    assert params.read(clone / "params.yaml").recipes["rate-best"].learning_rate in space["learning_rate"]["choices"]


def test_without_a_cluster_ray_runs_here_behind_a_token(environment, small):
    code = "import os, sys; sys.argv = ['', 'ray', 'custom-0']\n" + DRIVE.replace(
        "        driver = Driver(",
        "        import ray, subprocess\n"
        "        address = ray.get_runtime_context().gcs_address\n"
        "        bare = {key: it for key, it in os.environ.items() if not key.startswith('RAY_AUTH')}\n"
        "        asked = [sys.executable, '-m', 'ray.scripts.scripts', 'health-check', '--address', address]\n"
        "        answer = subprocess.run(asked, env=bare, capture_output=True, text=True)\n"
        "        print('STRANGER', answer.returncode, 'InvalidAuthToken' in answer.stderr)\n"
        "        driver = Driver(",
    )
    ours = {"MLFLOW_TRACKING_URI": f"sqlite:///{small}/mlflow.db", "PYTHONPATH": str(ROOT)}
    ours |= {"XDG_CACHE_HOME": str(small / "cache")}
    done = subprocess.run([python(), "-c", code], cwd=small, env=environment | ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "STRANGER 1 True" in done.stdout
    check_store(["custom-0"])


def test_ray_of_ones_own_in_a_folder_with_a_space_is_refused_in_one_line(environment, small):
    ours = {"MLFLOW_TRACKING_URI": f"sqlite:///{small}/mlflow.db", "PYTHONPATH": str(ROOT)}
    (small / "my project").symlink_to(sys.prefix)
    there = str(small / "my project/bin" / Path(sys.executable).name)
    asked = [there, "-c", DRIVE, "ray", "custom-0"]
    done = subprocess.run(asked, cwd=small, env=environment | ours, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --engine ray: Ray cannot start from a folder whose path has a space: {there}; move")


def test_node_that_is_killed_costs_the_epoch_in_flight(cluster, small, undisturbed):
    """The last test: it leaves one node."""
    with driving(small, cluster.environment, "ray", "custom-0", "custom-1") as process:
        (where,) = [line for line in until(process, "custom-0: epoch 2/") if line.startswith("custom-0: 92,027")]
        address = next(it for it in (HEAD, OTHER) if it in where)
        if address == HEAD:  # the head holds the cluster together: the other node is the one to die
            until(process, "custom-1: epoch")
        cluster.kill(OTHER)
        rest = process.communicate(timeout=400)[0]
        assert process.returncode == 0, rest
    assert "another worker resumes it" in rest
    assert f"node {HEAD}; resumes after epoch" in rest
    assert left(small) == undisturbed
    check_store(["custom-0", "custom-1"])
