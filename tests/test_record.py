"""A damaged record is refused in one line that names the file, whatever was done to it."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import NO_FILES, ROOT
from factories import list_runs, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import compare
from pipeline.config import params
from pipeline.records import files, record
from pipeline.report import comparison_plots, markdown
from pipeline.system import command
from pipeline.system.command import PipelineError

# Each example begins with the whole record.
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON_FILES = ("training.json", "evaluation.json", "speed.json")
FILES = ("history.csv", *JSON_FILES, "probabilities.npz")
RUN = Path("results/custom-0")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A project folder with one evaluated run."""
    (tmp_path / "reference").symlink_to(ROOT / "reference")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare"])
    monkeypatch.setattr(os, "fsync", lambda *_: None)  # some thousand files are written
    list_runs("custom-0")
    write_run("custom-0")
    return tmp_path


def whole():
    """The record's files as they are when all is well."""
    write_run("custom-0")
    return {name: (RUN / name).read_bytes() for name in FILES}


def compared_or_refused(*names):
    """Compares, without pictures; if it is refused, one line names one of the files, or the run.

    What is compared is harmless: numbers within their range, of the one run.
    """
    chosen = params.read()
    try:
        records = compare.load(chosen)
        comparison = compare.compare(chosen, records, compare.read_predictions(records), {})
        markdown.page(comparison).encode()
        json.dumps(comparison, allow_nan=False)
    except PipelineError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
        assert any(name in str(error) for name in (*names, "run 'custom-0'")), error
        return False
    (recipe,) = comparison["recipes"].values()
    assert recipe["seeds"] == 1
    assert all(0 <= recipe[key] <= 1 for key in ("test_accuracy", "val_accuracy", "test_accuracy_flip"))
    assert recipe["epochs"] >= 1
    assert recipe["parameters"] >= 1
    assert recipe["training_minutes"] >= 0
    return True


def test_whole_record_is_compared(workplace):
    assert compared_or_refused()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"text"',
        b"NaN",
        b'{"a": ' * 50_000,
        b"[" * 100_000,
        b"9" * 5_000,
        b'{"record_id": "\\ud800"}',
        b"epoch,loss\n1,2\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n1,1,1,1,1,1\n2,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n1,1,1,1\n2,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n1,nan,1,1,1\n2,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n1,1,1,inf,1\n2,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n1,1,1e300,1,1\n2,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy\n2,1,1,1,1\n1,1,1,1,1\n",
        b"epoch,loss,accuracy,val_loss,val_accuracy,rate\n1,1,1,1,1,nan\n2,1,1,1,1,1\n",
        b'epoch,"' + b"x" * 200_000,
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_other_content_is_refused(workplace, name, content):
    (RUN / name).write_bytes(content)
    assert not compared_or_refused(name)


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused(workplace, name, make):
    (RUN / name).unlink()
    make(RUN / name)
    assert not compared_or_refused(name)


@fuzz
@given(st.sampled_from(FILES), st.integers(0, 999), st.integers(0, 99), st.binary(max_size=9))
def test_any_damage_is_refused_in_one_line_or_harmless(workplace, name, place, cut, put_in):
    content = whole()[name]
    place %= len(content)
    (RUN / name).write_bytes(content[:place] + put_in + content[place + cut :])
    compared_or_refused(name)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**18, 1e308, -1, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@fuzz
@given(st.sampled_from(JSON_FILES), st.integers(0, 99), st.none() | st.integers(0, 99), ANY)
def test_any_other_value_is_refused_in_one_line_or_harmless(workplace, name, which, inner, value):
    content = json.loads(whole()[name])
    key = list(content)[which % len(content)]
    if isinstance(content[key], dict) and inner is not None:
        content[key][list(content[key])[inner % len(content[key])]] = value
    elif isinstance(content[key], list) and inner is not None:
        place = inner % len(content[key])
        content[key][place] = content[key][place] | {list(content[key][place])[which % 4]: value}
    else:
        content[key] = value
    (RUN / name).write_text(json.dumps(content))
    compared_or_refused(name)


@pytest.mark.parametrize("value", [None, "", "9", 0, -1, 1.5, [], {}])
def test_test_images_are_a_count(workplace, value):
    evaluation = json.loads(whole()["evaluation.json"]) | {"test_images": value}
    (RUN / "evaluation.json").write_text(json.dumps(evaluation))
    assert not compared_or_refused("evaluation.json")


def test_record_of_another_run_is_refused(workplace):
    training = json.loads(whole()["training.json"]) | {"run": "custom-1"}
    (RUN / "training.json").write_text(json.dumps(training))
    assert not compared_or_refused("results/custom-0/training.json is of the run")


def test_missing_key_is_refused_in_one_line_or_harmless(workplace):
    for name in JSON_FILES:
        content = json.loads(whole()[name])
        for key in content:
            (RUN / name).write_text(json.dumps({other: value for other, value in content.items() if other != key}))
            compared_or_refused(name)
        whole()


@fuzz
@given(st.integers(0, 99), ANY)
def test_any_other_published_figure_is_refused_in_one_line_or_harmless(workplace, which, value):
    (workplace / "reference").unlink()
    (workplace / "reference").mkdir()
    content = json.loads((ROOT / "reference/published-custom.json").read_text())
    content[list(content)[which % len(content)]] = value
    (workplace / "reference/p.json").write_text(json.dumps(content))
    try:
        compared_or_refused("reference/p.json")
    finally:
        (workplace / "reference/p.json").unlink()
        (workplace / "reference").rmdir()
        (workplace / "reference").symlink_to(ROOT / "reference")


@pytest.fixture
def comparison(workplace):
    """What `report/comparison.json` holds when all is well."""
    chosen = params.read()
    Path("report").mkdir()
    records = compare.load(chosen)
    return compare.compare(chosen, records, compare.read_predictions(records), {})


@fuzz
@given(which=st.integers(0, 99), value=ANY)
def test_damaged_report_is_refused_in_one_line_or_harmless(comparison, monkeypatch, capsys, which, value):
    monkeypatch.setattr(sys, "argv", ["compare", "--show"])
    damaged = comparison | {list(comparison)[which % len(comparison)]: value}
    Path("report/comparison.json").write_text(json.dumps(damaged))
    try:
        command.run(compare.main)
    except SystemExit as ended:
        assert "report/comparison.json" in str(ended)
        assert len(str(ended).splitlines()) == 1


def test_most_extreme_history_that_is_accepted_can_be_drawn(comparison):
    row = {"epoch": 1, "loss": 1e15, "accuracy": 0.0, "val_loss": 0.0, "val_accuracy": 1.0}
    assert comparison_plots.validation_curves(comparison, {"custom-0": record.check_history([row])})


def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    files.write(tmp_path / "file", "earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "file", "later")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "earlier"}
