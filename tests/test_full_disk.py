"""On a full disk every command ends with one line, or goes on with a warning; what is left is whole, or not there."""

import contextlib
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, keep_runs, tiny_tree, write_project
from factories import list_runs, report_files, write_run

from pipeline import compare, fetch, sources, sync, train, workspace
from pipeline.records import record
from pipeline.system import command
from pipeline.tracking import experiment, store

pytestmark = pytest.mark.faults

EPOCHS = 3
FULL = "No space left on device"


class Disk:
    """A file system of so many bytes; a folder of the project lies on it."""

    def __init__(self, place: Path, size: str):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no small disk can be made here: {made.stderr.strip()}")

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.place], check=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.place / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def empty(self) -> None:
        (self.place / "filler").unlink()


@pytest.fixture
def disk():
    """Makes small disks; they are gone after the test."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("small disks are made by root on Linux only")
    made = []

    def make(place: Path, size: str) -> Disk:
        made.append(Disk(place, size))
        return made[-1]

    yield make
    for one in made:
        subprocess.run(["umount", "--lazy", one.place], check=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ends(main) -> str:
    """What a command that must fail says: one line."""
    with pytest.raises(SystemExit) as ended:
        command.run(main)
    said = str(ended.value)
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    return said


class TestFetch:
    @pytest.fixture
    def source(self, tmp_path, monkeypatch):
        """Six files of 40 records, 0.7 MB, in place of the published ones; data/cifar10 is fetched into the cwd."""
        (tmp_path / "source").mkdir()
        md5s = {}
        for number, name in enumerate(sources.MD5S):
            content = np.random.default_rng(number).integers(0, 10, 40 * 3073, np.uint8).tobytes()
            (tmp_path / "source" / name).write_bytes(content)
            md5s[name] = hashlib.md5(content).hexdigest()
        monkeypatch.setattr(sources, "FILE_BYTES", 40 * 3073)
        monkeypatch.setattr(sources, "MD5S", md5s)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "params.yaml").touch()
        return tmp_path / "source"

    def check(self, disk: Disk) -> None:
        """Fails on the disk as it is, and succeeds on a larger one."""
        said = ends(fetch.main)
        assert FULL in said
        assert "0.5 GB is needed" in said
        assert names(Path("data")) <= {".fetch.lock"}
        disk.resize("8m")
        fetch.main()
        assert sources.complete(Path("data/cifar10"))

    def test_records_do_not_fit(self, source, disk, monkeypatch):
        monkeypatch.setenv("CIFAR10_SOURCE", str(source))
        self.check(disk(Path("data"), "512k"))

    def test_archive_does_not_fit(self, source, disk, monkeypatch):
        subprocess.run(["tar", "czf", source / "cifar-10-binary.tar.gz", "-C", source, *sources.MD5S], check=True)
        archive = source / "cifar-10-binary.tar.gz"
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=source)
        monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        monkeypatch.delenv("CIFAR10_SOURCE", raising=False)
        monkeypatch.setenv("NO_PROXY", "*")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            monkeypatch.setattr(sources, "ARCHIVE_URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
            monkeypatch.setattr(sources, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
            monkeypatch.setattr(sources, "DOWNLOADS", {"the archive": sources.from_url})
            self.check(disk(Path("data"), "64k"))
            server.shutdown()

    def test_no_room_for_a_lock(self, source, disk, monkeypatch):
        monkeypatch.setenv("CIFAR10_SOURCE", str(source))
        disk(Path("data"), "8m,nr_inodes=1")
        assert FULL in ends(fetch.main)

    def test_folder_that_may_not_be_written(self, source, monkeypatch):
        monkeypatch.setenv("CIFAR10_SOURCE", str(source))
        with unwritable(Path("data")):
            assert "data/cifar10 cannot be written: [Errno" in ends(fetch.main)


@contextlib.contextmanager
def unwritable(folder: Path):
    """A folder that even root may not write."""
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("folders cannot be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def trained_tree() -> dict:
    """A tiny training run of some epochs."""
    tree = tiny_tree()
    tree["recipes"]["custom"] |= {"epochs": EPOCHS, "flip": "random", "ema_decay": 0.9}
    return keep_runs(tree, "custom-0")


@pytest.fixture
def trained(project, monkeypatch, tensorflow):
    """The project of `trained_tree`; `train.main` trains."""
    (project / "params.yaml").write_text(yaml.safe_dump(trained_tree()))
    monkeypatch.setattr(sys, "argv", ["", "custom-0"])
    store.reconnect()
    yield project
    store.reconnect()


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_cifar10) -> tuple[bytes, bytes]:
    """What the same run leaves with room enough, of what is equal for equal weights."""
    folder = write_project(tmp_path_factory.mktemp("undisturbed"), tiny_cifar10, trained_tree())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    subprocess.run([sys.executable, "-m", "pipeline.train", "custom-0"], cwd=folder, env=environment, check=True)
    return left(folder)


def left(project: Path) -> tuple[bytes, bytes]:
    return tuple((project / "results/custom-0" / name).read_bytes() for name in ("model.keras", "history.csv"))


def check_store() -> None:
    """One finished run, each step once, with its model."""
    store.reconnect()
    client = store.client()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (run,) = [run for run in found if run.data.tags.get("published") != "true"]
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert "history.csv" in {item.path for item in client.list_artifacts(run.info.run_id)}
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.slow
class TestTrain:
    @pytest.mark.parametrize(("size", "warned"), [("400k", [1, 2, 3]), ("1600k", [2, 3])])
    def test_training_goes_on_without_checkpoints(self, trained, weights, disk, capfd, size, warned):
        disk(trained / "checkpoints", size)
        command.run(train.main)
        assert left(trained) == weights
        said = capfd.readouterr().err
        for epoch in range(1, EPOCHS + 1):
            assert (f"warning: epoch {epoch} is not on disk ([Errno 28] {FULL}" in said) == (epoch in warned)
        assert not list((trained / "checkpoints").rglob("*.ckpt")) + list((trained / "checkpoints").rglob(".*.partial"))
        assert record.load("custom-0").training.status == "finished"

    @pytest.mark.parametrize("size", ["64k", "300k", "600k"])  # nothing of the model; a part; the first of two copies
    def test_model_does_not_fit(self, trained, weights, disk, capfd, size):
        small = disk(trained / "results", size)
        said = ends(train.main)
        assert "custom-0: " in said
        assert FULL in said
        assert said.endswith("; the same command resumes it")
        assert names(trained / "results/custom-0") == {"history.csv", "training.json"}
        assert record.load("custom-0").training.status == "failed"
        capfd.readouterr()

        small.resize("4m")
        command.run(train.main)
        assert f"resumes after epoch {EPOCHS}" in capfd.readouterr().out
        assert left(trained) == weights
        check_store()

    def test_nothing_fits_at_the_end(self, trained, weights, disk, capfd, monkeypatch):
        small, save = disk(trained / "results", "4m"), train.keras_file.save

        def fill(*_):
            small.fill()
            save(*_)

        with monkeypatch.context() as patch:
            patch.setattr(train.keras_file, "save", fill)
            said = ends(train.main)
        assert FULL in said
        assert names(trained / "results/custom-0") == {"history.csv", "training.json"}
        small.empty()
        command.run(train.main)
        assert left(trained) == weights
        check_store()

    def test_nothing_fits_at_all(self, trained, disk):
        disk(trained / "results", "4k")
        assert FULL in ends(train.main)
        assert not list((trained / "results").rglob("*.keras"))

    def test_results_that_may_not_be_written(self, trained):
        with unwritable(trained / "results"):
            assert "Operation not permitted" in ends(train.main)


@pytest.mark.slow
class TestStore:
    @pytest.mark.parametrize("full_from", [0, 2])
    def test_training_goes_on_and_the_sync_stage_completes_it(
        self, trained, weights, disk, capfd, monkeypatch, full_from
    ):
        small, add_epoch = disk(trained / "store", "16m"), record.Record.add_epoch
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/store/mlflow.db")
        if not full_from:
            experiment.current_id()  # the store is there, and full
            small.fill()

        def fill(self, row, *rest):
            if row["epoch"] == full_from:
                small.fill()
            add_epoch(self, row, *rest)

        monkeypatch.setattr(record.Record, "add_epoch", fill)
        command.run(train.main)
        assert left(trained) == weights
        said = capfd.readouterr().err
        assert "warning: MLflow could not" in said
        assert "Traceback" not in said
        small.empty()
        store.reconnect()
        sync.main()
        check_store()

    def test_store_that_cannot_be_made(self, trained, weights, disk, capfd, monkeypatch):
        small = disk(trained / "store", "100k")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/store/mlflow.db")
        command.run(train.main)
        assert left(trained) == weights
        said = capfd.readouterr().err
        assert "warning: MLflow could not" in said
        assert "Traceback" not in said
        small.resize("16m")
        store.reconnect()
        sync.main()
        check_store()


class TestEvaluate:
    @pytest.mark.parametrize(
        "room", [65_536, *(pytest.param(room, marks=pytest.mark.slow) for room in (4_096, 131_072))]
    )
    def test_outputs_do_not_fit(self, tmp_path, monkeypatch, disk, tensorflow, room):
        from factories import EvaluateStage, tiny_model

        from pipeline import evaluate

        small = disk(tmp_path / "results", "4m")
        stage = EvaluateStage(tmp_path, monkeypatch)
        stage.save(tiny_model())
        before = stage.files()
        small.resize(f"{shutil.disk_usage(small.place).used + room}")
        assert FULL in ends(evaluate.main)
        after = stage.files()
        assert not [name for name in after if name.endswith(".partial")]
        assert "evaluation.json" not in after
        assert before.items() <= after.items()
        assert record.load("custom-0").evaluation == {}
        assert stage.logged == []
        small.resize("4m")
        evaluate.main()
        assert record.load("custom-0").evaluation


class TestCompare:
    @pytest.fixture
    def workplace(self, tmp_path, monkeypatch):
        shutil.copytree(ROOT / "reference", tmp_path / "reference")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["compare"])
        list_runs("custom-0")
        write_run("custom-0")
        return tmp_path

    @pytest.mark.parametrize("size", ["4k", "64k", "100k"])
    def test_first_report_does_not_fit(self, workplace, disk, size):
        small = disk(workplace / "report", size)
        assert FULL in ends(compare.main)
        assert names(workplace / "report") == set()
        small.resize("4m")
        compare.main()
        assert len(names(workplace / "report")) == 9

    def test_earlier_report_stays(self, workplace, disk):
        small = disk(workplace / "report", "4m")
        compare.main()
        before = report_files()
        small.fill()
        filler = {"filler": (workplace / "report/filler").read_bytes()}
        write_run("custom-0", test_accuracy=0.5)
        assert FULL in ends(compare.main)
        assert report_files() == before | filler


@pytest.mark.parametrize("size", ["4k", "64k"])
def test_workspace_does_not_fit(tmp_path, monkeypatch, disk, size):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/one").write_bytes(bytes(100_000))
    (tmp_path / "results/other").write_bytes(bytes(100_000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workspace", "name"])
    monkeypatch.setattr(workspace, "reproduce", lambda *_: pytest.fail("DVC must not run in a part of a copy"))
    disk(tmp_path / ".workspaces", size)
    said = ends(workspace.main)
    assert ".workspaces/name cannot be written: " in said
    assert FULL in said
