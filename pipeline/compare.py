"""The runs of params.yaml's list beside the published figures: `report/`, and tables on the terminal.

`report/comparison.json` holds all that the tables say; `--show` prints them again from it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

from pipeline.config import params
from pipeline.records import record
from pipeline.records.record import NOT_COMPARABLE
from pipeline.system import command
from pipeline.system.command import PipelineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT = Path("report")
SPLITS = ("train_images", "val_images", "test_images")
COLUMNS = {  # key in comparison.json: header, format, scale
    "test_accuracy": ("test\n%", ".2f", 100),
    "test_accuracy_spread": ("\nspread", ".2f", 100),
    "seeds": ("\nn", "d", 1),
    "val_accuracy": ("val.\n%", ".2f", 100),
    "test_accuracy_flip": ("flip\n%", ".2f", 100),
    "parameters": ("\nparameters", ",d", 1),
    "multiply_adds": ("multiply-\nadds, M", ",.1f", 1e-6),
    "epochs": ("\nepochs", "d", 1),
    "training_minutes": ("\nminutes", ",.1f", 1),
    "images_per_second": ("\nimages/s", ",.0f", 1),
}
# Okabe and Ito's colours, which colour-blind eyes tell apart; black and grey are for what is published.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TITLE = "CIFAR-10: runs and published figures"
UNKNOWN = "–"  # noqa: RUF001
HOW = """\
- Accuracy is that of the final weights: no epoch was chosen. The n runs of a recipe differ in nothing but their seed;
  test, validation and flip-averaged accuracy are means over them.
- The validation images are held out of the training images, as many of each class. The test images are read once, by
  `evaluate`. In the published text they were the validation split, which one watches while one chooses.
- Flip-averaged: the mean of the answers to a test image and to its mirror image. No budget counts it.
- Parameters include the moving statistics of batch normalisation; multiply-adds are those of convolutions and dense
  layers, for one image.
- Training minutes: the sum over the epochs. Images/s: the median over the epochs, in training. Means over the n runs,
  on the devices below."""

History = list[dict[str, float]]
Rows = list[list[str]]


def load(settings: params.Params) -> dict[str, record.Record]:
    """The records of the runs that params.yaml lists; what else lies in `results/` is not looked at.

    Raises:
        PipelineError: a run of the list is not trained or not evaluated.
    """
    records = {}
    for run, listed in settings.runs.items():
        problem = None
        if not (record.RESULTS / run / "training.json").exists():
            problem = "has no record"
        else:
            records[run] = loaded = record.load(run)
            recipe, seed, status = (loaded.training[key] for key in ("recipe", "seed", "status"))
            if status != "finished":
                problem = f"has the status {status!r}"
            elif (recipe, seed) != (listed.recipe, listed.seed):
                problem = f"was trained as recipe {recipe!r} with seed {seed}, not as params.yaml lists it"
            elif not loaded.evaluation:
                problem = "is not evaluated"
            elif lacking := _lacking(loaded):
                problem = f"lacks {', '.join(lacking)}"
        if problem:
            raise PipelineError(f"run {run!r} {problem}: make it with `dvc repro evaluate@{run}`")
    return records


def _lacking(loaded: record.Record) -> list[str]:
    """What a record may lack to be one, but not to be compared."""
    figures = ("val_accuracy", "test_accuracy_flip", "parameters", "multiply_adds", "epochs")
    where = ("device", "threads", "processor", "precision", "tensorflow", "keras")
    return [
        *(key for key in figures if key not in loaded.evaluation),
        *(key for key in where if key not in loaded.training["environment"]),
        *(key for key in SPLITS if not isinstance(loaded.training["params"].get(key), int)),
    ]


def compare(settings: params.Params, records: dict[str, record.Record]) -> dict[str, Any]:
    """What comparison.json holds: numbers by recipe and budget, and in lists what `dvc metrics` shall leave out."""
    runs = [_figures(loaded) for loaded in records.values()]
    by_recipe = {recipe: [run for run in runs if run["recipe"] == recipe] for recipe in settings.recipes}
    recipes = {recipe: _over_seeds(seeds) for recipe, seeds in by_recipe.items() if seeds}
    return {
        "comparable": all(run["comparable"] for run in runs),
        "recipes": recipes,
        "budgets": {
            name: {recipe: _verdict(budget, figures) for recipe, figures in recipes.items()}
            for name, budget in settings.compare.budgets.items()
        },
        "limits": [
            f"{name}: at most {budget.max_parameters:,} parameters and {budget.max_epochs} epochs, "
            f"test accuracy above {100 * budget.accuracy_to_beat:.5g} %"
            for name, budget in settings.compare.budgets.items()
        ],
        "published": [_published(record.load_reference(name)) for name in record.references()],
        "runs": runs,
    }


def read_histories(records: dict[str, record.Record]) -> dict[str, History]:
    """Epoch by epoch, what is published, where it is, then the runs."""
    published = {name: record.load_reference(name)["history"] for name in record.references()}
    return {name: rows for name, rows in published.items() if rows} | {
        run: loaded.history for run, loaded in records.items()
    }


def _figures(loaded: record.Record) -> dict[str, Any]:
    """One run: its figures and how they came about."""
    training, evaluation, where = loaded.training, loaded.evaluation, loaded.training["environment"]
    return {
        **{key: training[key] for key in ("run", "recipe", "seed", "comparable")},
        **{key: evaluation[key] for key in ("test_accuracy", "val_accuracy", "test_accuracy_flip")},
        **{key: evaluation[key] for key in ("parameters", "multiply_adds", "epochs")},
        "training_minutes": round(sum(epoch["epoch_seconds"] for epoch in training["epochs"]) / 60, 2),
        "images_per_second": round(median(epoch["images_per_second"] for epoch in training["epochs"]), 1),
        "origin": [
            f"{datetime.fromtimestamp(training['started_ms'] / 1000, UTC):%Y-%m-%d}",
            f"{where['device']} ({where['threads']} threads), {where['processor']}, {where['precision']}",
            f"TensorFlow {where['tensorflow']}, Keras {where['keras']}",
            "/".join(f"{training['params'][split]:,}" for split in SPLITS),
        ],
    }


def _over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    # Six decimals: 10,000 images tell four, and no rounding error of floats shall pass a budget.
    means = ("test_accuracy", "val_accuracy", "test_accuracy_flip", "training_minutes", "images_per_second")
    return {
        **{key: round(mean(run[key] for run in runs), 6) for key in means},
        "test_accuracy_spread": round(stdev(run["test_accuracy"] for run in runs), 6) if len(runs) > 1 else None,
        "seeds": len(runs),
        **{key: max(run[key] for run in runs) for key in ("parameters", "multiply_adds", "epochs")},  # all are equal
    }


def _published(figures: dict[str, Any]) -> dict[str, Any]:
    seconds = figures["training_seconds"]
    return {
        **{key: figures[key] for key in ("run", "parameters", "multiply_adds", "epochs")},
        **{key: figures[key] for key in ("accuracy_measured_on", "source", "notes")},
        "test_accuracy": figures["accuracy"],
        "seeds": 1,
        "training_minutes": seconds and round(seconds / 60, 2),
    }


def _verdict(budget: params.Budget, figures: dict[str, Any]) -> dict[str, Any]:
    because = []
    if figures["parameters"] > budget.max_parameters:
        because.append(f"{figures['parameters']:,} parameters exceed {budget.max_parameters:,}")
    if figures["epochs"] > budget.max_epochs:
        because.append(f"{figures['epochs']} epochs exceed {budget.max_epochs}")
    if figures["test_accuracy"] <= budget.accuracy_to_beat:
        because.append(f"{100 * figures['test_accuracy']:.5g} % does not beat {100 * budget.accuracy_to_beat:.5g} %")
    return {"passes": not because, "because": because}


def figure_rows(comparison: dict[str, Any]) -> Rows:
    """The figures of what is published, then of the recipes; the header first."""
    rows = {f"{row['run']}*": row for row in comparison["published"]} | comparison["recipes"]
    header = ["", *(header for header, _, _ in COLUMNS.values())]
    return [header, *([name, *(_cell(row, key) for key in COLUMNS)] for name, row in rows.items())]


def run_rows(comparison: dict[str, Any]) -> Rows:
    """Every run, when and where it was trained; the header first."""
    return [["run", "test %", "minutes", "begun (UTC)", "on", "with", "train/val/test images"]] + [
        [run["run"], _cell(run, "test_accuracy"), _cell(run, "training_minutes"), *run["origin"]]
        for run in comparison["runs"]
    ]


def budget_rows(comparison: dict[str, Any]) -> Rows:
    """Every budget against every recipe; the header first."""
    return [["budget", "recipe", "result", ""]] + [
        [budget, recipe, "pass" if verdict["passes"] else "fail", ", ".join(verdict["because"])]
        for budget, verdicts in comparison["budgets"].items()
        for recipe, verdict in verdicts.items()
    ]


def _cell(row: dict[str, Any], key: str) -> str:
    _, form, scale = COLUMNS[key]
    return UNKNOWN if row.get(key) is None else format(scale * row[key], form)


def _are_numbers(rows: Rows) -> list[bool]:
    """Of each column, whether it is to be aligned right."""
    return [
        all(row[place] == UNKNOWN or row[place].replace(",", "").replace(".", "").isdigit() for row in rows[1:])
        for place in range(len(rows[0]))
    ]


def _title(text: str, comparison: dict[str, Any]) -> str:
    return text if comparison["comparable"] else f"{text} ({NOT_COMPARABLE})"


def _footnotes(comparison: dict[str, Any]) -> list[str]:
    places = dict.fromkeys(row["accuracy_measured_on"] for row in comparison["published"])
    return [
        "Accuracies in %: test, validation, and test averaged with the mirror images; means over n seeds.",
        "Spread: the sample standard deviation of the test accuracy, in percentage points.",
        *(f"* published, not measured here; accuracy on {place}." for place in places),
        *([] if comparison["comparable"] else [f"{NOT_COMPARABLE}."]),
    ]


def show(comparison: dict[str, Any]) -> None:
    """Prints figures and budgets, at least 100 columns wide so that no number is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, 100)
    for title, rows, notes in (
        (TITLE, figure_rows(comparison), _footnotes(comparison)),
        ("Budgets", budget_rows(comparison), comparison["limits"]),
    ):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name, number in zip(rows[0], _are_numbers(rows), strict=True):
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in rows[1:]:
            table.add_row(*(Text(cell, {"pass": "green", "fail": "red"}.get(cell, "")) for cell in row))
        console.print(_title(title, comparison), "", table, "", *notes, "", sep="\n")


def markdown(comparison: dict[str, Any]) -> str:
    """The report as a page; the pictures lie beside it."""
    blocks = [
        f"# {_title(TITLE, comparison)}",
        _markdown(figure_rows(comparison)),
        "\\\n".join(_footnotes(comparison)).replace("* ", "\\* "),
        "![Validation accuracy by epoch](curves.png)",
        "![Test accuracy by number of parameters](accuracy_vs_parameters.png)",
        f"## {_title('Budgets', comparison)}",
        _markdown(budget_rows(comparison)),
        "\\\n".join(comparison["limits"]),
        "## How it was measured",
        HOW,
        _markdown(run_rows(comparison)),
        "## What is published",
        "\n".join(f"- {row['run']}: {' '.join([row['source'], *row['notes']])}" for row in comparison["published"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown(rows: Rows) -> str:
    header = [name.replace("-\n", "-").replace("\n", " ").strip() for name in rows[0]]
    rule = ["---:" if number else "---" for number in _are_numbers(rows)]
    cells = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *cells])


def draw_curves(comparison: dict[str, Any], histories: dict[str, History]) -> bytes:
    """Validation accuracy by epoch, as PNG."""
    figure, axes = _axes(
        "Validation accuracy by epoch", "epoch", "validation accuracy, % (published: test images)", comparison
    )

    def curve(name: str, label: str, colour: str, dashes: str = "-") -> None:
        epochs, values = zip(*((row["epoch"], 100 * row["val_accuracy"]) for row in histories[name]), strict=True)
        axes.plot(epochs, values, dashes, color=colour, alpha=0.8, label=label, marker=".", markevery=[-1])

    for row, dashes in zip(comparison["published"], cycle(("--", ":", "-.")), strict=False):
        if row["run"] in histories:
            curve(row["run"], _label(row["run"], row), "black", dashes)
        else:
            label = _label(row["run"], row) + " (last epoch)"
            axes.axhline(100 * row["test_accuracy"], color="0.5", linestyle=dashes, label=label)
    for (recipe, figures), colour in zip(comparison["recipes"].items(), cycle(COLOURS), strict=False):
        seeds = [run["run"] for run in comparison["runs"] if run["recipe"] == recipe]
        for place, run in enumerate(seeds):
            curve(run, "" if place else _label(recipe, figures, "val_accuracy"), colour)
    # What is compared is at the end: the first tenth of the epochs may fall out of the picture.
    late = [row["val_accuracy"] for rows in histories.values() for row in rows[len(rows) // 10 :]]
    axes.set_ylim(bottom=max(0, 100 * min(late) - 2))
    return _png(figure)


def draw_accuracy_vs_parameters(comparison: dict[str, Any]) -> bytes:
    """Test accuracy by number of parameters, as PNG; grey: fewer parameters and better than what is published."""
    from matplotlib.ticker import LogLocator, NullLocator

    title = "Test accuracy by number of parameters"
    figure, axes = _axes(title, "parameters (grey: fewer, and better, than published)", "test accuracy, %", comparison)
    rows = [*comparison["published"], *comparison["recipes"].values()]
    left, right = min(row["parameters"] for row in rows) / 2, max(row["parameters"] for row in rows) * 2
    for row, marker in zip(comparison["published"], cycle("sDv"), strict=False):
        x, y = row["parameters"], 100 * row["test_accuracy"]
        axes.fill_between([left, x], y, 100, color="black", alpha=0.06, linewidth=0)
        axes.plot(x, y, marker, color="black", fillstyle="none", label=_label(row["run"], row))
    for (recipe, row), colour in zip(comparison["recipes"].items(), cycle(COLOURS), strict=False):
        x, y, spread = row["parameters"], 100 * row["test_accuracy"], 100 * (row["test_accuracy_spread"] or 0)
        axes.errorbar(x, y, spread or None, fmt="o", color=colour, capsize=4, label=_label(recipe, row))
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(top=100 * max(row["test_accuracy"] + (row.get("test_accuracy_spread") or 0) for row in rows) + 1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    return _png(figure)


def _axes(title: str, x: str, y: str, comparison: dict[str, Any]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # without pyplot: no state, no window

    figure = Figure((9, 4.5), dpi=150, layout="constrained")
    figure.suptitle(_title(title, comparison))
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _label(name: str, figures: dict[str, Any], key: str = "test_accuracy") -> str:
    return f"{name}: {_cell(figures, key)}" + (f" (mean of {figures['seeds']})" if figures["seeds"] > 1 else "")


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.legend(loc="outside right center", frameon=False)  # beside the axes: there it hides nothing
    figure.savefig(content, metadata={"Software": None})  # else the file names matplotlib's version
    return content.getvalue()


def write_report(comparison: dict[str, Any], histories: dict[str, History]) -> None:
    """Writes `report/`: every file is made before the first is replaced. Equal input gives equal bytes."""
    table = io.StringIO()
    columns = ["run", "epoch", "val_accuracy", "val_loss", "accuracy", "loss"]
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"run": name, **row} for name, rows in histories.items() for row in rows)
    files = {
        "curves.csv": table.getvalue().encode(),
        "curves.png": draw_curves(comparison, histories),
        "accuracy_vs_parameters.png": draw_accuracy_vs_parameters(comparison),
        "README.md": markdown(comparison).encode(),
        "comparison.json": (json.dumps(comparison, indent=1) + "\n").encode(),
    }
    REPORT.mkdir(exist_ok=True)
    partials = {name: REPORT / f".{name}.partial" for name in files}
    try:
        for name, content in files.items():
            partials[name].write_bytes(content)
        for name, partial in partials.items():
            os.replace(partial, REPORT / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def main() -> None:
    """Compares, writes the report and prints its tables; with --show it only prints."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="print the recorded tables, compute nothing")
    if not parser.parse_args().show:
        settings = params.read()
        records = load(settings)
        write_report(compare(settings, records), read_histories(records))
    path = REPORT / "comparison.json"
    if path.exists():
        comparison = record.read_json(path)
        try:
            show(comparison)
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PipelineError(
                f"{path} does not hold a comparison ({type(error).__name__}: {error}); make it with `dvc repro compare`"
            ) from None
    else:
        print("nothing is recorded yet: `dvc repro` trains, evaluates and compares the runs of params.yaml")


if __name__ == "__main__":
    command.run(main)
