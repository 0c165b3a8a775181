"""A workspace has params of its own and leaves everything else alone."""

import subprocess
import sys

import pytest
from conftest import ROOT

from pipeline import workspace
from pipeline.config import params
from pipeline.system import command
from pipeline.system.command import PipelineError
from pipeline.system.file_lock import file_lock


def test_second_run_in_a_workspace_is_refused(tmp_path):
    first, second = (file_lock(tmp_path / "w", "in use") for _ in range(2))
    with first, pytest.raises(PipelineError, match="in use"), second:
        pass


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
        (["-S", "runs.a-0={recipe: no, model: custom, seed: 0}", "-S", "epochs=4", "--run", "a-0"], "received 'no'"),
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
