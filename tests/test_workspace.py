"""A workspace has params of its own and leaves everything else alone."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, until
from mlflow.projects.utils import load_project

from pipeline import workspace
from pipeline.config import overrides, params
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock
from pipeline.tracking import store


def test_second_run_in_a_workspace_is_refused(project, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["workspace", "w"])
    monkeypatch.setattr(workspace, "reproduce", lambda *_: pytest.fail("it began"))
    with file_lock(workspace.FOLDER / "w", ""), pytest.raises(PipelineError, match="w is in use by another run; wait"):
        workspace.main()


def test_copy_starts_from_the_recorded_results_each_time(tmp_path, monkeypatch, tree):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "results/a/x.json": "recorded",
        "dvc.yaml": "",
        "params.yaml": "mine",
        ".dvc/config": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    copied = workspace.FOLDER / "w"
    copied.mkdir(parents=True)
    for _ in range(2):
        workspace.copy(copied, tree)
        assert (copied / "results/a/x.json").read_text() == "recorded"
        assert params.read(copied / "params.yaml").recipes
        (copied / "results/a/x.json").write_text("changed")
        (copied / "results/b").mkdir()
    assert (tmp_path / "params.yaml").read_text() == "mine"
    assert (tmp_path / "results/a/x.json").read_text() == "recorded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-S", "recipes.custom=3", "-S", "epochs=4"], "recipes.custom: received 3; allowed: a mapping"),
        (["-S", "runs.custom-0=3", "-S", "epochs=4", "--run", "custom-0"], "runs.custom-0: received 3; allowed"),
        (
            ["-S", "runs.a-0={recipe: no, model: custom, seed: 0, needs: x}", "-S", "epochs=4", "--run", "a-0"],
            "received 'no'",
        ),
        (["-S", "epochs"], "-S: received 'epochs'; allowed: KEY=VALUE"),
        (["-S", "." * 9_000 + "=1"], "unknown key ''"),
        (["-S", "a\nb=1"], r"unknown key 'a\nb'"),
        (["-S", "epochs=[*a"], "-S epochs is not valid YAML"),
        (["-S", "epochs=!!int x"], "a tag, which begins with '!', is not allowed"),
        (["--overlay", "/dev/zero"], "/dev/zero cannot be read: it is no regular file"),
        (["--overlay", "/no/such/file\udcff"], "/no/such/file\udcff is not here"),
        (["--run", "no\nsuch"], r"unknown run 'no\nsuch'"),
    ],
)
def test_bad_changes_end_with_one_line_and_make_no_workspace(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workspace", "name", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.run(workspace.main)
    assert said in str(ended.value)
    assert len(str(ended.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_name_that_is_no_text_is_printed_all_the_same():
    code = "from pipeline.system import command; command.run(lambda: print('\\udcff'))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\\udcff\n", "")


def arguments(monkeypatch, *given):
    monkeypatch.setattr(sys, "argv", ["workspace", *given])
    return workspace.parse()


@pytest.mark.parametrize("key", [*params.Recipe.model_fields, *params.Data.model_fields, *params.Train.model_fields])
def test_every_key_can_be_given_to_mlflow_run(key, tree, project, monkeypatch):
    """-P KEY=VALUE becomes --KEY VALUE."""
    before = params.read().model_dump()
    value = (before["data"] | before["train"] | before["recipes"]["custom"])[key]
    other = {"schedule": "cosine", "device": "cpu", "xla": "off", "precision": "float32", "optimizer": "adamw"}
    other |= {"flip": "random", "model": "compact", "momentum": 0.5, "learning_rate": 0.5}
    other |= {"augment_policy": "trivial", "teacher": "baseline-0", "norm_statistics": "precise"}
    pairs = (("augment_policy", "augment_strength"), ("teacher", "teacher_weight"))
    also = {name: other.get(name, 0.25) for pair in pairs if key in pair for name in pair}
    wanted = other.get(key, value * 2 or 1 if isinstance(value, int) else 0.25)
    assert wanted != value
    words = [word for name, it in (also | {key: wanted}).items() for word in (f"--{name}", str(it))]
    given = arguments(monkeypatch, "run", "--run", "custom-0", *words)
    after, run = workspace.changed_params(given)
    assert run == "custom-0"
    assert (after["data"] | after["train"] | after["recipes"]["custom"])[key] == wanted
    assert after["recipes"]["compact"] == before["recipes"]["compact"]


def test_sweep_of_a_student_whose_teacher_is_left_out_is_no_obstacle(project, monkeypatch):
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["recipes"]["custom"] |= {"teacher": "baseline-0", "teacher_weight": 0.5}
    tree["runs"]["custom-0"]["needs"] = "results/baseline-0/model.keras"
    tree["sweeps"] = {"warmth": tree["sweeps"]["custom-rate"] | {"space": {"temperature": {"choices": [2.0, 4.0]}}}}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    after, _ = workspace.changed_params(arguments(monkeypatch, "run", "--recipe", "compact"))
    assert list(after["runs"]) == ["compact-0"]


def test_mlflow_logs_no_parameter_that_was_not_given(monkeypatch):
    project = load_project(str(ROOT))
    for name in ("main", "quick", "run"):
        final, extra = project.get_entry_point(name).compute_parameters({"epochs": "2"}, None)
        assert final | extra == {"epochs": "2"}
        _, _, *words = shlex.split(project.get_entry_point(name).compute_command({"epochs": "2"}, None))
        assert arguments(monkeypatch, *words[1:]).settings == ["epochs=2"]


@pytest.mark.parametrize(
    ("run", "recipe", "seed", "selected", "listed"),
    [
        ("", "", None, "", ["a-0", "a-1", "b-0"]),
        ("", "a", None, "", ["a-0", "a-1"]),
        ("", "c", None, "", ["c-0"]),
        ("", "", 7, "", ["a-7", "b-7"]),
        ("", "c", 7, "", ["c-7"]),
        ("a-1", "", None, "a-1", ["a-0", "a-1", "b-0"]),
        ("a-1", "", 7, "a-7", ["a-0", "a-1", "b-0", "a-7"]),
        ("a-1", "c", None, "c-1", ["a-0", "a-1", "b-0", "c-1"]),
    ],
)
def test_recipe_and_seed_select_runs(run, recipe, seed, selected, listed, tree):
    tree["recipes"] = {name: tree["recipes"]["custom"] for name in "abc"}
    needs = {"needs": "data/cifar10"}
    listed_runs = (("a", 0), ("a", 1), ("b", 0))
    tree["runs"] = {f"{r}-{s}": {"recipe": r, "model": "custom", "seed": s, **needs} for r, s in listed_runs}
    tree["export"]["runs"], tree["sweeps"] = {"a-0": {"max_bytes": 1}}, {}
    assert overrides.select_runs(tree, run, recipe, seed) == selected
    assert list(tree["runs"]) == listed
    checked = params.check(tree)
    for name, chosen in checked.runs.items():
        assert name == f"{chosen.recipe}-{chosen.seed}"


def test_recipe_and_seed_that_the_list_has_keep_their_name(tree):
    tree["runs"], tree["export"]["runs"] = {"base": tree["runs"]["custom-0"]}, {}
    overrides.select_runs(tree, "base", "custom", 0)
    assert list(params.check(tree).runs) == ["base"]


def test_student_is_chosen_with_its_teacher(project, monkeypatch):
    """`mlflow run -P teacher=…` for one recipe: the teacher is trained too, and the student waits for it."""
    settings = ["-S", "recipes.custom.teacher=baseline-0", "-S", "recipes.custom.teacher_weight=0.5"]
    tree, _ = workspace.changed_params(arguments(monkeypatch, "all", "--recipe", "custom", *settings))
    assert list(tree["runs"]) == ["custom-0", "baseline-0"]
    assert tree["runs"]["custom-0"]["needs"] == "results/baseline-0/model.keras"
    assert tree["runs"]["baseline-0"]["needs"] == "data/cifar10"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--recipe", "kustom"], "recipe: received 'kustom'; allowed: one of baseline, "),
        (["--run", "no-0", "--seed", "1"], "unknown run 'no-0'"),
        (["--seed", "abc"], "seed: received 'abc'; allowed: a whole number"),
        (["--seed", "-1"], "seed: received -1; allowed: a whole number from 0"),
        (["--epochs"], "received '--epochs'; allowed: --KEY VALUE"),
        (["epochs", "3"], "received 'epochs 3'; allowed: --KEY VALUE"),
        (["--epoch", "3"], "unknown key epoch; "),
    ],
)
def test_bad_parameters_of_mlflow_run_end_with_one_line(given, said, project, monkeypatch):
    with pytest.raises(PipelineError) as refused:
        workspace.changed_params(arguments(monkeypatch, "run", *given))
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_refused_mlflow_run_says_why_in_the_store(project, monkeypatch):
    store.reconnect()
    called = store.client().create_run("0", run_name="caring-grouse-973").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", called)
    monkeypatch.setattr(sys, "argv", ["workspace", "run", "--run", "custom-0", "--seed", "1", "--epochs", "abc"])
    with pytest.raises(PipelineError, match="received 'abc'"):
        workspace.main()
    run = store.client().get_run(called)
    assert run.info.run_name == "run custom-0: epochs=abc, seed=1"
    assert "epochs: received 'abc'" in run.data.tags["mlflow.note.content"]


def test_local_copy_of_the_data_is_found_from_the_copy_too(tmp_path, monkeypatch):
    told = {}

    class Ended:
        pid = 0

        def __init__(self, *_, env, **named):
            told.update(env)

        def wait(self):
            return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFAR10_SOURCE", "cifar-10-binary.tar.gz")
    monkeypatch.setattr(workspace.subprocess, "Popen", Ended)
    assert workspace.reproduce(tmp_path, []) == 0
    assert told["CIFAR10_SOURCE"] == str(tmp_path / "cifar-10-binary.tar.gz")


@pytest.mark.parametrize(
    ("sent", "told", "status"),
    [(signal.SIGTERM, "TERM", 3), (signal.SIGINT, "INT", 130), (signal.SIGHUP, "TERM", 3)],
)
def test_what_ends_a_workspace_ends_its_dvc(sent, told, status, tmp_path):
    process = reproducing(tmp_path)
    process.send_signal(sent)
    assert process.communicate(timeout=30)[0] == f"told {told}\n"
    assert process.returncode == status


def test_ctrl_c_ends_a_dvc_that_would_go_on_with_the_next_stage(tmp_path):
    process = reproducing(tmp_path, targets="['--keep-going']")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "told TERM\n"
    assert process.returncode == 130


def test_workspace_under_nohup_survives_its_terminal(tmp_path):
    process = reproducing(tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "told INT\n"


def test_signal_that_comes_while_dvc_is_being_started_is_passed_on(tmp_path):
    before = """
import os, signal, subprocess, time
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        time.sleep(1)  # until the other has set its traps
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Popen
"""
    process = reproducing(tmp_path, before)
    assert process.communicate(timeout=30)[0] == "told TERM\n"
    assert process.returncode == 3


def reproducing(folder, before="", targets="[]") -> subprocess.Popen:
    """A process that waits for a DVC, which waits for a signal and says which one it was."""
    dvc = folder / "python"
    dvc.write_text(
        "#!/bin/bash\ntrap 'echo told TERM; exit 3' TERM; trap 'echo told INT; exit 4' INT; echo ready\n"
        "for i in {1..300}; do sleep 0.1; done\n"
    )
    dvc.chmod(0o755)
    code = f"{before}\nimport sys; from pipeline import workspace; sys.executable = {str(dvc)!r}\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code + f"sys.exit(workspace.reproduce('.', {targets}))"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored under nohup
    )
    until(process, "ready")
    return process
