import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from factories import NUMBERS, change_training, list_runs, report_files, write_run
from hypothesis import given
from hypothesis import strategies as st

from pipeline import compare
from pipeline.config import params
from pipeline.records import files, record, references
from pipeline.records.record import NOT_COMPARABLE
from pipeline.report import comparison, comparison_plots, markdown, tables, terminal
from pipeline.system.command import PipelineError

BUDGET = params.Budget(max_parameters=92_027, max_epochs=50, accuracy_to_beat=0.8239)
METRICS = {"parameters": 92_027, "epochs": 50, "test_accuracy": 0.824}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty project folder with the published figures: `list_runs` and `write_run` fill it."""
    shutil.copytree(ROOT / "reference", tmp_path / "reference")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare"])
    return tmp_path


def compared():
    """What comparison.json would hold, without the second that drawing costs."""
    settings = params.read()
    return compare.compare(settings, compare.load(settings))


def printed(capsys):
    terminal.show(compared())
    return capsys.readouterr().out


def titles_and_axes(monkeypatch):
    """The pictures' titles and axes, instead of their PNG."""
    drawn = []
    monkeypatch.setattr(
        comparison_plots, "_png", lambda figure: drawn.append((figure.get_suptitle(), figure.axes[0])) or b""
    )
    compare.main()
    return drawn


def test_metrics_are_means_over_seeds():
    list_runs("custom-0", "custom-1", "custom-2")
    for seed, accuracy in enumerate((0.85, 0.86, 0.84)):
        write_run(f"custom-{seed}", accuracy)
    assert compared()["recipes"]["custom"] == {
        "test_accuracy": 0.85,
        "test_accuracy_std": 0.01,  # the sample's; the population's would be 0.008165
        "seeds": 3,
        "val_accuracy": 0.7,
        "test_accuracy_flip": 0.86,
        "training_minutes": 2,
        "images_per_second": 1000,
        **NUMBERS,
    }


def test_std_of_one_run_is_a_dash(capsys):
    list_runs("custom-0")
    write_run("custom-0", 0.8512)
    assert compared()["recipes"]["custom"]["test_accuracy_std"] is None
    assert re.search(r"^custom +85\.12 +– +1 +70\.00 +86\.12 ", printed(capsys), re.MULTILINE)  # noqa: RUF001
    assert "| custom | 85.12 | – | 1 | 70.00 | 86.12 |" in markdown.page(compared())  # noqa: RUF001


def test_recipes_stand_as_params_yaml_orders_them():
    list_runs("custom-0", "baseline-0")
    write_run("custom-0")
    write_run("baseline-0")
    assert list(compared()["recipes"]) == ["baseline", "custom"]


def test_leftovers_on_disk_are_ignored():
    list_runs("custom-0")
    write_run("custom-0", 0.85)
    before = compared()
    write_run("custom-1", 0.99, comparable=False)
    write_run("retired-0", 0.99)
    assert compared() == before
    assert set(compare.read_histories(compare.load(params.read()))) == {"published-custom", "custom-0"}


def test_published_rows_come_first_and_are_marked(capsys):
    list_runs("custom-0")
    write_run("custom-0")
    out = printed(capsys)
    places = [out.index(text) for text in ("published-base* ", "published-custom* ", "custom  ", "* published, not")]
    assert places == sorted(places)
    assert "accuracy on the 10,000 test images, used as validation split" in out


def test_budget_is_kept_at_its_limits():
    assert comparison.within(BUDGET, METRICS) == {"passes": True, "violations": []}


@pytest.mark.parametrize(
    ("figure", "value", "violations"),
    [
        ("parameters", 92_028, "92,028 parameters exceed 92,027"),
        ("epochs", 51, "51 epochs exceed 50"),
        ("test_accuracy", 0.8239, "82.39 % does not beat 82.39 %"),
        ("test_accuracy", 0.82, "82 % does not beat 82.39 %"),
    ],
)
def test_budget_fails_for_one_metric_and_says_which(figure, value, violations):
    assert comparison.within(BUDGET, METRICS | {figure: value}) == {"passes": False, "violations": [violations]}


@given(st.lists(st.integers(0, 1_700), min_size=1, max_size=8))
def test_mean_equal_to_the_accuracy_to_beat_fails_and_one_more_image_passes(offsets):
    right = [8_239 + offset for offset in offsets] + [8_239 - offset for offset in offsets]
    for images, passes in ((0, False), (1, True)):
        runs = [{**METRICS, "test_accuracy": count / 10_000} for count in [right[0] + images, *right[1:]]]
        others = dict.fromkeys(
            ("val_accuracy", "test_accuracy_flip", "training_minutes", "images_per_second", "multiply_adds"), 0
        )
        figures = comparison.over_seeds([run | others for run in runs])
        assert comparison.within(BUDGET, figures)["passes"] is passes


def test_verdicts_are_reported_by_budget_and_recipe(capsys):
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0", 0.86, parameters=1_172_410)
    write_run("custom-0", 0.82)
    budgets = compared()["budgets"]
    assert {(name, recipe): found["passes"] for name, row in budgets.items() for recipe, found in row.items()} == {
        ("published-base", "baseline"): True,
        ("published-base", "custom"): True,
        ("published-custom", "baseline"): False,
        ("published-custom", "custom"): False,
    }
    assert re.search(r"published-custom +baseline +fail +1,172,410 parameters exceed 92,027", printed(capsys))
    assert "| published-custom | custom | fail | 82 % does not beat 82.39 % |" in markdown.page(compared())


def test_nothing_to_hold_against_is_no_failure():
    shutil.rmtree("reference")
    list_runs("custom-0")
    tree = params.parse("params.yaml")
    tree["compare"]["budgets"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_run("custom-0")
    compare.main()
    assert json.loads(Path("report/comparison.json").read_text())["budgets"] == {}


def test_one_run_on_a_subset_labels_everything(capsys, monkeypatch):
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0")
    write_run("custom-0", 0.9, comparable=False)
    drawn = titles_and_axes(monkeypatch)
    page, out = Path("report/README.md").read_text(), capsys.readouterr().out
    recorded = json.loads(Path("report/comparison.json").read_text())
    assert recorded["comparable"] is False
    assert recorded["budgets"]["published-custom"]["custom"]["passes"] is True
    assert all(NOT_COMPARABLE in title for title, _ in drawn)
    assert re.findall(rf"^#+ (.*) \({NOT_COMPARABLE}\)$", page, re.MULTILINE) == [tables.TITLE, "Budgets"]
    for text in (page, out):
        assert text.count(NOT_COMPARABLE) == 3  # both titles, and below the table
        assert NOT_COMPARABLE in text.splitlines()[0]


def test_runs_on_all_data_bear_no_label(capsys, monkeypatch):
    list_runs("custom-0")
    write_run("custom-0")
    drawn = titles_and_axes(monkeypatch)
    texts = [capsys.readouterr().out, *(title for title, _ in drawn)]
    texts += [Path("report", name).read_text() for name in ("README.md", "comparison.json", "curves.csv")]
    assert not any(NOT_COMPARABLE in text for text in texts)


def test_run_without_record_is_named_with_its_command():
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0")
    with pytest.raises(PipelineError, match=r"'custom-0' has no record.*`dvc repro evaluate@custom-0`$"):
        compare.main()
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"status": "running"}, "has the status 'running'"),
        ({"status": "failed"}, "has the status 'failed'"),
        ({"seed": 7}, "was trained as recipe 'custom' with seed 7"),
        ({"recipe": "baseline"}, "was trained as recipe 'baseline' with seed 0"),
    ],
)
def test_record_of_something_else_is_refused(training, problem):
    list_runs("custom-0")
    write_run("custom-0")
    change_training("custom-0", **training)
    with pytest.raises(PipelineError, match=rf"'custom-0' {problem}.*`dvc repro evaluate@custom-0`$"):
        compare.main()


def test_run_that_is_not_evaluated_is_refused():
    list_runs("custom-0")
    write_run("custom-0")
    Path("results/custom-0/evaluation.json").unlink()
    with pytest.raises(PipelineError, match=r"'custom-0' is not evaluated: make it with `dvc repro evaluate@custom-0`"):
        compare.main()


def test_equal_records_give_equal_bytes_without_tensorflow_or_mlflow():
    list_runs("baseline-0", "custom-0", "custom-1")
    for run in ("baseline-0", "custom-0", "custom-1"):
        write_run(run)
    compare.main()
    first = report_files()
    code = (
        "import sys; from pipeline import compare; compare.main(); "
        "sys.exit(str({'tensorflow', 'keras', 'mlflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    elsewhere = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TZ": "Pacific/Auckland", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=elsewhere, capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"
    assert report_files() == first
    assert set(first) == {"README.md", "comparison.json", "curves.csv", "curves.png", "accuracy_vs_parameters.png"}
    for name in ("curves.png", "accuracy_vs_parameters.png"):
        assert first[name].startswith(b"\x89PNG")
        assert b"tEXt" not in first[name]  # matplotlib's version


def test_failure_leaves_the_earlier_report_as_it_was(monkeypatch):
    list_runs("custom-0")
    write_run("custom-0", 0.85)
    compare.main()
    before = report_files()
    write_run("custom-0", 0.86)
    monkeypatch.setattr(comparison_plots, "accuracy_vs_parameters", lambda comparison: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare.main()
    assert report_files() == before


def test_every_curve_is_drawn_and_a_recipe_has_one_colour(monkeypatch):
    list_runs("baseline-0", "custom-0", "custom-1")
    for run, accuracy in (("baseline-0", 0.86), ("custom-0", 0.84), ("custom-1", 0.85)):
        write_run(run, accuracy)
    (_, curves), (_, points) = titles_and_axes(monkeypatch)
    lines = [(line.get_color(), len(line.get_xdata())) for line in curves.get_lines()]
    base, custom, baseline, first, second = lines
    assert [count for _, count in lines] == [2, 50, 2, 2, 2]  # the published base network is a level
    assert first == second
    assert len({base, custom, baseline, first}) == 4
    assert [bar.lines[0].get_color() for bar in points.containers] == [baseline[0], first[0]]
    assert points.get_xscale() == "log"
    assert curves.get_legend_handles_labels()[1] == [
        "published-base: 81.16 (last epoch)",
        "published-custom: 82.39",
        "baseline: 70.00",
        "custom: 70.00 (mean of 2)",
    ]


def test_curves_csv_holds_the_published_epochs_and_every_run():
    list_runs("custom-0")
    write_run("custom-0")
    compare.main()
    with Path("report/curves.csv").open(newline="") as lines:
        header, *rows = csv.reader(lines)
    assert header == ["run", "epoch", "val_accuracy", "val_loss", "accuracy", "loss"]
    published = [row for row in rows if row[0] == "published-custom"]
    assert len(published) == 50
    assert published[-1] == ["published-custom", "50", "0.8239", "0.5318", "0.8739", "0.3526"]
    assert rows[50:] == [["custom-0", "1", "0.5", "1.4", "0.4", "1.5"], ["custom-0", "2", "0.7", "1.0", "0.6", "1.1"]]


def test_page_says_how_it_was_measured_and_links_what_lies_beside_it():
    list_runs("custom-0")
    write_run("custom-0")
    page = markdown.page(compared())
    assert (
        "| custom-0 | 85.00 | 2.0 | 2026-11-22 | CPU (2 threads), Made-up \\| 9000, bfloat16 "
        "| TensorFlow 2.21.0, Keras 3.15.1 | 45,000/5,000/10,000 |"
    ) in page
    assert re.findall(r"\]\((.*?)\)", page) == ["curves.png", "accuracy_vs_parameters.png"]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_table_on_a_pipe_cuts_no_cell(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    list_runs("baseline-0", "custom-0", "custom-1")
    write_run("baseline-0", 0.8612, parameters=1_172_410, multiply_adds=55_145_472, epochs=50)
    write_run("custom-0", 0.8712)
    write_run("custom-1", 0.8799)
    rows = tables.metrics(compared())
    lines = [line.split() for line in printed(capsys).splitlines()]
    assert all(row in lines for row in rows[1:])


def test_show_prints_the_recorded_tables_from_the_report_alone(capsys, monkeypatch):
    list_runs("custom-0")
    write_run("custom-0")
    compare.main()
    before, shown = report_files(), capsys.readouterr().out
    shutil.rmtree("results")
    shutil.rmtree("reference")
    Path("params.yaml").unlink()
    monkeypatch.setattr(sys, "argv", ["compare", "--show"])
    compare.main()
    assert capsys.readouterr().out == shown
    assert report_files() == before


def test_show_without_a_report_says_what_makes_one(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", "--show"])
    compare.main()
    out = capsys.readouterr().out
    assert re.fullmatch(r"nothing is recorded yet: .*`dvc repro`.*\n", out)


@pytest.mark.parametrize("name", ["published-base", "published-custom"])
def test_published_sizes_are_those_of_the_model(name):
    from pipeline import models
    from pipeline.evaluation.geometry import geometry

    published = references.load_reference(name)
    layers = geometry(models.build(published["model"]))
    assert published["parameters"] == sum(layer.parameters for layer in layers)
    assert published["multiply_adds"] == sum(layer.multiply_adds for layer in layers)


def test_published_accuracies_are_those_to_beat():
    settings = params.read(ROOT / "params.yaml")
    for name, budget in settings.compare.budgets.items():
        published = references.load_reference(name)
        assert budget.accuracy_to_beat == published["accuracy"]
        assert budget.max_parameters == published["parameters"]
        assert budget.max_epochs == published["epochs"]


def test_recorded_report_is_of_the_recorded_runs(monkeypatch):
    recorded = files.read_json(ROOT / "report/comparison.json")
    monkeypatch.chdir(ROOT)
    assert [comparison.run_metrics(record.load(run["run"])) for run in recorded["runs"]] == recorded["runs"]
    for recipe, figures in recorded["recipes"].items():
        assert figures == comparison.over_seeds([run for run in recorded["runs"] if run["recipe"] == recipe])


def test_readme_shows_the_tables_of_the_report_files():
    recorded, page = files.read_json(ROOT / "report/comparison.json"), (ROOT / "README.md").read_text()
    for rows in (tables.metrics(recorded), tables.runs(recorded)):
        assert markdown.table(rows) in page, "copy the tables of report/README.md into README.md"
