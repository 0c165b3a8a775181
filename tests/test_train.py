"""A training leaves a whole record and one MLflow run, and ends with one line when it cannot go on."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import yaml
from conftest import ROOT

from pipeline import tracking, train
from pipeline.config import params
from pipeline.records import record
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import store
from pipeline.training import dataset


@pytest.fixture(autouse=True)
def fresh_client():
    """Each test has a store of its own."""
    store.reconnect()


def run_training(monkeypatch, run="custom-0"):
    monkeypatch.setattr(sys, "argv", ["train", run])
    train.main()


def change(project, **values):
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["recipes"]["custom"] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(tree))


def mlflow_run():
    client = store.client()
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, run


def test_training_leaves_record_model_and_run(project, monkeypatch):
    change(project, epochs=2)
    run_training(monkeypatch)
    log = record.load("custom-0")
    assert [row["epoch"] for row in log.history] == [1, 2]
    assert log.training.status == "finished"
    assert log.training.environment["device"] == "CPU"
    model = keras.saving.load_model(log.model_file)
    assert model.count_params() == 92_027
    assert model.dtype_policy.name == "float32"
    _, val_split = dataset.read_train_val(record.DATA, 100, 50, 0)
    right = model.predict(val_split.images, verbose=0).argmax(1) == val_split.labels
    assert np.mean(right) == pytest.approx(log.history[-1]["val_accuracy"])

    client, run = mlflow_run()
    assert run.info.run_name == "custom-0"
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2"
    assert run.data.tags["data_hash"] == log.training.environment["data_hash"]
    note = run.data.tags["mlflow.note.content"].splitlines()
    assert note[0] == "Recipe `custom`, model `custom`, seed 0: 2 epochs of 100 images."
    assert note[-1].removesuffix(".").lower() == record.NOT_COMPARABLE
    assert run.inputs.dataset_inputs[0].dataset.name == "cifar10"
    for key in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second", "epoch_seconds"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == [1, 2]
    assert {"geometry.json", "history.csv"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    assert len(run.outputs.model_outputs) == 1


def test_student_learns_from_the_recorded_teacher(project, monkeypatch):
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["recipes"]["compact"] |= {"teacher": "custom-0", "teacher_weight": 0.5, "temperature": 4.0}
    tree["runs"]["compact-0"]["needs"] = "results/custom-0/model.keras"
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(PipelineError, match="train it with `dvc repro train@custom-0`"):
        run_training(monkeypatch, "compact-0")
    assert not (project / "results/compact-0").exists()
    run_training(monkeypatch)
    run_training(monkeypatch, "compact-0")
    teacher, student = record.load("custom-0"), record.load("compact-0")
    assert all(0 <= row["teacher_agreement"] <= 1 for row in student.history)
    assert "teacher_agreement" not in teacher.history[0]
    environment = student.training.environment
    assert environment["teacher_record_id"] == teacher.id
    assert environment["teacher_weights_digest"] == teacher.training.epochs[-1].weights_digest
    client = store.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.run = 'compact-0'")
    assert runs[0].data.params["teacher"] == "custom-0"
    assert runs[0].data.tags["teacher_record_id"] == teacher.id
    assert len(client.get_metric_history(runs[0].info.run_id, "teacher_agreement")) == len(student.history)
    other_splits = tree | {"data": tree["data"] | {"split_seed": 1}}
    (project / "params.yaml").write_text(yaml.safe_dump(other_splits))
    with pytest.raises(
        PipelineError,
        match=r"validation images now \(split_seed 0, val_images 50; now 1, 50\): train it again with `dvc repr",
    ):
        run_training(monkeypatch, "compact-0")
    more_images = tree | {"data": tree["data"] | {"val_images": 60}}
    (project / "params.yaml").write_text(yaml.safe_dump(more_images))
    with pytest.raises(PipelineError, match=r"validation images now \(split_seed 0, val_images 50; now 0, 60\)"):
        run_training(monkeypatch, "compact-0")
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    teacher.model_file.write_bytes(b"damaged")
    with pytest.raises(PipelineError, match=r"results/custom-0/model.keras cannot be loaded"):
        run_training(monkeypatch, "compact-0")


@pytest.mark.slow
def test_equal_weights_give_equal_files(project, monkeypatch):
    files = []
    for _ in range(2):  # two processes: a file must not depend on where things lie in memory
        code = "import pipeline.train as t, sys; sys.argv = ['train', 'custom-0']; t.main()"
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        files.append([(project / "results/custom-0" / name).read_bytes() for name in ("model.keras", "history.csv")])
    assert files[0] == files[1]


def test_record_names_the_code_that_trained_its_epochs(project, capsys):
    def begin(commit, dirty):
        environment = {"commit": commit, "dirty": dirty}
        return train.begin_or_resume("custom-0", params.read(), {"seed": 0}, environment)

    first, _ = begin("a", True)
    assert begin("a", True)[0].id == first.id
    second, found = begin("b", False)  # the user committed, after a second
    assert (second.id != first.id, found) == (True, None)
    assert second.training.environment == {"commit": "b", "dirty": False}
    row = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "learning_rate": 0.1}
    second.add_epoch(row, 1.0, 1.0)
    shutil.rmtree(record.CHECKPOINTS)  # somebody cleaned up
    train.write_checkpoint(second, {"seed": 0}, [np.zeros(1)])
    third, found = begin("c", False)
    assert (third.id, found.epoch, third.training.environment["commit"]) == (second.id, 1, "b")
    assert capsys.readouterr().err == ""


def test_training_that_was_begun_with_uncommitted_changes_says_so_when_it_resumes(project, capsys):
    log, _ = train.begin_or_resume("custom-0", params.read(), {"seed": 0}, {"commit": "a", "dirty": True})
    log.add_epoch({"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}, 1.0, 1.0)
    train.write_checkpoint(log, {"seed": 0}, [np.zeros(1)])
    train.begin_or_resume("custom-0", params.read(), {"seed": 0}, {"commit": "a", "dirty": True})
    assert capsys.readouterr().err == ""
    train.begin_or_resume("custom-0", params.read(), {"seed": 0}, {"commit": "b", "dirty": False})
    said = "warning: custom-0 was begun with uncommitted changes, and its record will say so; to begin anew, remove ch"
    assert said in capsys.readouterr().err


def test_second_training_of_a_run_at_the_same_time_is_refused(project, monkeypatch):
    monkeypatch.setattr(train, "TIMEOUT", 0.2)
    with (
        file_lock(record.CHECKPOINTS / "custom-0", ""),
        pytest.raises(PipelineError, match="being trained by another"),
    ):
        run_training(monkeypatch)


def test_divergence_is_one_line_and_a_failed_run(project, monkeypatch):
    change(project, learning_rate=100.0, momentum=0.99, epochs=100, schedule="constant", warmup_fraction=0.0)
    with pytest.raises(PipelineError, match=r"custom-0: the loss is (nan|inf).*lower recipes.custom.learning_rate"):
        run_training(monkeypatch)
    assert json.loads((project / "results/custom-0/training.json").read_text())["status"] == "failed"
    assert not (project / "results/custom-0/model.keras").exists()
    assert mlflow_run()[1].info.status == "FAILED"


def test_model_that_cannot_be_trained_is_one_line_and_no_run(project, monkeypatch):
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    logits = keras.Model(
        inputs, keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    )
    monkeypatch.setattr("pipeline.models.build", lambda name, seed: logits)
    with pytest.raises(PipelineError, match=r"custom-0: the outputs are no probabilities \(.*end with a softmax"):
        run_training(monkeypatch)
    assert not (project / "results").exists()


def test_interrupted_training_is_killed_not_running(project, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.loop.train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_training(monkeypatch)
    assert mlflow_run()[1].info.status == "KILLED"


def test_store_that_is_away_costs_a_warning(project, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    run_training(monkeypatch)
    assert record.load("custom-0").training.status == "finished"
    assert (project / "results/custom-0/model.keras").exists()
    warnings = capfd.readouterr().err
    assert "warning: MLflow could not open its store at http://127.0.0.1:9" in warnings
    assert "secret" not in warnings


def test_store_that_is_away_is_completed_later(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_training(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    store.reconnect()
    log = record.load("custom-0")
    tracking.sync_run(log)
    _, run = mlflow_run()
    assert run.data.tags["replayed"] == "true"
    assert run.info.start_time == log.training.started_ms
    assert run.info.end_time == log.training.ended_ms


def test_missing_data_is_named_with_the_fix(project, monkeypatch):
    (project / "data/cifar10").unlink()
    with pytest.raises(PipelineError, match=r"data_batch_1\.bin.*dvc repro fetch"):
        run_training(monkeypatch)


def test_gpu_without_one_is_an_error(project, monkeypatch):
    from pipeline.system import device

    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind=None: [])
    with pytest.raises(PipelineError, match=r"train\.device: received gpu, but TensorFlow sees no GPU"):
        device.resolve("gpu")


def test_float16_on_a_cpu_is_an_error():
    from pipeline.system import device

    with pytest.raises(PipelineError, match="received float16"):
        device.resolve("cpu", "float16")
