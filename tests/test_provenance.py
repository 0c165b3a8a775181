"""A record names the commit it was made from, and a record in git comes from a clean one."""

import json
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from pipeline import geometry, train
from pipeline.config import params
from pipeline.system import provenance
from pipeline.system.command import PipelineError


def git(*arguments, cwd=None):
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


def problem(training: dict) -> str | None:
    """What keeps a record from being one of its commit's; None if nothing does."""
    environment, run = training["environment"], training["run"]
    if environment["dirty"]:
        return f"from a dirty tree at {environment['commit']}"
    if subprocess.run(["git", "merge-base", "--is-ancestor", environment["commit"], "HEAD"], cwd=ROOT).returncode:
        return f"its commit {environment['commit']} is not in the history of HEAD"
    committed = params.parse_text(git("show", f"{environment['commit']}:params.yaml", cwd=ROOT), "params.yaml")
    name = committed["runs"][run]["recipe"]
    theirs = {"recipe": name, "seed": committed["runs"][run]["seed"], **committed["recipes"][name]}
    theirs |= committed["data"] | committed["train"]
    different = sorted(key for key in theirs | training["params"] if theirs.get(key) != training["params"].get(key))
    return f"other params than its commit: {', '.join(different)}" if different else None


def recorded() -> list[dict]:
    files = git("ls-files", "results/*/training.json", cwd=ROOT).split()
    return [json.loads((ROOT / file).read_text()) for file in files]


@pytest.mark.parametrize("training", recorded(), ids=lambda training: training["run"])
def test_recorded_run_comes_from_a_clean_commit_with_its_params(training):
    assert git("rev-parse", "--is-shallow-repository", cwd=ROOT) == "false\n", "run: git fetch --unshallow"
    assert problem(training) is None


def test_record_with_other_params_or_from_nowhere_is_found():
    """The rule above is one that can fail."""
    good = next(training for training in recorded() if training["run"] == "compact-0")
    assert problem(good) is None
    assert problem(good | {"params": good["params"] | {"momentum": 0.5}}) == "other params than its commit: momentum"
    assert "dirty tree" in problem(good | {"environment": good["environment"] | {"dirty": True}})
    assert "not in the history" in problem(good | {"environment": good["environment"] | {"commit": "0" * 40}})


@pytest.fixture
def repository(tmp_path, tree, monkeypatch):
    """A repository with params, a file of code, an output and an ignored folder; it is the cwd."""
    for name, text in {
        "params.yaml": yaml.safe_dump(tree),
        "pipeline/train.py": "",
        "dvc.lock": "",
        ".gitignore": "__pycache__\n/copies",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "files")
    return tmp_path


def write(path, text="changed"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("file", ["dvc.lock", "results/a/history.csv", "pipeline/__pycache__/x.pyc", "notes.txt"])
def test_what_the_pipeline_writes_and_notes_do_not_make_a_tree_dirty(repository, file):
    write(repository / file)
    found = provenance.read()
    assert found.as_tags() == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    assert found.warning() is None


@pytest.mark.parametrize("file", ["pipeline/train.py", "pipeline/models/mine.py", "pipeline/Größe.py", ".gitignore"])
def test_changed_or_untracked_code_makes_it_dirty_and_is_named(repository, file):
    write(repository / file)
    found = provenance.read()
    assert found.as_tags()["dirty"] is True
    assert f"uncommitted changes in {file}: the record will be marked dirty" in found.warning()


def test_changed_params_are_named_once_and_long_lists_cut(repository, tree):
    tree["recipes"]["custom"]["epochs"] = 3
    write(repository / "params.yaml", yaml.safe_dump(tree))
    assert provenance.read().changed == ("params.yaml",)
    for name in "abcd":
        write(repository / f"pipeline/{name}.py")
    assert "params.yaml, pipeline/a.py, pipeline/b.py and 2 more" in provenance.read().warning()


def test_copy_with_params_of_its_own_is_dirty_without_a_warning(repository, tree, monkeypatch):
    tree["recipes"]["custom"]["epochs"] = 3
    write(repository / "copies/quick/params.yaml", yaml.safe_dump(tree))
    monkeypatch.chdir(repository / "copies/quick")
    assert provenance.read().as_tags()["dirty"] is True
    assert provenance.read().warning() is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance.read().as_tags() == {"commit": "none", "dirty": True}
    assert "not in a git repository" in provenance.read().warning()


def test_training_run_on_a_dirty_tree_says_so_when_it_starts(repository, monkeypatch, capsys):
    write(repository / "pipeline/models/mine.py")
    monkeypatch.setattr(sys, "argv", ["train", "custom-0"])
    monkeypatch.setattr(train, "train", lambda *_: print("starts", file=sys.stderr))
    train.main()
    warning, started = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: uncommitted changes in pipeline/models/mine.py: the record")
    assert started == "starts"


def test_model_that_git_does_not_have_is_to_be_added(repository, monkeypatch, capsys, tree):
    write(repository / "pipeline/models/mine.py")
    assert provenance.is_untracked(repository / "pipeline/models/mine.py")
    assert not provenance.is_untracked(repository / "pipeline/train.py")
    assert not provenance.is_untracked(repository / "pipeline/models/none.py")
    copy = repository / ".dvc/tmp/exps/standalone/tmp1"  # in which git does not have it
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    tree["recipes"]["custom"]["model"] = tree["runs"]["custom-0"]["model"] = "mine"
    with pytest.raises(PipelineError, match=r"a new model is a file pipeline/models/mine\.py; `git add` it, for DVC"):
        params.check(tree)


def test_geometry_of_an_untracked_model_says_git_add(monkeypatch, capsys):
    monkeypatch.setattr(provenance, "is_untracked", lambda file: file == ROOT / "pipeline/models/compact.py")
    monkeypatch.setattr(sys, "argv", ["geometry", "compact"])
    geometry.main()
    assert capsys.readouterr().err.startswith("note: `git add pipeline/models/compact.py` before `dvc exp run --temp`")
