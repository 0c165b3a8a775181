"""What `mlflow run` did not finish logging is completed later, from its workspace."""

import contextlib
from pathlib import Path

import pytest

from pipeline import sync
from pipeline.records import record
from pipeline.system.file_lock import file_lock
from pipeline.tracking import address, pending, project_run, store


@pytest.fixture
def workspace(project, monkeypatch) -> Path:
    """An empty workspace of a repository in which nothing else is to be synced."""
    store.reconnect()
    monkeypatch.setattr(sync, "sync_records", lambda: None)
    folder = pending.WORKSPACES / "quick"
    folder.mkdir(parents=True)
    return folder


def parent() -> str:
    """The run that `mlflow run` makes, in an experiment of its own."""
    client = store.client()
    return client.create_run(client.create_experiment("called"), run_name="caring-grouse-973").info.run_id


def train(workspace: Path, run: str = "custom-0", ends: str | None = "finished") -> record.Record:
    with contextlib.chdir(workspace):
        params = {"model": "custom", "seed": 0, "epochs": 1, "train_images": 500, "val_images": 100}
        log = record.begin(run, "custom", params, {"commit": "abc", "dirty": True, "data_hash": "1"})
        log.add_epoch({"epoch": 1, "loss": 1.0, "accuracy": 0.1, "val_loss": 2.0, "val_accuracy": 0.2}, 1.0, 100.0)
        if ends:
            log.end(ends)
        return log


def by_name() -> dict:
    client = store.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run for run in runs}


def start(workspace: Path, monkeypatch, *runs: str) -> str:
    """What `mlflow run` sets, and what the workspace notes."""
    called = parent()
    with monkeypatch.context() as inside:
        inside.setenv("MLFLOW_RUN_ID", called)
        inside.setenv("MLFLOW_EXPERIMENT_ID", store.client().get_run(called).info.experiment_id)
        pending.note(workspace, list(runs))
    return called


def test_store_that_was_away_is_completed_by_the_next_repro_as_if_it_had_been_there(workspace, monkeypatch, capfd):
    train(workspace, "compact-0")  # of an earlier time
    called = start(workspace, monkeypatch, "custom-0", "compact-0", "baseline-0")
    log = train(workspace)
    sync.main()
    runs = by_name()
    assert set(runs) == {"caring-grouse-973", "custom-0", "compact-0"}
    made = runs["custom-0"]
    assert made.info.status == "FINISHED"
    assert made.info.experiment_id == runs["caring-grouse-973"].info.experiment_id
    assert made.data.tags["mlflow.parentRunId"] == called
    assert made.data.tags["record_id"] == log.id
    assert "replayed" not in made.data.tags
    assert runs["compact-0"].data.tags["replayed"] == "true"
    assert "mlflow.parentRunId" not in runs["compact-0"].data.tags
    assert not (workspace / pending.NOTE).exists()
    store.client().delete_run(made.info.run_id)
    sync.main()  # what is complete is not logged again
    assert "custom-0" not in by_name()
    assert capfd.readouterr().err == ""


def test_note_stays_until_the_store_has_it_all(workspace, monkeypatch, capfd):
    start(workspace, monkeypatch, "custom-0")
    train(workspace)

    def fail(*_):
        raise OSError("away")

    with monkeypatch.context() as away:
        away.setattr(store.client(), "set_terminated", fail)
        sync.main()
    assert "warning: MLflow could not log custom-0" in capfd.readouterr().err
    assert by_name()["custom-0"].info.status == "RUNNING"
    store.reconnect()
    sync.main()
    assert by_name()["custom-0"].info.status == "FINISHED"
    assert not (workspace / pending.NOTE).exists()


def test_workspace_in_use_is_left_alone(workspace, monkeypatch):
    start(workspace, monkeypatch, "custom-0")
    train(workspace)
    with file_lock(workspace, ""):
        sync.main()
    assert "custom-0" not in by_name()


def test_results_that_the_store_lacks_survive_the_next_use_of_the_workspace(workspace, project, monkeypatch, capfd):
    start(workspace, monkeypatch, "custom-0")
    train(workspace)
    (workspace / "data").mkdir()
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/gone/mlflow.db")
        pending.set_aside(workspace)
    said = capfd.readouterr().err
    assert f"they are for the one at {project}/mlflow.db; set MLFLOW_TRACKING_URI to it" in said
    assert [path.name for path in workspace.iterdir()] == ["data"]
    sync.main()
    assert by_name()["custom-0"].info.status == "FINISHED"


def test_note_of_a_store_that_moved_with_the_repository_is_completed(workspace, project, monkeypatch):
    monkeypatch.setattr(address, "root", lambda: Path.cwd())
    start(workspace, monkeypatch, "custom-0")
    train(workspace)
    moved = project.with_name("moved")
    project.rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
    store.reconnect()
    pending.complete_all()
    assert not (workspace / pending.NOTE).exists()


def test_note_holds_no_password(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    pending.note(workspace, ["custom-0"])
    assert "hunter2" not in (workspace / pending.NOTE).read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"runs": 3}'])
def test_damaged_note_is_named(content, workspace, capfd):
    (workspace / pending.NOTE).write_text(content)
    sync.main()
    said = capfd.readouterr().err
    assert said.startswith("warning: .workspaces/quick/unsynced.json: ")
    assert len(said.splitlines()) == 1


def test_parent_gets_a_name_and_a_note_unless_its_caller_gave_them(workspace, monkeypatch):
    called = parent()
    monkeypatch.setenv("MLFLOW_RUN_ID", called)
    project_run.describe("quick: epochs=1", "what it is")
    project_run.describe("quick: epochs=1", "what it is, and how it ended")
    for name, note in (("quick: epochs=1", "`mlflow run`: what it is, and how it ended"), ("mine", "my own")):
        run = store.client().get_run(called)
        assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == (name, note)
        store.client().set_tag(called, "mlflow.runName", "mine")
        store.client().set_tag(called, "mlflow.note.content", "my own")
        project_run.describe("quick: epochs=1", "what it is")
