"""A repository that is moved keeps its store whole; a copy never writes into the original."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from pipeline.tracking import address, experiment, relocation, store, sync


def opened(folder: Path, monkeypatch) -> MlflowClient:
    """The store of a folder, opened as the pipeline opens it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "mlflow.db"))
    store.reconnect()
    _artifact_repos_cache.clear()  # MLflow's, of this process: where it found a run's artifacts before
    return store.client()


def fill(client: MlflowClient) -> None:
    """Logs a run, with a metric, an artifact, a logged model and a registered one."""
    run = client.create_run(experiment.current_id(), run_name="filled")
    client.log_metric(run.info.run_id, "loss", 1.5, step=3)
    client.log_text(run.info.run_id, "of the run", "a b/text.txt")
    model = client.create_logged_model(run.info.experiment_id, "model", run.info.run_id)
    client.create_registered_model("registered")
    client.create_model_version("registered", f"{run.info.artifact_uri}/a b", run.info.run_id)
    client.create_model_version("registered", "models:/" + model.model_id, run.info.run_id, model_id=model.model_id)


def check(client: MlflowClient, folder: Path) -> None:
    """All that `fill` logged is there, and lies in this folder."""
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()], "run_name = 'filled'")
    assert run.data.metrics == {"loss": 1.5}
    assert [file.path for file in client.list_artifacts(run.info.run_id, "a b")] == ["a b/text.txt"]
    downloaded = download_artifacts(
        run_id=run.info.run_id, artifact_path="a b/text.txt", tracking_uri=address.store_uri()
    )
    assert Path(downloaded).read_text() == "of the run"
    (model,) = client.search_logged_models([run.info.experiment_id])
    versions = client.search_model_versions("name = 'registered'")
    locations = [run.info.artifact_uri, model.artifact_location, *(it.source for it in versions if it.source[0] != "m")]
    locations += [experiment.artifact_location for experiment in client.search_experiments()]
    assert len(locations) >= 4
    assert [location for location in locations if not location.startswith(f"{folder.as_uri()}/mlruns/")] == []


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dump_of(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


@pytest.fixture(scope="module", params=["ours", "made by MLflow"])
def template(request, tmp_path_factory) -> Path:
    """A store that was filled in `my projéct` beside it. MLflow's own has plain paths as locations, and no mark."""
    folder = tmp_path_factory.mktemp("base") / "my projéct"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "made by MLflow":
            patch.chdir(folder)
            SqlAlchemyStore(address.sqlite_uri(folder / "mlflow.db"), "./mlruns")
            patch.setenv("MLFLOW_EXPERIMENT_ID", "0")
        fill(opened(folder, patch))
    if request.param == "made by MLflow":
        with sqlite3.connect(folder / "mlflow.db") as connection:
            assert connection.execute("SELECT artifact_location FROM experiments").fetchone()[0][0] == "/"
            connection.execute("DELETE FROM experiment_tags")
    return folder.rename(folder.with_name("template"))


@pytest.fixture
def filled(template, monkeypatch) -> Iterator[Path]:
    """The folder in which the template was filled, as it was then; beside it nothing but the template.

    Each test needs names of its own beside it: MLflow keeps connections by address.
    """
    if not marked(template):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    yield shutil.copytree(template, template.with_name("my projéct"))
    for left in template.parent.iterdir():
        if left.is_symlink():
            left.unlink()
        elif left != template:
            shutil.rmtree(left)


@pytest.fixture
def base(filled) -> Path:
    """Where the filled folder lies."""
    return filled.parent


def new_artifacts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("new.txt") if "template" not in path.parts]


@pytest.mark.parametrize("name", ["moved", "100% of a#b?c", "my projéct/inside"])
def test_moved_store_finds_its_artifacts_and_new_ones_go_to_the_new_folder(name, filled, base, monkeypatch, capfd):
    before = dump_of(filled / "mlflow.db")
    filled.rename(base / "on the way")
    folder = base / name
    folder.parent.mkdir(exist_ok=True)
    (base / "on the way").rename(folder)
    client = opened(folder, monkeypatch)
    check(client, folder)
    said = capfd.readouterr().err
    assert f"note: the MLflow store {folder}/mlflow.db was made in {filled}" in said
    (backup,) = folder.glob("mlflow.db.backup-*")
    assert dump_of(backup) == before
    assert f"(before: {backup.name})" in said
    run = client.create_run(experiment.current_id())
    client.log_text(run.info.run_id, "new", "new.txt")
    (written,) = new_artifacts(base)
    assert written.is_relative_to(folder)
    check(opened(folder, monkeypatch), folder)  # once is enough
    assert list(folder.glob("mlflow.db.backup-*")) == [backup]
    assert "note:" not in capfd.readouterr().err


def test_copy_never_writes_into_the_original(filled, base, monkeypatch):
    before = bytes_of(filled)
    folder = base / "copy"
    shutil.copytree(filled, folder)
    client = opened(folder, monkeypatch)
    check(client, folder)
    for run in [client.create_run(experiment.current_id()), *client.search_runs([experiment.current_id()])]:
        client.log_text(run.info.run_id, "new", "new.txt")
    assert len(new_artifacts(base)) >= 2
    assert bytes_of(filled) == before


def test_copy_without_artifacts_says_where_they_are(filled, base, monkeypatch, capfd):
    if not marked(filled):
        pytest.skip("without a mark and without artifacts nothing tells a copy from a store whose artifacts lie apart")
    folder = base / "copy of the database"
    folder.mkdir()
    shutil.copy(filled / "mlflow.db", folder)
    client = opened(folder, monkeypatch)
    assert (
        f"warning: its artifacts are still in {filled}/mlruns: copy that folder to {folder}" in capfd.readouterr().err
    )
    client.log_text(client.create_run(experiment.current_id()).info.run_id, "new", "new.txt")
    assert not new_artifacts(filled)


def marked(folder: Path) -> bool:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return bool(connection.execute("SELECT * FROM experiment_tags WHERE experiment_id = 0").fetchall())


def test_store_where_it_was_made_is_left_alone(filled, base, monkeypatch, capfd):
    (base / "link").symlink_to(filled)
    for folder in (filled, base / "link"):
        opened(folder, monkeypatch)
        assert not relocation.is_moved(folder / "mlflow.db")
    assert capfd.readouterr().err == ""
    assert not list(filled.glob("mlflow.db.backup-*"))


def test_store_whose_artifacts_lie_apart_is_left_alone(tmp_path, monkeypatch, capfd):
    """MLflow was started in another folder than the database's."""
    for name in ("database", "started"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "started")
    SqlAlchemyStore(address.sqlite_uri(tmp_path / "database/mlflow.db"), "./mlruns")
    client = opened(tmp_path / "database", monkeypatch)
    assert client.get_experiment("0").artifact_location.startswith(str(tmp_path / "started"))
    assert capfd.readouterr().err == ""


def test_processes_that_open_a_moved_store_at_the_same_time_put_it_right_once(filled, base, monkeypatch):
    folder = filled.rename(base / "moved together")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(relocation.follow, [folder / "mlflow.db"] * 4))
    assert len(list(folder.glob("mlflow.db.backup-*"))) == 1
    check(opened(folder, monkeypatch), folder)


def test_failure_on_the_way_leaves_the_store_as_it_was(filled, base, monkeypatch, capfd):
    folder = filled.rename(base / "moved in part")
    before = bytes_of(folder)

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(relocation, "_write_mark", fail)
        broken.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "mlflow.db"))
        store.reconnect()
        assert sync.end_dead_runs() is None
    assert "warning: MLflow could not open its store" in capfd.readouterr().err
    assert bytes_of(folder) == before
    check(opened(folder, monkeypatch), folder)


def test_locked_store_is_put_right_later(filled, base, monkeypatch, capfd):
    folder = filled.rename(base / "moved while locked")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "mlflow.db"))
    monkeypatch.setattr(relocation, "TIMEOUT", 0.1)
    store.reconnect()
    lock = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    sync.end_dead_runs()
    lock.close()
    assert "(OperationalError: database is locked)" in capfd.readouterr().err
    check(opened(folder, monkeypatch), folder)


def test_sync_stage_knows_that_a_store_was_moved(filled, base, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(filled / "mlflow.db"))
    assert sync.in_sync([])
    folder = filled.rename(base / "moved and synced")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "mlflow.db"))
    assert not sync.in_sync([])


@pytest.mark.parametrize("content", [b"", b"no database"])
def test_file_that_is_no_store_is_no_moved_store(content, tmp_path, monkeypatch, capfd):
    (tmp_path / "mlflow.db").write_bytes(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(tmp_path / "mlflow.db"))
    store.reconnect()
    sync.end_dead_runs()
    said = capfd.readouterr().err
    assert said == "" if not content else "warning: MLflow could not open its store" in said
