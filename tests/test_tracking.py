"""The store says what the record says, however often and whenever it is asked."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from conftest import ROOT, keep_runs
from mlflow.exceptions import BAD_REQUEST, MlflowException

from pipeline import sync, tracking, train, ui, workspace
from pipeline.records import files, record
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import address, experiment, runs, store
from pipeline.tracking import sync as tracking_sync


@pytest.fixture
def log(project) -> record.Record:
    """A finished run of three epochs, evaluated, without a model."""
    store.reconnect()
    made = record.begin(
        "custom-0",
        "custom",
        {"model": "custom", "seed": 0, "epochs": 3, "train_images": 45000, "val_images": 5000} | {"test_images": 10000},
        {"commit": "abc", "dirty": False, "data_hash": "123", "device": "CPU", "precision": "float32"},
    )
    for epoch in (1, 2, 3):
        row = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 0.1 * epoch, "val_loss": 2 / epoch, "val_accuracy": 0.2}
        made.add_epoch(row, 1.0, 100.0)
    made.end("finished")
    files.write_json(
        made.folder / "evaluation.json", {"test_accuracy": 0.8, "recall": {"cat": 0.5}, "confusion": [[1]]}
    )
    files.write_json(made.folder / "speed.json", {"latency_ms": 3.0, "evaluated_ms": record.now_ms(), "device": "CPU"})
    return record.load("custom-0")


def all_runs():
    client = store.client()
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def state():
    """All that the store holds, by run."""
    client = store.client()
    return {
        run.info.run_id: (
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            run.data.tags,
            {
                k: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, k)]
                for k in run.data.metrics
            },
        )
        for run in all_runs()
    }


def test_syncing_again_changes_nothing(log):
    tracking.sync_run(log)
    first = state()
    tracking.sync_run(log)
    assert state() == first
    ((status, started, ended, params, tags, metrics),) = first.values()
    assert (status, started, ended) == ("FINISHED", log.training.started_ms, log.training.ended_ms)
    assert params["epochs"] == "3"
    assert tags["replayed"] == "true"
    assert [step for step, *_ in metrics["loss"]] == [1, 2, 3]
    assert [time for *_, time in metrics["loss"]] == [row.ended_ms for row in log.training.epochs]
    assert metrics["test_accuracy"][0][:2] == (0, 0.8)
    assert metrics["latency_ms"][0][1] == 3.0


def test_live_syncing_epoch_by_epoch_gives_the_same_history(log):
    whole = (log.history, log.training.epochs)
    log.training.status = "running"
    for done in (1, 2):
        log.history, log.training.epochs = whole[0][:done], whole[1][:done]
        tracking.sync_run(log, live=True)
        assert all_runs()[0].info.status == "RUNNING"
    log.history, log.training.epochs = whole
    log.training.status = "finished"
    tracking.sync_run(log, live=True)
    ((status, *_, tags, metrics),) = state().values()
    assert status == "FINISHED"
    assert "replayed" not in tags
    assert [step for step, *_ in metrics["loss"]] == [1, 2, 3]


def break_off(log, monkeypatch, method):
    """Syncs to a server that goes away in this method, and comes back."""

    def fail(*_):
        raise OSError("the server went away")

    with monkeypatch.context() as broken:
        broken.setattr(store.client(), method, fail)
        assert tracking.sync_run(log) is None
    store.reconnect()


def test_sync_that_broke_off_is_completed(log, monkeypatch):
    break_off(log, monkeypatch, "set_terminated")
    tracking.sync_run(log)
    ((status, *_, metrics),) = state().values()
    assert status == "FINISHED"
    assert [step for step, *_ in metrics["loss"]] == [1, 2, 3]


def test_dataset_that_broke_off_is_logged_later(log, monkeypatch):
    break_off(log, monkeypatch, "log_inputs")
    tracking.sync_run(log)
    (run,) = all_runs()
    assert run.data.params["epochs"] == "3"
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["123"]


@pytest.mark.parametrize("method", ["create_experiment", "set_experiment_tag", "log_inputs"])
def test_what_another_process_made_at_the_same_time_is_shared(log, monkeypatch, capfd, method):
    real, calls = getattr(store.client(), method), []

    def lose_the_race(*arguments, **named):
        result = real(*arguments, **named)
        calls.append(arguments)
        if len(calls) <= 2:
            raise MlflowException("duplicate key value violates unique constraint", error_code=BAD_REQUEST)
        return result

    monkeypatch.setattr(store.client(), method, lose_the_race)
    assert tracking.sync_run(log)
    assert calls
    assert "warning" not in capfd.readouterr().err
    (run,) = all_runs()
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["123"]
    tags = store.client().get_experiment(run.info.experiment_id).tags
    assert set(experiment.TAGS) | {"mlflow.note.content"} <= set(tags)


def test_request_that_the_store_always_refuses_is_warned_of(log, monkeypatch, capfd):
    def refuse(*_):
        raise MlflowException("value too long", error_code=BAD_REQUEST)

    monkeypatch.setattr(store.client(), "log_inputs", refuse)
    assert tracking.sync_run(log) is None
    assert "value too long" in capfd.readouterr().err
    store.reconnect()


def list_custom_alone(project) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    keep_runs(tree, "custom-0")
    (project / "params.yaml").write_text(yaml.safe_dump(tree))


def test_sync_stage_knows_without_mlflow_that_nothing_is_missing(log, project, monkeypatch):
    list_custom_alone(project)
    sync.main()
    assert {run.info.run_name for run in all_runs()} == {"custom-0", "published-base", "published-custom"}
    first = state()

    def fail():
        raise AssertionError("MLflow was asked")

    with monkeypatch.context() as without:
        without.setattr(store, "client", fail)
        sync.main()
    assert state() == first
    (project / "mlflow.db").unlink()
    store.reconnect()
    sync.main()
    assert len(all_runs()) == 3


def test_published_history_is_in_the_store(project):
    store.reconnect()
    tracking.sync_reference("published-custom")
    tracking.sync_reference("published-custom")
    ((*_, metrics),) = state().values()
    assert [step for step, *_ in metrics["val_accuracy"]] == list(range(1, 51))
    assert metrics["val_accuracy"][-1][1] == 0.8239


def test_run_inside_mlflow_run_is_a_child(log, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "parent")
    tracking.sync_run(log, live=True)
    assert all_runs()[0].data.tags["mlflow.parentRunId"] == "parent"


def test_replayed_run_has_no_parent(log, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "parent")
    tracking.sync_run(log)
    assert "mlflow.parentRunId" not in all_runs()[0].data.tags


def test_other_evaluation_of_the_same_training_replaces_the_run(log):
    tracking.sync_run(log)
    log.evaluation["test_accuracy"] = 0.7
    files.write_json(log.folder / "evaluation.json", log.evaluation)
    tracking.sync_run(log)
    ((*_, metrics),) = state().values()
    assert [value for _, value, _ in metrics["test_accuracy"]] == [0.7]
    assert [step for step, *_ in metrics["loss"]] == [1, 2, 3]


def test_other_evaluation_of_a_copied_record_leaves_the_recorded_run(log, tmp_path, monkeypatch, capsys):
    tracking.sync_run(log)
    before = state()
    copy = tmp_path / ".workspaces/x"
    shutil.copytree("results", copy / "results")
    monkeypatch.setattr(address, "root", lambda: tmp_path)
    monkeypatch.chdir(copy)
    copied = record.load("custom-0")
    assert tracking.is_copied(copied)
    copied.evaluation["test_accuracy"] = 0.7
    tracking.sync_run(copied)
    assert state() == before
    assert "MLflow keeps the recorded results of custom-0, not those of this evaluation" in capsys.readouterr().err
    copied.training.record_id = "trained there"
    assert not tracking.is_copied(copied)
    monkeypatch.chdir(tmp_path)
    assert not tracking.is_copied(record.load("custom-0"))


def test_other_speed_of_the_same_evaluation_keeps_the_run_and_shows_the_later_one(log):
    tracking.sync_run(log)
    before = all_runs()[0].info.run_id
    log.speed |= {"latency_ms": 2.0, "evaluated_ms": log.speed["evaluated_ms"] + 1}
    files.write_json(log.folder / "speed.json", log.speed)
    tracking.sync_run(log)
    (run,) = all_runs()
    assert run.info.run_id == before
    assert run.data.metrics["latency_ms"] == 2.0


def test_metrics_of_another_model_are_not_shown(log):
    files.write_json(log.folder / "speed.json", log.speed | {"model_sha256": "of another"})
    log = record.load("custom-0")
    tracking.sync_run(log)
    assert "test_accuracy" not in all_runs()[0].data.metrics
    assert not {"evaluation.json", "curves.png"} & {path.name for path in log.files()}


def test_run_of_a_dead_process_is_ended_by_the_next_training(log):
    first, second = (begun(log, name) for name in ("baseline-0", "custom-0"))
    folders = [record.CHECKPOINTS / name for name in ("baseline-0", "custom-0")]  # `train` holds its own
    with file_lock(folders[0], ""), file_lock(folders[1], ""):
        for made in (first, second):
            tracking.sync_run(made, live=True)
        third = begun(log, "custom-0")
        tracking.Live(third, {"a.txt": "of no use"}).close(third)
        assert {run.data.tags["record_id"]: run.info.status for run in all_runs()} == {
            first.id: "RUNNING",  # its folder is locked: somebody trains there
            second.id: "KILLED",
            third.id: "RUNNING",
        }


def test_run_of_a_dead_process_is_ended_by_the_sync_stage(log, project):
    list_custom_alone(project)
    sync.main()
    log.training.status, log.training.record_id = "running", "of a killed one"
    tracking.sync_run(log, live=True)
    sync.main()
    (killed,) = [run for run in all_runs() if run.info.status == "KILLED"]
    assert killed.data.tags["end_reason"] == runs.GONE
    assert killed.data.tags["mlflow.note.content"].endswith(f"Killed: {runs.GONE}.")
    assert "RUNNING" not in [run.info.status for run in all_runs()]


def begun(log, name) -> record.Record:
    return record.begin(name, "custom", log.training.params, log.training.environment)


def test_run_that_goes_on_is_the_same_run(log):
    rows, epochs = log.history, log.training.epochs
    log.history, log.training.epochs = rows[:2], epochs[:2]
    log.end("killed")
    tracking.sync_run(log, live=True)
    assert all_runs()[0].info.status == "KILLED"
    resumed = record.resume("custom-0", log.training, log.history)
    live = tracking.Live(resumed, {})
    resumed.history, resumed.training.epochs = rows, epochs
    live.update(resumed)
    live._records.put(None)
    live._thread.join()
    assert all_runs()[0].info.status == "RUNNING"
    resumed.end("finished")
    tracking.sync_run(resumed, live=True)
    ((status, *_, tags, metrics),) = state().values()
    assert status == "FINISHED"
    assert tags["resumed_after_epochs"] == "2"
    assert [step for step, *_ in metrics["loss"]] == [1, 2, 3]


def test_store_that_failed_is_left_alone_for_a_while(log, monkeypatch, capfd):
    asked = []

    def fail():
        asked.append(1)
        raise OSError("away")

    with monkeypatch.context() as broken:
        broken.setattr(store, "client", fail)
        for _ in range(5):
            assert tracking.sync_run(log, live=True) is None
    assert len(asked) == 1
    assert capfd.readouterr().err.count("warning:") == 1
    store.reconnect()
    assert tracking.sync_run(log)


def test_note_says_what_the_run_is_and_what_came_of_it(log):
    tracking.sync_run(log)
    assert all_runs()[0].data.tags["mlflow.note.content"] == (
        "Recipe `custom`, model `custom`, seed 0: 3 epochs of 45,000 images.\n\nTest accuracy 80.00 %."
    )
    store.client().set_tag(all_runs()[0].info.run_id, "mlflow.note.content", "my own")
    log.training.environment["commit"] = "other"
    log.save_training()
    tracking.sync_run(log)
    assert all_runs()[0].data.tags["mlflow.note.content"] == "my own"


@pytest.mark.parametrize("status", ["failed", "killed"])
def test_run_that_ended_early_says_why_until_it_resumes(log, status):
    rows, logs = log.history, log.training.epochs
    log.history, log.training.epochs = rows[:2], logs[:2]
    log.evaluation, log.speed = {}, {}
    log.training.params["train_images"] = 1_000
    log.end(status, "interrupted by Ctrl-C")
    tracking.sync_run(log, live=True)
    tags = all_runs()[0].data.tags
    assert tags["end_reason"] == "interrupted by Ctrl-C"
    assert tags["mlflow.note.content"].endswith(f"figures.\n\n{status.capitalize()}: interrupted by Ctrl-C.")
    resumed = record.resume("custom-0", log.training, log.history)
    tracking.sync_run(resumed, live=True)
    assert "end_reason" not in all_runs()[0].data.tags
    resumed.history, resumed.training.epochs = rows, logs
    resumed.end("finished")
    tracking.sync_run(resumed, live=True)
    assert "Ctrl-C" not in all_runs()[0].data.tags["mlflow.note.content"]


def test_experiment_says_what_it_shows_and_is_laid_out(log, monkeypatch):
    tracking.sync_run(log)
    (run,) = all_runs()
    tags = store.client().get_experiment(run.info.experiment_id).tags
    assert "[report/README.md](" in tags["mlflow.note.content"] or "`report/README.md`" in tags["mlflow.note.content"]
    columns = json.loads(tags["mlflow.sharedViewState.table"])["selectedColumns"]
    named = [column.partition(".")[2].strip("`") for column in columns if column.startswith(("metrics", "params"))]
    known = run.data.metrics | run.data.params | dict.fromkeys(["parameters", "epoch_seconds", "val_accuracy"])
    assert set(named) <= set(known)
    store.client().set_experiment_tag(run.info.experiment_id, "mlflow.note.content", "my own")
    assert store.client().get_experiment(experiment.current_id()).tags["mlflow.note.content"] == "my own"
    given = store.client().create_experiment("made by mlflow run")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given)
    assert experiment.current_id() == given
    assert "curves of all runs" in store.client().get_experiment(given).tags["mlflow.note.content"]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert experiment.current_id() == "0"
    assert "mlflow.note.content" not in store.client().get_experiment("0").tags


@pytest.mark.parametrize(
    ("origin", "link"),
    [
        ("https://user:hunter2@example.org:8/a/b.git", "[report/README.md](https://example.org:8/a/b/blob/HEAD/report"),
        ("git@example.org:a/b.git", "`report/README.md`"),
        ("/srv/a b", "`report/README.md`"),
        ("", "`report/README.md`"),
    ],
)
def test_report_is_linked_where_the_repository_is_in_the_web(origin, link, tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if origin:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", origin], check=True)
    monkeypatch.setattr(address, "root", lambda: tmp_path)
    assert experiment._report().startswith(link)
    assert "hunter2" not in experiment._report()


def test_experiment_that_was_deleted_is_named_with_the_ways_out(log, monkeypatch, capfd):
    tracking.sync_run(log)
    store.client().delete_experiment(experiment.current_id())
    assert tracking.sync_run(log) is None
    warning = capfd.readouterr().err
    assert "the experiment 'cifar10' is deleted: restore it with `mlflow experiments restore -x 1`, or nam" in warning
    store.reconnect()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert tracking.sync_run(log)


def test_ui_prints_the_addresses_of_curves_and_table_and_starts_mlflow(log, project, monkeypatch, capsys):
    tracking.sync_run(log)
    started = []
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "argv", ["ui", "--port", "5001"])
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    store.client().create_registered_model("cifar10-small")
    ui.main()
    said = capsys.readouterr().out
    page = f"http://127.0.0.1:5001/#/experiments/{experiment.current_id()}/runs?workflowType=machine_learning"
    assert f"{page}&compareRunsMode=CHART\n" in said
    assert f"{page}&compareRunsMode=TABLE&viewStateShareKey=table\n" in said
    assert "models to take:       http://127.0.0.1:5001/#/models\n" in said
    assert started[0][1][1:] == ["-m", "mlflow", "ui", "--port", "5001"]
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == address.store_uri()


def broken(*_):
    raise KeyError("ours")


def test_bug_of_ours_is_not_called_the_stores_failure(log, monkeypatch):
    monkeypatch.setattr(runs, "find", broken)
    with pytest.raises(KeyError, match="ours"):
        tracking.sync_run(log)
    live = tracking.Live(log, {})
    with pytest.raises(KeyError, match="ours"):
        live.close(log)


@pytest.mark.parametrize(("epochs", "metrics"), [(1_000, 7), (1_000, 8), (3, 999), (1, 1_000), (0, 0)])
def test_epochs_are_sent_whole_and_no_call_has_more_than_mlflow_takes(epochs, metrics):
    sent = list(tracking_sync._batches([[(epoch, key) for key in range(metrics)] for epoch in range(epochs)]))
    assert [metric for batch in sent for metric in batch] == [(e, m) for e in range(epochs) for m in range(metrics)]
    for batch in sent:
        assert len(batch) <= 1_000
        assert len(batch) % metrics == 0


@pytest.mark.parametrize("text", ["[]", "{}", "{", ""])
@pytest.mark.parametrize("name", ["training.json", "evaluation.json", "speed.json"])
def test_damaged_record_is_named(log, name, text):
    (log.folder / name).write_text(text)
    with pytest.raises(PipelineError, match=rf"results/custom-0/{name} cannot be read"):
        record.load("custom-0")


def test_copies_inside_the_repository_share_its_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert address.database() == address.root() / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert address.database() == address.root() / "mlflow.db"
    copied = address.root() / ".workspaces/x/pipeline/tracking/address.py"
    monkeypatch.setattr(address, "__file__", str(copied))
    assert address.root() in copied.parents
    assert address.root().joinpath("Makefile").exists()


@pytest.mark.parametrize("name", ["my projéct", "100%", "a%20b", "a?b#c", "plain"])
def test_address_names_the_same_file_to_us_mlflow_and_sqlalchemy(name, tmp_path, monkeypatch):
    from mlflow.utils.file_utils import path_to_local_sqlite_uri
    from sqlalchemy import make_url

    path = tmp_path / name / "mlflow.db"
    ours = address.sqlite_uri(path)
    for given in (path_to_local_sqlite_uri(str(path)), ours, f"{ours}?timeout=9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert address.database() == path
        assert make_url(address.store_uri()).database == str(path)
    assert make_url(address.store_uri()).query == {"timeout": "9"}
    path.parent.mkdir()
    store.reconnect()
    run = store.client().create_run(experiment.current_id())
    store.client().log_text(run.info.run_id, "text", "a.txt")
    assert [file.read_text() for file in tmp_path.rglob("a.txt")] == ["text"]
    assert {child.name for child in tmp_path.iterdir()} == {name}
    assert {child.name for child in path.parent.iterdir()} == {"mlflow.db", "mlruns"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sqlite:////no/such/folder/mlflow.db", "the folder /no/such/folder does not exist: create it, or correct"),
        ("sqlite:///no%20such/mlflow.db", f"the folder {address.root()}/no such does not exist"),
        ("sqlite:////", "received 'sqlite:////', which is not a file; use sqlite:///mlflow.db"),
        ("sqlite://", "which names no file"),
        ("sqlite:///:memory:", "which names no file"),
        ("./mlruns", "received './mlruns', a folder; MLflow no longer keeps runs in folders: use sqlite:///mlflow.db"),
        ("file:///tmp/mlruns", "a folder; MLflow no longer keeps runs in folders"),
    ],
)
def test_address_that_can_never_work_is_refused_by_every_command_at_once(given, said, project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    store.reconnect()
    before = sorted(project.iterdir())
    for command in (sync.main, train.main, workspace.main):
        monkeypatch.setattr(sys, "argv", ["", "custom-0"])
        began = time.monotonic()
        with pytest.raises(PipelineError) as refused:
            command()
        assert time.monotonic() - began < 5
        assert said in str(refused.value)
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize("given", ["http://host:1", "postgresql://h/d", "databricks", "databricks://profile", "uc"])
def test_address_of_a_server_is_left_to_mlflow(given, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    address.check()
    assert address.store_uri() == given


def test_store_whose_folder_goes_away_is_warned_of_at_once(log, project, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/gone/mlflow.db")
    began = time.monotonic()
    tracking.end_dead_runs()
    assert time.monotonic() - began < 5
    said = capfd.readouterr().err
    assert said.startswith(f"warning: MLflow could not open its store at {project}/gone/mlflow.db (FileNotFound")
    assert said.endswith("`dvc repro` completes the store later.\n")
    assert not (project / "gone").exists()


def test_message_is_never_cut_within_an_address(monkeypatch, capfd):
    long = f"http://host:1/{'x' * 200}"

    def fail():
        raise OSError(f"no answer from {long}, nor\nfrom {long}")

    store.reconnect()
    monkeypatch.setattr(store, "client", fail)
    store.attempt("log", lambda: None)
    said = capfd.readouterr().err
    assert said.count(long) == 1
    assert f"no answer from {long}, nor from …)" in said


def test_message_in_a_temporary_copy_says_what_completes_the_store(tmp_path, monkeypatch):
    copied = tmp_path / ".dvc/tmp/exps/x"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    assert address.completed_later() == "`dvc exp apply` and `dvc repro` complete the store later"


def test_store_of_mlflows_former_kind_is_warned_of(project, monkeypatch, capfd):
    monkeypatch.setattr(address, "root", lambda: project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    list_custom_alone(project)
    (project / "mlruns/0").mkdir(parents=True)
    (project / "mlruns/0/meta.yaml").touch()
    ui = subprocess.run(["mlflow", "ui"], cwd=project, capture_output=True, text=True, timeout=60)
    assert ui.returncode != 0
    with pytest.raises(PipelineError, match=r"training\.json is not here"):
        sync.main()
    said = capfd.readouterr().err
    assert "mlruns/0/meta.yaml is of MLflow's former file store" in said
    assert "move mlruns/0/ elsewhere" in said


def test_stray_folder_that_mlflow_made_of_an_undecoded_address_goes_if_it_is_empty(tmp_path, monkeypatch):
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite

    monkeypatch.setenv("MLFLOW_RUN_ID", "made by mlflow run")
    for kept in (False, True):
        given = f"sqlite:///{tmp_path}/my%20project/b%C3%A9/mlflow.db"
        _make_parent_dirs_if_sqlite(given)
        if kept:
            (tmp_path / "my%20project/own").touch()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        tracking.use_callers_store()
        assert [path.name for path in tmp_path.iterdir()] == (["my%20project"] if kept else [])


def test_relative_address_under_mlflow_run_is_of_the_callers_folder(project, tmp_path, monkeypatch):
    """In the caller's folder runs a process that starts one in another folder, as `mlflow run <git address>` does."""
    caller, clone = tmp_path / "calle r", tmp_path / "clone"
    for folder in (caller, clone):
        folder.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.sqlite_uri(folder / "a b.db"))
        store.reconnect()
        run_id = store.client().create_run("0").info.run_id
        if folder == caller:
            called = run_id
    asked = "from pipeline.tracking import address, project_run as p; p.use_callers_store(); print(address.store_uri())"
    started = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {asked!r}], cwd={str(clone)!r})"
    environment = os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///a%20b.db?timeout=9", "PYTHONPATH": str(ROOT)}
    for run_id, expected in {
        called: address.sqlite_uri(caller / "a b.db") + "?timeout=9",
        "": address.sqlite_uri(ROOT / "a b.db") + "?timeout=9",  # not under `mlflow run`
    }.items():
        said = subprocess.run(
            [sys.executable, "-c", started],
            cwd=caller,
            env=environment | {"MLFLOW_RUN_ID": run_id},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:1/x", "http://host:1/x"),
        ("http://user:hunt/er2@hunter2@host:1", "http://host:1"),
        ("(postgresql://host/db?user=u&password=hunter2)", "(postgresql://host/db"),
        ("http://host:1/x and http://host:2", "http://host:1/x and http://host:2"),
    ],
)
def test_address_is_shown_without_its_secrets(text, shown):
    assert address.without_secrets(text) == shown


@pytest.mark.slow
def test_model_that_broke_off_is_logged_again_whole(log, tensorflow, monkeypatch):
    layers = tensorflow.keras.layers
    model = tensorflow.keras.Sequential([tensorflow.keras.Input((32, 32, 3)), layers.Flatten(), layers.Dense(10)])
    model.save(log.model_file)
    log.training.environment |= dict.fromkeys(("tensorflow", "keras", "mlflow"), "1")

    break_off(log, monkeypatch, "log_model_artifacts")
    for _ in range(2):
        assert tracking.sync_run(log)
    (run,) = all_runs()
    (model,) = store.client().search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert model.status == "READY"
    assert model.name == "custom-0"
    assert model.params["epochs"] == "3"
    assert store.client().search_logged_models(["0"]) == []


@pytest.mark.slow
def test_damaged_model_is_named_and_not_called_the_stores_failure(log):
    log.model_file.write_bytes(b"damaged")
    with pytest.raises(
        PipelineError, match=r"results/custom-0/model\.keras cannot be loaded .*dvc repro train@custom-0"
    ):
        tracking.sync_run(log)


def test_runs_of_one_record_made_at_the_same_time_become_one(log, monkeypatch):
    experiment_id, barrier = experiment.current_id(), threading.Barrier(2)
    create = store.client().create_run

    def create_together(*arguments):
        made = create(*arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(2)
        return made

    monkeypatch.setattr(store.client(), "create_run", create_together)
    with ThreadPoolExecutor(2) as pool:
        making = [pool.submit(runs.make, experiment_id, 1, {"record_id": "x"}, "x") for _ in range(2)]
        made = {done.result().info.run_id for done in making}
    assert {run.info.run_id for run in all_runs()} == made
    assert len(made) == 1


def test_machine_is_watched_while_a_training_goes_on(log, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    made, end = begun(log, "custom-0"), time.monotonic() + 30
    assert all_runs() == []  # makes the store
    live = tracking.Live(made, {})
    while not any(name.startswith("system/") for run in all_runs() for name in run.data.metrics):
        assert time.monotonic() < end
        time.sleep(0.1)
    made.end("finished")
    live.close(made)
    assert [run.info.status for run in all_runs()] == ["FINISHED"]


def test_driver_that_is_missing_costs_a_warning(project, monkeypatch, capsys):
    store.reconnect()

    def missing(_):
        raise ModuleNotFoundError("No module named 'pymysql'")

    monkeypatch.setattr("mlflow.MlflowClient", missing)
    assert store.attempt("log custom-0", lambda: 1) is None
    assert "No module named 'pymysql': install it, or correct MLFLOW_TRACKING_URI" in capsys.readouterr().err
    store.reconnect()


def test_search_of_several_pages_finds_all():
    class Page(list):
        token = ""

    first, last = Page([1, 2]), Page([3])
    first.token = "next"
    assert list(store.pages(lambda page_token="": {"": first, "next": last}[page_token])) == [1, 2, 3]
