"""A record that this code makes is confirmed; one changed line, digit or param is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, small_clone

from pipeline import verify
from pipeline.config import params
from pipeline.records import fingerprint, record, replay
from pipeline.system.command import PipelineError

ROWS = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "val_loss": 2.1, "val_accuracy": 0.1},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.4, "val_loss": 1.6, "val_accuracy": 0.3},
]
HERE = {"data_hash": "d", "processor": "this", "threads": 2, "tensorflow": "2.21.0"}


def trace(name="this code", digests=("a", "b"), states=None, environment=HERE, **changed):
    """Two epochs; `changed` replaces metrics of the second."""
    rows = [dict(ROWS[0]), ROWS[1] | changed]
    training = record.Training(
        record_id="1",
        run="custom-0",
        status="finished",
        recipe="custom",
        model="custom",
        seed=0,
        params={},
        started_ms=0,
        ended_ms=1,
        epochs=[
            record.EpochLog(epoch=number, ended_ms=1, epoch_seconds=1.0, images_per_second=1.0, weights_digest=digest)
            for number, digest in enumerate(digests, 1)
        ],
        environment=environment,
    )
    return replay.Trace(name, training, rows, states or {})


class TestFirstDifference:
    def test_equal_runs_have_none(self):
        assert replay.first_difference(trace(), trace("the record")) is None

    def test_metric_is_named_with_both_values(self):
        said = replay.first_difference(trace(), trace("the record", val_loss=1.7))
        assert said == "epoch 2: val_loss is 1.6 with this code, 1.7 with the record"

    def test_other_weights_of_equal_metrics_are_found(self):
        assert "epoch 2: equal metrics, but other weights" in replay.first_difference(
            trace(), trace(digests=("a", "c"))
        )

    def test_older_records_have_no_digests(self):
        assert replay.first_difference(trace(), trace(digests=("", ""))) is None

    def test_optimizer_state_is_compared_as_far_as_both_keep_it(self):
        ours, theirs = {2: ["w", "m"]}, {2: ["w", "m", "v"]}
        assert replay.first_difference(trace(states=ours), trace(states=theirs)) is None
        said = replay.first_difference(trace(states=ours), trace(states={2: ["w", "n"]}))
        assert said == "epoch 2: equal metrics, but 1 of the checkpoint's 2 arrays differ, array 1 first"


class TestAgainstRecord:
    @pytest.fixture
    def recorded(self, project, monkeypatch):
        """`recorded(theirs, ours)` verifies a record that holds the one trace, trained again as the other."""

        def verified(theirs, ours):
            log = record.Record(Path("results/custom-0"), theirs.training, theirs.history)
            monkeypatch.setattr(record, "load", lambda run: log)
            monkeypatch.setattr(replay, "train", lambda *_: ours)
            monkeypatch.setattr(fingerprint, "hash_data", lambda *_: "d")
            (project / "pipeline").mkdir(exist_ok=True)
            (project / "copy").mkdir(exist_ok=True)
            return verify.against_record("custom-0", 2, project / "copy")

        return verified

    def test_digests_show_that_it_is_the_same_bit_for_bit(self, recorded, capsys):
        assert recorded(trace(), trace())
        assert capsys.readouterr().out == "custom-0: epochs 1 to 2 reproduced bit for bit\n"

    def test_without_digests_it_is_equal_as_far_as_recorded(self, recorded, capsys):
        assert recorded(trace(digests=("", "")), trace())
        assert capsys.readouterr().out == "custom-0: epochs 1 to 2 equal in all recorded digits\n"

    def test_difference_on_the_same_machine_is_a_failure_however_small(self, recorded, capsys):
        assert not recorded(trace(loss=1.50001), trace())
        assert "epoch 2: loss is 1.5 with this code, 1.50001 with the record" in capsys.readouterr().out

    @pytest.mark.parametrize(("val_accuracy", "agrees"), [(0.34, True), (0.36, False)])
    def test_another_machine_may_differ_within_the_tolerance(self, recorded, capsys, val_accuracy, agrees):
        elsewhere = trace(environment=HERE | {"processor": "another"}, val_accuracy=val_accuracy, digests=("x", "y"))
        assert recorded(elsewhere, trace()) == agrees
        said = capsys.readouterr().out
        assert "processor is this, recorded: another" in said
        assert f"accuracy by {val_accuracy - 0.3:.4f} (allowed: 0.05)" in said

    def test_record_of_other_params_is_refused(self, recorded):
        other = trace()
        other.training.params = {"learning_rate": 0.5}
        with pytest.raises(PipelineError, match=r"learning_rate is 0.01 in params.yaml and 0.5 in the record"):
            recorded(other, trace())

    @pytest.mark.parametrize("status", ["killed", "failed", "running"])
    def test_record_that_is_not_finished_is_refused(self, recorded, status):
        theirs = trace()
        theirs.training.status = status
        with pytest.raises(PipelineError, match=f"custom-0 is {status}, not finished"):
            recorded(theirs, None)

    def test_record_of_other_data_is_refused_before_training(self, recorded):
        with pytest.raises(PipelineError, match="the data is not that of the record"):
            recorded(trace(environment=HERE | {"data_hash": "e"}), None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["custom-0", "--all", "--epochs", "3"], "exclude each other"),
        (["custom-0", "--epochs", "0"], "--epochs: received 0; allowed: 1 to 50"),
        (["custom-0", "--epochs", "51"], "--epochs: received 51; allowed: 1 to 50"),
        (["custom-0", "--overlay", "params.quick.yaml"], "--overlay needs --against"),
        (["custom-9"], "unknown run 'custom-9'"),
        (["custom-0", "--against", "no-such-commit"], "--against: received 'no-such-commit'"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.verify", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_overlay_may_list_the_run_and_give_it_a_teacher(project, monkeypatch):
    """A sweep whose recipe has a teacher that the overlay leaves out is no obstacle either."""
    listed = yaml.safe_load(Path("params.yaml").read_text())
    listed["recipes"]["custom"] |= {"teacher": "baseline-0", "teacher_weight": 0.5}
    listed["runs"]["custom-0"]["needs"] = "results/baseline-0/model.keras"
    Path("params.yaml").write_text(yaml.safe_dump(listed))
    student = {"recipe": "compact", "model": "compact", "seed": 0, "needs": "results/teacher-3/model.keras"}
    overlay = {"recipes": {"compact": {"teacher": "teacher-3", "teacher_weight": 0.5}}, "export": {"runs": {}}}
    overlay["runs"] = {"teacher-3": listed["runs"]["teacher-3"], "student-0": student}
    Path("overlay.yaml").write_text(yaml.safe_dump(overlay))
    trained = []

    def train(folder, *arguments):
        params.read(folder / "params.yaml")
        trained.append(arguments)
        return trace()

    monkeypatch.setattr(replay, "copy_code", lambda folder, commit=None: shutil.copy2("params.yaml", folder))
    monkeypatch.setattr(replay, "train", train)
    monkeypatch.setattr(sys, "argv", ["verify", "student-0", "--against", "HEAD", "--overlay", "overlay.yaml"])
    with pytest.raises(SystemExit) as ended:
        verify.main()
    assert ended.value.code == 0
    assert [(run, epochs, teacher) for run, epochs, _, teacher in trained] == [("student-0", 1, "teacher-3")] * 2


@pytest.mark.slow
def test_real_runs(tmp_path, environment):
    """A trained run is confirmed, code that changes nothing agrees, and one changed line of the loop does not."""

    def called(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.verify", "custom-0", *arguments],
            cwd=clone,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.returncode, done.stdout

    def changed():
        return subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout

    clone = small_clone(tmp_path / "a project", environment)
    (clone / "data").mkdir()
    (clone / "data/cifar10").symlink_to(ROOT / "data/cifar10")
    subprocess.run([sys.executable, "-m", "pipeline.train", "custom-0"], cwd=clone, env=environment, check=True)
    before = changed()
    status, said = called("--all")
    assert (status, said.splitlines()[-1]) == (0, "custom-0: epochs 1 to 2 reproduced bit for bit")

    assert "warning" not in said
    status, said = called("--against", "HEAD", "--epochs", "1")
    assert "terminated" not in said
    assert (status, said.splitlines()[-1]) == (0, "custom-0: epoch 1 equal bit for bit with commit HEAD")
    assert changed() == before
    overlay = clone / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"recipes": {"custom": {"epochs": 1}}}))
    loop = clone / "pipeline/training/loop.py"
    line = "scaled_loss = optimizer.scale_loss(loss)"
    assert loop.read_text().count(line) == 1
    loop.write_text(loop.read_text().replace(line, "scaled_loss = optimizer.scale_loss(1.01 * loss)"))
    status, said = called("--against", "HEAD", "--all", "--overlay", os.fspath(overlay))
    assert status == 1
    assert said.splitlines()[-1].startswith("custom-0: epoch 1: ")

    training = json.loads((clone / "results/custom-0/training.json").read_text())
    assert all(len(epoch["weights_digest"]) == 16 for epoch in training["epochs"])
