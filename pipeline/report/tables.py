"""The comparison as rows of text, the header first. Terminal and Markdown show the same cells.

Every table fits into 60 columns with no number broken, or is shown in Markdown only.
"""

import re
from typing import Any

from pipeline.records.record import NOT_COMPARABLE

FORMATS = {  # key in comparison.json: format, scale
    "test_accuracy": (".2f", 100),
    "test_accuracy_std": (".2f", 100),
    "test_accuracy_flip": (".2f", 100),
    "test_loss": (".4f", 1),
    "val_accuracy": (".2f", 100),
    "val_loss": (".4f", 1),
    "seeds": ("d", 1),
    "parameters": (",d", 1),
    "multiply_adds": (",.1f", 1e-6),
    "epochs": ("d", 1),
    "training_minutes": (",.1f", 1),
    "images_per_second": (",.0f", 1),
    "bytes": (",d", 1),
    "latency_ms": (".2f", 1),
    "test_agreement": (".2f", 100),
    "arena_bytes": (",d", 1),
}
OFF = (0, "none", "moving")  # values of a recipe's keys that mean: not used
ACCURACY = {
    "test_accuracy": "test\n%",
    "test_accuracy_std": "\nstd",
    "seeds": "\nn",
    "val_accuracy": "val.\n%",
    "test_accuracy_flip": "flip\n%",
    "parameters": "\nparameters",
}
COST = {
    "multiply_adds": "multiply-\nadds, M",
    "epochs": "\nepochs",
    "training_minutes": "\nminutes",
    "images_per_second": "\nimages/s",
}
EXPORTS = {
    "bytes": "\nbytes",
    "val_accuracy": "val.\n%",
    "test_accuracy": "test\n%",
    "latency_ms": "\nms",
    "test_agreement": "same\nclass %",
    "arena_bytes": "arena,\nbytes",
}
MEANS = {  # key: name, unit
    "test_accuracy": "test accuracy, %",
    "test_loss": "test loss, nats",
    "val_accuracy": "validation accuracy, %",
    "val_loss": "validation loss, nats",
}
TITLE = "CIFAR-10: runs and published results"
UNKNOWN = "–"  # noqa: RUF001
NUMBER = re.compile(rf"{UNKNOWN}|[+-]?[\d.,]+( to [+-]?[\d.,]+)?|[<\d.]+")

Rows = list[list[str]]


def used(recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe's keys that are not off; a temperature is of use to those who have a teacher alone."""
    on = {key: value for key, value in recipe.items() if value not in OFF}
    return {key: value for key, value in on.items() if key != "temperature" or "teacher" in on}


def accuracy(comparison: dict[str, Any]) -> Rows:
    """Accuracies and size of the published results and of the recipes."""
    return _metrics(comparison, ACCURACY)


def cost(comparison: dict[str, Any]) -> Rows:
    """What the published results and the recipes cost."""
    return _metrics(comparison, COST)


def _metrics(comparison: dict[str, Any], columns: dict[str, str]) -> Rows:
    rows = {f"{row['run']}*": row for row in comparison["published"]} | comparison["recipes"]
    return [["", *columns.values()], *([name, *(cell(row, key) for key in columns)] for name, row in rows.items())]


def means(comparison: dict[str, Any]) -> Rows:
    """Mean, standard deviation and interval of each recipe's accuracies and losses."""
    rows = [["recipe", "metric", "n", "mean", "std", "95 % interval of the mean"]]
    for recipe, row in comparison["recipes"].items():
        for key, name in MEANS.items():
            form, scale = FORMATS[key]
            std = row[f"{key}_std"]
            cells = [cell(row, "seeds"), cell(row, key), UNKNOWN if std is None else format(scale * std, form)]
            rows.append([recipe, name, *cells, interval(row[f"{key}_interval"], form, scale)])
    return rows


def pairs(comparison: dict[str, Any]) -> Rows:
    """Each pair of recipes, or of their lowest seeds: difference in test accuracy, interval, verdict, adjusted p."""
    rows = [["test accuracy,\ndifference", "\npoints", "\n95 % interval", "\nverdict", "\np"]]
    for pair in comparison["pairs"]:
        names = pair["recipes"] if pair["of"] == "recipes" else [runs[0] for runs in pair["runs"]]
        difference = f"{100 * pair['difference']:+.2f}"
        rows.append([" - ".join(names), difference, interval(pair["interval"]), pair["verdict"], p(pair["p_adjusted"])])
    return rows


def against_published(comparison: dict[str, Any]) -> Rows:
    """Each recipe's difference from each published result."""
    rows = [["test accuracy,\ndifference", "\npoints", "\n95 % interval"]]
    for row in comparison["against_published"]:
        difference = f"{100 * row['difference']:+.2f}"
        rows.append([f"{row['recipe']} - {row['published']}", difference, interval(row["interval"])])
    return rows


def descriptions(comparison: dict[str, Any]) -> Rows:
    """Calibration error and each class's recall, by recipe."""
    described = comparison["descriptions"]
    names = list(next(iter(described.values())))
    return [["%", *described]] + [
        [name, *(f"{100 * value:.1f} ({interval([low, high], '.1f')})" for value, low, high in values)]
        for name in names
        for values in [[of[name] for of in described.values()]]
    ]


def exports(comparison: dict[str, Any]) -> Rows:
    """Each exported file, after the published ones; nothing but a header where no run is exported."""
    if not comparison["exports"]:
        return [["file", *EXPORTS.values()]]
    files = {f"{published['name']}*": published for published in comparison["published_exports"]}
    files |= {row["run"]: row for row in comparison["exports"].values()}
    return [["file", *EXPORTS.values()]] + [
        [f"{name} {kind}", *(cell(row[kind], key) for key in EXPORTS)]
        for name, row in files.items()
        for kind in ("float32", "int8")
        if row[kind]
    ]


def budgets(comparison: dict[str, Any]) -> Rows:
    """Every budget against every recipe."""
    return [["budget", "recipe", "result", ""]] + [
        [budget, recipe, "pass" if result["passes"] else "fail", ", ".join(result["violations"])]
        for budget, results in comparison["budgets"].items()
        for recipe, result in results.items()
    ]


def runs(comparison: dict[str, Any]) -> Rows:
    """Every run, when and where it was trained."""
    return [["run", "test %", "minutes", "begun (UTC)", "on", "with", "train/val/test images"]] + [
        [run["run"], cell(run, "test_accuracy"), cell(run, "training_minutes"), *run["origin"]]
        for run in comparison["runs"]
    ]


def cell(row: dict[str, Any], key: str) -> str:
    """A metric as text; a dash where it is unknown."""
    form, scale = FORMATS[key]
    return UNKNOWN if row.get(key) is None else format(scale * row[key], form)


def interval(limits: list[float] | None, form: str = ".2f", scale: float = 100) -> str:
    """An interval as text; a dash where there is none. A limit that would look like 0 has one digit more."""
    if limits is None:
        return UNKNOWN
    texts = [format(scale * limit, form) for limit in limits]
    return " to ".join(
        text if float(text) or not limit else f"{scale * limit:.1g}" for text, limit in zip(texts, limits, strict=True)
    )


def p(value: float) -> str:
    """A p value with as many digits as matter."""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def are_numbers(rows: Rows) -> list[bool]:
    """For each column, whether all its cells are numbers or intervals."""
    return [all(NUMBER.fullmatch(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]


def title(text: str, comparison: dict[str, Any]) -> str:
    """The title, with a label if the runs used only a part of the images."""
    return text if comparison["comparable"] else f"{text} ({NOT_COMPARABLE})"
