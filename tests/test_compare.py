import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from factories import NUMBERS, change_training, list_runs, report_files, write_export, write_run
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline import compare
from pipeline.config import params
from pipeline.evaluation import predictions
from pipeline.records import exports, files, record, references
from pipeline.records.record import NOT_COMPARABLE
from pipeline.report import (
    cards,
    comparison,
    comparison_plots,
    findings,
    markdown,
    run_tags,
    statistics,
    tables,
    terminal,
)
from pipeline.report.page import content
from pipeline.system.command import PipelineError
from pipeline.training import cifar10

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
    config = params.read()
    records = compare.load(config)
    exported = {run: exports.evaluated(run) for run in config.export.runs}
    return compare.compare(config, records, compare.read_predictions(records), exported)


def printed(capsys):
    terminal.show_comparison(compared())
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
        write_run(f"custom-{seed}", accuracy, val_loss=0.6 + 0.01 * seed)
    half_width = 4.302653 * 0.01 / 3**0.5  # Student's t of 2 degrees of freedom
    row = compared()["recipes"]["custom"]
    assert row == {
        "seeds": 3,
        "test_accuracy": 0.85,
        "test_accuracy_std": 0.01,  # the sample's; the population's would be 0.008165
        "test_accuracy_interval": pytest.approx([0.85 - half_width, 0.85 + half_width], abs=1e-6),
        "test_loss": 0.5,
        "test_loss_std": 0,
        "test_loss_interval": [0.5, 0.5],
        "val_accuracy": 0.7,
        "val_accuracy_std": 0,
        "val_accuracy_interval": [0.7, 0.7],
        "val_loss": 0.61,
        "val_loss_std": 0.01,
        "val_loss_interval": pytest.approx([0.61 - half_width, 0.61 + half_width], abs=1e-6),
        "test_accuracy_flip": 0.86,
        "calibration_error": 0.05,
        "training_minutes": 2,
        "images_per_second": 1000,
        "timed_on": "CPU (2 threads), Made-up | 9000, bfloat16",
        **NUMBERS,
    }


def test_minutes_are_epochs_times_the_median_epoch():
    list_runs("custom-0")
    write_run("custom-0")
    seconds = [30.0, 30.0, 3_000.0]  # a busy hour in the last epoch
    epochs = [
        {"epoch": n, "ended_ms": n, "epoch_seconds": s, "images_per_second": 1.0} for n, s in enumerate(seconds, 1)
    ]
    change_training("custom-0", epochs=epochs)
    history = Path("results/custom-0/history.csv")
    history.write_text(history.read_text() + "3,1.0,0.7,0.9,0.7,0.1\n")
    assert compared()["recipes"]["custom"]["training_minutes"] == 1.5


def test_one_run_has_no_std_and_no_interval(capsys):
    list_runs("custom-0")
    write_run("custom-0", 0.8512)
    row = compared()["recipes"]["custom"]
    assert row["test_accuracy_std"] is row["test_accuracy_interval"] is None
    assert re.search(r"^custom +85\.12 +– +1 +70\.00 +86\.12 ", printed(capsys), re.MULTILINE)  # noqa: RUF001
    assert "| custom | 85.12 | – | 1 | 70.00 | 86.12 | 92,027 |" in markdown.page(compared())  # noqa: RUF001


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
    assert "accuracy on the 10,000 test images, used as validation split" in " ".join(out.split())


def three_seeds(recipe, accuracy, first_errors=0, **evaluation):
    """Three runs of a recipe that err on images drawn at random."""
    for seed in range(3):
        write_run(f"{recipe}-{seed}", accuracy, errors_seed=first_errors + seed, **evaluation)


def pair_of(first, second):
    """The pair of the two recipes, in the order of their accuracy."""
    (found,) = (pair for pair in compared()["pairs"] if pair["recipes"] == [first, second])
    return found


def test_verdict_on_three_seeds_each_is_of_recipes(capsys):
    list_runs(*(f"{recipe}-{seed}" for recipe in ("baseline", "custom") for seed in range(3)))
    three_seeds("baseline", 0.85)
    three_seeds("custom", 0.87, first_errors=3, val_accuracy=0.71)
    pair = pair_of("custom", "baseline")
    stored = compare.read_predictions(compare.load(params.read()))
    runs = [stored[f"{name}-{seed}"] for name in ("custom", "baseline") for seed in range(3)]
    correct = np.array([run.test_probabilities.argmax(axis=1) == run.test_labels for run in runs], float)
    estimate = statistics.difference(correct[:3], correct[3:])
    assert (pair["of"], pair["verdict"], pair["note"]) == ("recipes", "better", "")
    assert pair["difference"] == 0.02
    assert pair["interval"] == [round(estimate.low, 6), round(estimate.high, 6)]
    assert pair["p_adjusted"] == pair["p_value"] == round(estimate.p_value, 6)
    out = " ".join(printed(capsys).split())
    assert f"custom - baseline +2.00 {100 * estimate.low:.2f} to {100 * estimate.high:.2f} better" in out
    assert "Against baseline, the best of the others: +2.00 points" in out
    assert "custom is better, significant at the 5 % level" in out
    assert "McNemar" not in out


def test_model_that_validation_chooses_may_be_worse_on_test_and_that_is_said(capsys):
    list_runs(*(f"{recipe}-{seed}" for recipe in ("baseline", "custom") for seed in range(3)))
    three_seeds("baseline", 0.85, val_accuracy=0.71)
    three_seeds("custom", 0.87, first_errors=3)
    out = " ".join(printed(capsys).split())
    assert "take baseline-0 (champion)" in out
    assert "Against custom, the best of the others: -2.00 points of test accuracy (95 % interval -2." in out
    assert "baseline is worse, significant at the 5 % level" in out


def test_small_difference_is_not_told_apart():
    list_runs(*(f"{recipe}-{seed}" for recipe in ("baseline", "custom") for seed in range(3)))
    three_seeds("baseline", 0.85)
    three_seeds("custom", 0.8502, first_errors=3)
    pair = pair_of("custom", "baseline")
    assert pair["verdict"] == "not told apart"
    assert pair["interval"][0] < 0 < pair["interval"][1]
    assert pair["note"] == ""


def test_one_seed_is_told_to_be_of_weights_by_mcnemar_of_the_lowest_seeds(capsys):
    list_runs("baseline-0", "custom-2", "custom-1")
    write_run("baseline-0", 0.85, errors_seed=0)
    write_run("custom-1", 0.87, errors_seed=1)
    write_run("custom-2", 0.99, errors_seed=2)
    pair = pair_of("custom", "baseline")
    assert (pair["of"], pair["verdict"]) == ("weights", "better weights")
    assert pair["runs"] == [["custom-1"], ["baseline-0"]]
    assert pair["difference"] == 0.02  # not the mean of custom's seeds
    out = " ".join(printed(capsys).split())
    assert "custom-1 - baseline-0 +2.00" in out
    assert "exact McNemar test" in out
    assert "whether the recipes differ is open, with one seed of baseline" in out


def test_weights_may_rank_otherwise_than_the_means(capsys):
    list_runs("baseline-0", "custom-0", "custom-1")
    write_run("baseline-0", 0.85, errors_seed=0)
    write_run("custom-0", 0.83, errors_seed=1)
    write_run("custom-1", 0.89, errors_seed=2, val_accuracy=0.71)
    pair = pair_of("baseline", "custom")  # custom's mean is the higher one
    assert (pair["difference"], pair["verdict"]) == (0.02, "better weights")
    out = " ".join(printed(capsys).split())
    assert "take custom-0 (stand-in)" in out
    assert "custom-0 against baseline-0, the best of the others: -2.00 points" in out


def test_interval_that_excludes_0_without_a_verdict_is_explained(monkeypatch):
    list_runs("baseline-0", "compact-0", "custom-0")
    for seed, (run, accuracy) in enumerate({"baseline-0": 0.85, "compact-0": 0.85, "custom-0": 0.8605}.items()):
        write_run(run, accuracy, errors_seed=seed)
    pairs = compared()["pairs"]
    assert [pair["verdict"] for pair in pairs] == ["not told apart"] * 3
    explained = [pair for pair in pairs if pair["interval"][0] > 0]
    assert explained
    assert all("adjusted over all 3 pairs is not below 0.05" in pair["note"] for pair in explained)
    assert all(pair["p_value"] < 0.05 < pair["p_adjusted"] for pair in explained)
    assert f"custom-0 - {explained[0]['recipes'][1]}-0: its own interval excludes 0" in markdown.page(compared())


@pytest.mark.parametrize(
    ("limits", "said"),
    [([0.00003, 0.0118], "0.003 to 1.18"), ([-0.0118, -0.00003], "-1.18 to -0.003"), ([0.0, 1.0], "0.00 to 100.00")],
)
def test_limit_of_an_interval_looks_like_0_only_if_it_is(limits, said):
    assert tables.interval(limits) == said


def test_runs_of_other_test_images_are_not_paired():
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0", 0.85)
    write_run("custom-0", 0.85)
    labels = np.zeros(100, np.uint8)
    other = predictions.encode(np.eye(10)[labels], labels, np.eye(10)[labels], labels)
    Path("results/custom-0/probabilities.npz").write_bytes(other)
    evaluation = Path("results/custom-0/evaluation.json")
    files.write_json(evaluation, files.read_json(evaluation) | {"test_accuracy": 1.0, "val_accuracy": 1.0})
    with pytest.raises(PipelineError, match=r"'baseline-0' and 'custom-0' were evaluated on different test images"):
        compare.main()


def test_missing_probabilities_are_named_with_their_command():
    list_runs("custom-0")
    write_run("custom-0")
    Path("results/custom-0/probabilities.npz").unlink()
    with pytest.raises(PipelineError, match=r"custom-0/probabilities\.npz .*`dvc repro evaluate@custom-0`"):
        compare.main()


def test_beside_a_published_result_stands_a_one_sample_interval():
    list_runs("custom-0", "custom-1", "custom-2")
    for seed, accuracy in enumerate((0.85, 0.86, 0.84)):
        write_run(f"custom-{seed}", accuracy)
    rows = {row["published"]: row for row in compared()["against_published"]}
    found = rows["published-custom"]
    assert found["difference"] == pytest.approx(0.85 - 0.8239)
    seeds, images = 0.01**2 / 3, 0.85 * 0.15 / 10_000  # the images' variance is a little below that of one run
    freedom = (seeds + images) ** 2 / (seeds**2 / 2 + images**2 / 9_999)
    half_width = stats.t.ppf(0.975, freedom) * (seeds + images) ** 0.5
    assert found["interval"] == pytest.approx([0.0261 - half_width, 0.0261 + half_width], rel=0.03)


def test_seeds_needed_are_assumed_until_a_recipe_has_two_and_measured_then():
    list_runs("custom-0")
    write_run("custom-0")
    assert compared()["seeds_needed"] == {
        "difference": 0.003,
        "std": [0.002, 0.005],
        "assumed": True,
        "these_images": [statistics.seeds_to_detect(0.003, std) for std in (0.002, 0.005)],
    }
    list_runs("custom-0", "custom-1", "baseline-0", "baseline-1")
    for seed, run in enumerate(("custom-0", "custom-1", "baseline-0", "baseline-1")):
        write_run(run, 0.85 + 0.001 * seed, errors_seed=seed)
    needed = compared()["seeds_needed"]
    assert needed["assumed"] is False
    assert needed["std"][0] < 0.001 / 2**0.5 < needed["std"][1]
    assert len(needed["further_images"]) == 2
    assert "more than 100 seeds" not in findings.seeds_needed(needed | {"these_images": [3, 8]})
    assert "3 to more than 100 seeds" in findings.seeds_needed(needed | {"these_images": [3, None]})


def test_classes_and_calibration_have_intervals():
    list_runs("custom-0")
    write_run("custom-0", 0.85)
    described = compared()["descriptions"]["custom"]
    assert list(described) == ["calibration error", *cifar10.CLASS_NAMES]
    value, low, high = described["cat"]
    assert value == 0.85  # of 1,000 images
    assert (high - low) / 2 == pytest.approx(1.96 * (0.85 * 0.15 / 1_000) ** 0.5, rel=0.01)
    value, low, high = described["calibration error"]
    assert value == pytest.approx(0.9 - 0.85, abs=1e-3)
    assert low < value < high


def test_same_numbers_stand_in_all_files():
    list_runs("custom-0", "custom-1", "custom-2")
    for seed, accuracy in enumerate((0.85, 0.86, 0.84)):
        write_run(f"custom-{seed}", accuracy)
    compare.main()
    recorded, metrics, champions = (
        json.loads(Path("report", name).read_text()) for name in ("comparison.json", "metrics.json", "champions.json")
    )
    row = recorded["recipes"]["custom"]
    low, high = row["test_accuracy_interval"]
    assert metrics["custom"] == {
        "test_accuracy": 0.85,
        "test_accuracy_std": 0.01,
        "val_accuracy": 0.7,
        "seeds": 3,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
    }
    assert champions == recorded["champions"]
    assert champions["published-custom"]["run"] == "custom-0"
    page = Path("report/README.md").read_text()
    assert f"| custom | test accuracy, % | 3 | 85.00 | 1.00 | {100 * low:.2f} to {100 * high:.2f} |" in page
    assert "take custom-0 (champion)" in page


def test_unknown_multiply_adds_are_a_dash():
    list_runs("custom-0")
    write_run("custom-0", multiply_adds=None)
    assert "| custom | – | 2 |" in markdown.page(compared())  # noqa: RUF001


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
        keys = ("test_loss", "val_accuracy", "val_loss", "test_accuracy_flip", "calibration_error", "multiply_adds")
        others = dict.fromkeys((*keys, "training_minutes", "images_per_second"), 0) | {"origin": ["", "CPU"]}
        figures = comparison.over_seeds([run | others for run in runs], {"CPU": len(runs)})
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


def test_run_is_labelled_by_the_images_that_it_was_evaluated_on():
    list_runs("custom-0")
    write_run("custom-0", comparable=False)
    assert not compared()["comparable"]
    assert compared()["runs"][0]["origin"][-1] == "45,000/5,000/1,000"
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["data"]["test_images"] = 1_000
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_run("custom-0")  # trained when fewer were asked for, evaluated on all
    assert compared()["comparable"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", 0.5, "0.02, and params.yaml has 0.5"),
        ("norm_statistics", "precise", "'moving', and .* 'precise'"),
    ],
)
def test_run_that_was_trained_with_other_params_is_refused_with_its_command(key, value, said):
    list_runs("custom-0")
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["recipes"]["custom"]["norm_statistics"] = "moving"
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_run("custom-0")
    path = Path("results/custom-0/training.json")
    training = json.loads(path.read_text())
    training["params"].pop("norm_statistics")  # recorded before there was such a key
    path.write_text(json.dumps(training))
    assert compared()["runs"]
    tree["recipes"]["custom"][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(PipelineError, match=f"run 'custom-0' was trained with {key} {said}: make it with `dvc repro"):
        compared()


def test_one_run_on_a_subset_labels_everything(capsys, monkeypatch):
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0")
    write_run("custom-0", 0.9, comparable=False)
    drawn = titles_and_axes(monkeypatch)
    page, out = Path("report/README.md").read_text(), " ".join(capsys.readouterr().out.split())
    recorded = json.loads(Path("report/comparison.json").read_text())
    assert recorded["comparable"] is False
    assert recorded["budgets"]["published-custom"]["custom"]["passes"] is True
    assert all(NOT_COMPARABLE in title for title, _ in drawn)
    titles = [tables.TITLE, "Verdicts", "Budgets", "The model to take", "Means over seeds"]
    titles += ["Compared with the published results", "Calibration error and recall of each class"]
    assert re.findall(rf"^#+ (.*) \({NOT_COMPARABLE}\)$", page, re.MULTILINE) == titles
    for text in (page, out):
        assert text.count(NOT_COMPARABLE) >= 5  # in the titles, and below the first table
        assert NOT_COMPARABLE in text[:100]


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
    tables_and_numbers = {"README.md", "champions.json", "comparison.json", "curves.csv", "metrics.json"}
    cards = {"models/baseline.md", "models/custom.md"}
    assert set(first) == tables_and_numbers | cards | {"curves.png", "accuracy_vs_parameters.png", "index.html"}
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


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_no_number_is_broken_and_no_line_is_wider_than_60_columns_or_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    runs = ["baseline-0", "custom-0", "custom-1", "compact-0", "compact-1"]
    list_runs(*runs)
    for seed, run in enumerate(runs):
        size = {"parameters": 1_172_410, "multiply_adds": 55_145_472} if run == "baseline-0" else {}
        write_run(run, 0.86 + seed / 1_000, errors_seed=seed, epochs=50, **size)
    out, comparison = printed(capsys), compared()
    assert max(map(len, out.splitlines())) <= max(60, int(columns))
    words = out.split()
    for table in (tables.accuracy, tables.cost, tables.pairs, tables.budgets):
        cells = " ".join(cell for row in table(comparison)[1:] for cell in row[:4])
        for number in re.findall(r"[+-]?\d[\d.,]*", cells):
            assert any(number in word for word in words), number


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
    machines = Counter(run["origin"][1] for run in recorded["runs"])
    for recipe, figures in recorded["recipes"].items():
        runs = [run for run in recorded["runs"] if run["recipe"] == recipe]
        assert figures == comparison.over_seeds(runs, machines)


def test_readme_shows_the_report_and_may_leave_out_rows():
    recorded, page = files.read_json(ROOT / "report/comparison.json"), (ROOT / "README.md").read_text()
    for rows in (tables.accuracy(recorded), tables.cost(recorded), tables.runs(recorded)):
        header, *others = markdown.table(rows).splitlines()
        shown = page.partition(f"{header}\n")[2].partition("\n\n")[0].splitlines()
        assert len(shown) > 1
        assert set(shown) <= set(others), "copy the tables of report/README.md into README.md"


def test_exported_files_stand_beside_the_published_ones(capsys):
    list_runs("baseline-0", "custom-0")
    for run in ("baseline-0", "custom-0"):
        write_run(run)
    write_export("custom-0")
    write_export("baseline-0", int8=False, violations=["it is too large"])
    comparison = compared()
    row = comparison["exports"]["custom"]
    assert (row["run"], row["int8"]["bytes"], row["int8"]["latency_ms"]) == ("custom-0", 152_624, 0.417)
    assert (row["threads"], row["processor"], row["violations"]) == (2, "Made-up 9000", [])
    assert comparison["exports"]["baseline"]["int8"] is None
    page = markdown.page(comparison)
    assert "| custom-0 int8 | 152,624 | 90.00 | 85.12 | 0.42 | 100.00 | 220,416 |" in page
    assert "| mlperf-tiny-resnet8\\* int8 | 98,496 | – | 86.97 | – | – | 55,984 |" in page  # noqa: RUF001
    assert (
        "78,666 parameters, 12.5 M multiply-adds. Its benchmark requires an int8 file to reach 85 % test accuracy."
        in page
    )
    assert "baseline-0 int8" not in page
    out = " ".join(printed(capsys).split())
    assert "custom-0 int8 152,624 90.00 85.12 0.42 " in out
    assert "baseline-0 has no int8 file: layer 'x' uses Y. baseline-0: it is too large." in out
    assert "85 % test accuracy. Reached by custom-0." in out
    assert "Every int8 file is within" not in out


def test_budgets_are_data_and_worded_in_one_place(capsys):
    list_runs("custom-0")
    write_run("custom-0")
    comparison = compared()
    limits = {"max_parameters": 92_027, "max_epochs": 50, "accuracy_to_beat": 0.8239}
    assert comparison["limits"]["published-custom"] == limits
    words = "at most 92,027 parameters and 50 epochs"
    assert f"published-custom: {words}, test accuracy above 82.39 %\n" in markdown.page(comparison)
    assert f"published-custom ({words}): take custom-0" in " ".join(printed(capsys).split())


def test_exported_files_change_no_budget_and_no_champion():
    list_runs("custom-0")
    write_run("custom-0")
    before = compared()
    assert "Exported files" not in markdown.page(before)
    write_export("custom-0")
    after = compared()
    for key in before.keys() - {"exports"}:
        assert after[key] == before[key]
    page = markdown.page(after)
    assert "Every int8 file is within params.yaml's limits on its size and its loss of validation accuracy." in page
    assert "On the processor it was measured on, int8 is slower than float32 for custom-0 (0.42 and 0.36 ms)." in page


def test_what_an_int8_file_must_reach_is_asked_of_all_images_only():
    list_runs("custom-0")
    write_run("custom-0", comparable=False)
    write_export("custom-0")
    page = markdown.page(compared())
    assert "Its benchmark requires an int8 file to reach 85 % test accuracy.\n" in page
    assert "eached by" not in page


@pytest.mark.parametrize("damage", ["absent", "of another model", "without bytes"])
def test_listed_export_that_cannot_be_read_is_named_with_its_command(damage):
    list_runs("custom-0")
    write_run("custom-0")
    write_export("custom-0")
    path = Path("results/custom-0/export/export.json")
    if damage == "absent":
        path.unlink()
    elif damage == "of another model":
        Path("results/custom-0/model.keras").write_text("another")
    else:
        content = files.read_json(path)
        del content["int8"]["bytes"]
        files.write_json(path, content)
    with pytest.raises(PipelineError, match=r"results/custom-0/export/export\.json .*(make it with|int8\.bytes)"):
        compare.main()


def test_times_are_those_of_the_machine_that_trained_most_runs(capsys):
    runs = ("custom-0", "custom-1", "compact-0", "compact-1", "baseline-0")
    list_runs(*runs)
    for run in runs:
        write_run(run)
    assert "Times of different kinds" not in markdown.page(compared())
    for run, seconds, environment in (
        ("custom-0", 600, {"precision": "float32"}),
        ("custom-1", 120, {"processor_model": "26 2"}),  # of the same name
        ("compact-0", 60, {"processor_model": "26 2"}),
        ("compact-1", 240, {"processor_model": "26 2"}),
    ):
        path = Path(f"results/{run}/training.json")
        training = files.read_json(path)
        training["environment"] |= environment
        for epoch in training["epochs"]:
            epoch["epoch_seconds"] = seconds
        files.write_json(path, training)
    machine = "CPU (2 threads), Made-up | 9000"
    said = (
        "minutes and images/s, of training: means over those runs of a recipe that one kind of machine trained. Of the "
        "recipe's kinds it is the one that trained most runs in this comparison. Times of different kinds cannot be "
        "compared. "
        f"{machine}, bfloat16: baseline (1 of 1 runs); "
        f"{machine} (26/2), bfloat16: custom (1 of 2 runs), compact (2 of 2 runs)."
    )
    assert said in " ".join(printed(capsys).split())
    assert said in markdown.page(compared())
    minutes = {name: row["training_minutes"] for name, row in compared()["recipes"].items()}
    assert minutes == {"custom": 4.0, "compact": 5.0, "baseline": 2.0}
    assert "| custom | 24.0 | 2 | 4.0 | 1,000 |" in markdown.page(compared())


def test_recipes_of_the_same_two_machines_are_timed_on_one_of_them():
    runs = {"custom-0": "1 1", "custom-1": "2 2", "compact-0": "2 2", "compact-1": "1 1"}
    list_runs(*runs)
    for run, model in runs.items():
        write_run(run)
        path = Path(f"results/{run}/training.json")
        training = files.read_json(path)
        training["environment"]["processor_model"] = model
        files.write_json(path, training)
    assert len({row["timed_on"] for row in compared()["recipes"].values()}) == 1


def test_precision_that_differs_between_runs_is_told_where_it_counts(capsys):
    list_runs("custom-0", "custom-1", "compact-0")
    for run in ("custom-0", "custom-1", "compact-0"):
        write_run(run)
    assert "recision" not in " ".join(findings.accuracy_notes(compared()) + findings.pair_notes(compared()))
    (pair,) = compared()["pairs"]
    assert "precision" not in findings.certainty(compared(), pair)
    path = Path("results/custom-0/training.json")
    training = files.read_json(path)
    training["environment"]["precision"] = "float32"
    files.write_json(path, training)
    told = "Precision of training: float32: custom-0; bfloat16: custom-1, compact-0. Where a recipe has runs of several"
    assert told in " ".join(printed(capsys).split())
    assert told in markdown.page(compared())
    assert "trained in different precisions, the difference includes" in markdown.page(compared())
    assert "their different precisions" in findings.certainty(compared(), pair)


def test_champion_of_several_seeds_is_told_with_its_own_accuracy():
    list_runs(*(f"custom-{seed}" for seed in range(3)))
    for seed in range(3):
        write_run(f"custom-{seed}", 0.85 + 0.01 * seed, errors_seed=seed)
    assert (
        "test accuracy 86.00 %, validation 70.00 %, n = 3. custom-0 itself: test accuracy 85.00 %."
        in (findings.budgets(compared())[0])
    )
    tags, _ = run_tags.by_budget(compared())["published-base"]
    assert tags["test_accuracy"].startswith("86.00 %, n = 3, 95 % interval over seeds ")
    assert tags["run_test_accuracy"] == "85.00 %"


def test_times_of_files_on_different_processors_are_not_compared():
    list_runs("custom-0", "compact-0")
    for run in ("custom-0", "compact-0"):
        write_run(run)
        write_export(run)
    assert "ms: median for one image, 2 threads of Made-up 9000. arena:" in markdown.page(compared())
    path = Path("results/compact-0/export/speed.json")
    files.write_json(path, files.read_json(path) | {"processor_model": "26 2"})
    where = "custom-0 on 2 threads of Made-up 9000; compact-0 on 2 threads of Made-up 9000 (26/2)"
    assert f"ms: median for one image, {where} (not comparable between processors)." in markdown.page(compared())


def test_student_is_compared_with_what_its_teacher_cost(capsys):
    list_runs("custom-0", "compact-0")
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["recipes"]["compact"] |= {"teacher": "custom-0", "teacher_weight": 0.5}
    tree["runs"]["compact-0"]["needs"] = "results/custom-0/model.keras"
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_run("custom-0")
    write_run("compact-0")
    said = "compact learned from custom-0 (92,027 parameters, 2.0 minutes of training), which counts in no limit."
    assert said in " ".join(printed(capsys).split())
    comparison = compared()
    assert said in markdown.page(comparison)
    assert said in cards.card(comparison, "compact")
    assert said not in cards.card(comparison, "custom")
    assert comparison["champions"]["published-custom"]["recipe"] == "compact"
    assert said in findings.answer(comparison, "published-custom")
    assert said in findings.budgets(comparison)[1]
    histories = compare.read_histories(compare.load(params.read()))
    values = {line["name"]: set(line["values"]) for line in content.curves(comparison, histories)["lines"]}
    assert values["custom"] - values["compact"] == {"loss"}


def test_speed_without_the_latency_of_a_file_is_refused_with_its_command():
    list_runs("custom-0")
    write_run("custom-0")
    write_export("custom-0")
    path = Path("results/custom-0/export/speed.json")
    files.write_json(path, files.read_json(path) | {"latency_ms": {"float32": 0.36}})
    with pytest.raises(PipelineError, match=r"speed\.json lacks the latency of int8: make it with `python"):
        compared()
