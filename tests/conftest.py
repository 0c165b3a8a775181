"""A tiny CIFAR-10 of made-up images, the repository's params cut down to it, and clones of the repository."""

import copy
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import browser
import numpy as np
import pytest
import yaml

from pipeline.config import params
from pipeline.system.tensorflow_import import import_tensorflow

ROOT = Path(__file__).parents[1]
# Of `custom`, whatever trains it in params.yaml: known losses are of these values.
KNOWN = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.005, "norm_statistics": "moving"}
NO_FILES = {  # what may lie where a file is looked for, and how it is made there
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "circle": lambda path: path.symlink_to(path),
    "1 TiB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
}
# Of the slow tests, the files that take longest, the longest first: what is begun last should be short.
LONGEST = ("pipeline", "ray", "servers", "launch", "verify", "any_model", "faults", "sweep", "engine", "own_model")

# What a shell starts with & ignores Ctrl-C, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Orders the files by LONGEST, for `--no-loadscope-reorder`; within a file nothing changes."""
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def tracking_uri_of_the_environment():
    """An address set in the process, even by an earlier test, takes precedence over the environment's in MLflow."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)  # takes it out of the environment too
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def tensorflow():
    """TensorFlow, imported once, without its notes."""
    import_tensorflow()
    import tensorflow

    return tensorflow


@pytest.fixture(scope="session")
def tiny_cifar10(tmp_path_factory) -> Path:
    """Six files of 200 records each, as many of each class; brightness gives the class away."""
    folder = tmp_path_factory.mktemp("cifar10")
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), 20))
        pixels = random.integers(0, 30, (200, 3072)) + 22 * labels[:, None]
        np.concatenate([labels[:, None], pixels.astype(np.uint8)], 1).tofile(folder / name)
    return folder


def recorded_tree() -> dict:
    """The values of the repository's params.yaml, to be changed at will; of each recipe the lowest seed alone."""
    tree = copy.deepcopy(params.parse(ROOT / "params.yaml"))
    tree["recipes"]["custom"] |= KNOWN
    lowest: dict[str, str] = {}
    for name, run in sorted(tree["runs"].items(), key=lambda item: item[1]["seed"]):
        lowest.setdefault(run["recipe"], name)
    for section in (tree, tree["export"]):
        section["runs"] = {name: of for name, of in section["runs"].items() if name in lowest.values()}
    return tree


def tiny_tree() -> dict:
    """Training runs of seconds on the tiny data set: one epoch of 100 images."""
    tree = recorded_tree()
    tree["data"] |= {"train_images": 100, "val_images": 50, "test_images": 50}
    for recipe in tree["recipes"].values():
        recipe |= {"epochs": 1, "batch_size": 20, "learning_rate": 0.01}
    return tree


def keep_runs(tree: dict, *names: str) -> dict:
    """The tree with these runs alone in its lists of runs."""
    for section in (tree, tree["export"]):
        section["runs"] = {name: section["runs"][name] for name in names}
    return tree


def write_project(folder: Path, cifar10: Path, tree: dict) -> Path:
    """A working folder with params and data, and nothing recorded."""
    (folder / "data").mkdir()
    (folder / "data/cifar10").symlink_to(cifar10)
    (folder / "reference").symlink_to(ROOT / "reference")
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder


@pytest.fixture
def tree() -> dict:
    """The values of params.yaml, to be changed at will."""
    return recorded_tree()


@pytest.fixture
def tiny_params() -> dict:
    """The same for the tiny data set."""
    return tiny_tree()


@pytest.fixture
def project(tmp_path, tiny_cifar10, tiny_params, monkeypatch) -> Path:
    """A working folder with params and data, its own MLflow store, and nothing recorded; it is the cwd."""
    write_project(tmp_path, tiny_cifar10, tiny_params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def environment() -> dict:
    """As in a shell where only the virtual environment is active; the data is fetched once, into the repository."""
    done = subprocess.run([sys.executable, "-m", "pipeline.fetch"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"the data cannot be had here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "GIT_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CIFAR10_SOURCE": str(ROOT / "data/cifar10"),
    }


@pytest.fixture(scope="session")
def chromium():
    """The browser. Without one the tests are skipped, but fail in CI."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, browser.NAMES)), None)
    if path is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed: on Debian, apt-get install chromium")
    assert path, f"Chromium is not installed: none of {', '.join(browser.NAMES)} is on the PATH"
    with sync_playwright() as playwright:
        # A container's root cannot have the sandbox.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def sh(command: str, cwd: Path, environment: dict) -> str:
    """Runs a command line that must succeed; its output."""
    done = subprocess.run(
        command, shell=True, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def until(process: subprocess.Popen, start: str) -> list[str]:
    """What a process prints up to the line that starts so; if it ends before, the test fails and shows it."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(start):
            return said
    raise AssertionError("".join(said))


def small_clone(folder: Path, environment: dict, **recipe: int) -> Path:
    """A commit of the files as they are now, one small run in the list: two epochs, or as `recipe` says."""
    files = sh("git ls-files --cached --others --exclude-standard", ROOT, environment).splitlines()
    for name in files:
        if (ROOT / name).exists() and not name.startswith(("results/", "report/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    speed, calls = folder / "pipeline/evaluation/inference.py", "LATENCY_CALLS, THROUGHPUT_CALLS = 200, 20"
    assert speed.read_text().count(calls) == 1
    speed.write_text(speed.read_text().replace(calls, "LATENCY_CALLS, THROUGHPUT_CALLS = 20, 2"))
    tree = params.parse(ROOT / "params.yaml")
    tree["recipes"]["custom"] |= KNOWN
    tree["data"] |= {"train_images": 500, "val_images": 100, "test_images": 100}
    tree["recipes"]["custom"] |= {"epochs": 2, "batch_size": 100} | recipe
    keep_runs(tree, "custom-0")["export"]["calibration_images"] = 20
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sh("git init -q && git config user.name t && git config user.email t@example.org", folder, environment)
    sh("git add -A && git commit -qm files", folder, environment)
    return folder
