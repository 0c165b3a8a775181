"""The comparison as rows of text, the header first: the terminal and the Markdown page show the same cells."""

from typing import Any

from pipeline.records.record import NOT_COMPARABLE

COLUMNS = {  # key in comparison.json: header, format, scale
    "test_accuracy": ("test\n%", ".2f", 100),
    "test_accuracy_std": ("\nstd", ".2f", 100),
    "seeds": ("\nn", "d", 1),
    "val_accuracy": ("val.\n%", ".2f", 100),
    "test_accuracy_flip": ("flip\n%", ".2f", 100),
    "parameters": ("\nparameters", ",d", 1),
    "multiply_adds": ("multiply-\nadds, M", ",.1f", 1e-6),
    "epochs": ("\nepochs", "d", 1),
    "training_minutes": ("\nminutes", ",.1f", 1),
    "images_per_second": ("\nimages/s", ",.0f", 1),
}
TITLE = "CIFAR-10: runs and published results"
UNKNOWN = "–"  # noqa: RUF001

Rows = list[list[str]]


def metrics(comparison: dict[str, Any]) -> Rows:
    """Metrics of what is published, then of the recipes."""
    rows = {f"{row['run']}*": row for row in comparison["published"]} | comparison["recipes"]
    header = ["", *(header for header, _, _ in COLUMNS.values())]
    return [header, *([name, *(cell(row, key) for key in COLUMNS)] for name, row in rows.items())]


def runs(comparison: dict[str, Any]) -> Rows:
    """Every run, when and where it was trained."""
    return [["run", "test %", "minutes", "begun (UTC)", "on", "with", "train/val/test images"]] + [
        [run["run"], cell(run, "test_accuracy"), cell(run, "training_minutes"), *run["origin"]]
        for run in comparison["runs"]
    ]


def budgets(comparison: dict[str, Any]) -> Rows:
    """Every budget against every recipe."""
    return [["budget", "recipe", "result", ""]] + [
        [budget, recipe, "pass" if result["passes"] else "fail", ", ".join(result["violations"])]
        for budget, results in comparison["budgets"].items()
        for recipe, result in results.items()
    ]


def cell(row: dict[str, Any], key: str) -> str:
    """A metric as text; a dash where it is unknown."""
    _, form, scale = COLUMNS[key]
    return UNKNOWN if row.get(key) is None else format(scale * row[key], form)


def are_numbers(rows: Rows) -> list[bool]:
    """For each column, whether all its cells are numbers."""
    return [
        all(row[column] == UNKNOWN or row[column].replace(",", "").replace(".", "").isdigit() for row in rows[1:])
        for column in range(len(rows[0]))
    ]


def title(text: str, comparison: dict[str, Any]) -> str:
    """The title, with a label if the runs used only a part of the images."""
    return text if comparison["comparable"] else f"{text} ({NOT_COMPARABLE})"


def footnotes(comparison: dict[str, Any]) -> list[str]:
    """What the metrics' table needs said."""
    measured_on = dict.fromkeys(row["accuracy_measured_on"] for row in comparison["published"])
    return [
        "Accuracies in %: test, validation, and test averaged with the flipped images; means over n seeds.",
        "std: the sample standard deviation of the test accuracy, in percentage points.",
        *(f"* published, not measured here; accuracy on {images}." for images in measured_on),
        *([] if comparison["comparable"] else [f"{NOT_COMPARABLE}."]),
    ]
