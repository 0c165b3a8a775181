"""What the page shows: the comparison's numbers, arranged for its table, charts and pair view."""

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import metrics
from pipeline.evaluation.predictions import Predictions
from pipeline.records import exports
from pipeline.records.record import Record
from pipeline.report import findings, statistics, tables
from pipeline.report.page.images import disagreements
from pipeline.training.cifar10 import CLASS_NAMES

MODELS = Path(__file__).parents[2] / "models"
Comparison = dict[str, Any]
Histories = dict[str, list[dict[str, float]]]
COLUMNS = {
    key: name.replace("-\n", "-").replace("\n", " ").strip() for key, name in {**tables.ACCURACY, **tables.COST}.items()
} | {"training_minutes": "training minutes", "images_per_second": "training images/s"}
COSTS = {  # of a recipe: label, unit
    "parameters": ("parameters", "parameters"),
    "multiply_adds": ("multiply-adds for one image", "multiply-adds"),
    "training_minutes": ("training minutes", "minutes"),
}
FILE_COSTS = {  # of an exported file: label, unit
    "bytes": ("bytes of the {kind} file", "bytes"),
    "arena_bytes": ("arena bytes, {kind} file", "bytes"),
    "latency_ms": ("ms for one image, {kind} file", "ms"),
}
DEVICE_COSTS = {"training_minutes", "latency_ms"}  # comparable on one device only
METRICS = {  # columns of a history: label, unit, scale
    "val_accuracy": ("validation accuracy", "%", 100),
    "accuracy": ("training accuracy", "%", 100),
    "val_loss": ("validation loss", "nats", 1),
    "loss": ("training loss", "nats", 1),
    "learning_rate": ("learning rate", "", 1),
}


def lowest_seeds(comparison: Comparison) -> dict[str, str]:
    """Each recipe's run with the lowest seed, by recipe."""
    runs = sorted(comparison["runs"], key=lambda run: run["seed"], reverse=True)
    lowest = {run["recipe"]: run["run"] for run in runs}
    return {recipe: lowest[recipe] for recipe in comparison["recipes"]}


def accuracy_intervals(comparison: Comparison, predictions: dict[str, Predictions]) -> dict[str, list[float]]:
    """95 % intervals of each recipe's test accuracy: over further images and, with two seeds or more, seeds."""
    intervals = {}
    for recipe in comparison["recipes"]:
        of_recipe = [predictions[run] for run in _runs(comparison, recipe)]
        correct = [seed.test_probabilities.argmax(axis=1) == seed.test_labels for seed in of_recipe]
        estimate = statistics.over_seeds_and_images(np.stack(correct).astype(np.float64))
        intervals[recipe] = [round(estimate.low, 6), round(estimate.high, 6)]
    return intervals


def rows(comparison: Comparison, intervals: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The rows of the table, the best recipe first: name, kind, badges, one cell a column, one result a budget."""
    marks: dict[str, list[str]] = {}
    for budget, champion in comparison["champions"].items():
        if champion["recipe"]:
            marks.setdefault(champion["recipe"], []).append(f"{champion['status']}: {budget}")
    published = {row["run"]: ("published", row, None) for row in comparison["published"]}
    best_first = sorted(comparison["recipes"].items(), key=lambda item: -item[1]["test_accuracy"])
    recipes = {recipe: ("recipe", row, intervals[recipe]) for recipe, row in best_first}
    return [
        {
            "name": name,
            "kind": kind,
            "marks": marks.get(name, []),
            "cells": [{"key": key, "text": tables.cell(row, key), "value": row.get(key)} for key in COLUMNS],
            "interval": interval,
            "budgets": [
                results[name] | {"budget": budget} if name in results else None
                for budget, results in comparison["budgets"].items()
            ],
        }
        for name, (kind, row, interval) in (recipes | published).items()
    ]


def recipes(comparison: Comparison) -> tables.Rows:
    """What each recipe trains, and how."""
    return [["recipe", "network", "optimizer", "regularization", "augmentation", "teacher"]] + [
        [
            recipe,
            given["model"],
            f"{given['optimizer']}, learning rate {given['learning_rate']:g}, {given['schedule']} schedule, "
            f"warm-up {given['warmup_fraction']:g}, batches of {given['batch_size']}, {given['epochs']} epochs",
            _on(
                given,
                weight_decay="weight decay {}",
                label_smoothing="label smoothing {}",
                ema_decay="EMA {}",
                norm_statistics="{} norm statistics",
            ),
            _on(
                given,
                flip="{} flip",
                crop_pixels="shift by up to {} pixels",
                augment_policy="{} policy",
                augment_strength="strength {}",
            ),
            _on(given, teacher="{}", teacher_weight="weight {}", temperature="temperature {}"),
        ]
        for recipe, given in comparison["recipe_params"].items()
    ]


def _on(given: dict[str, Any], **words: str) -> str:
    """The values of a recipe that are not off, each in its words."""
    used = tables.used(given)
    return ", ".join(text.format(used[key]) for key, text in words.items() if key in used) or "none"


def networks(comparison: Comparison) -> dict[str, str]:
    """What each network's file in pipeline/models says of it, by model; nothing of a file without a docstring."""
    models = dict.fromkeys(given["model"] for given in comparison["recipe_params"].values())
    return {model: text for model in models if (text := _docstring(MODELS / f"{model}.py"))}


def _docstring(path: Path) -> str:
    """A file's docstring as one line; empty where there is none to read, as in a file that is broken meanwhile."""
    try:
        return " ".join((ast.get_docstring(ast.parse(path.read_bytes())) or "").split())
    except (OSError, SyntaxError, ValueError):
        return ""


def bar_limits(comparison: Comparison, intervals: dict[str, list[float]]) -> tuple[int, int]:
    """The ends of the table's interval bars, whole percents."""
    ends = [end for interval in intervals.values() for end in interval]
    ends += [row["test_accuracy"] for row in comparison["published"]]
    low = math.floor(100 * min(ends))
    return low, max(math.ceil(100 * max(ends)), low + 1)


def scatter(comparison: Comparison, intervals: dict[str, list[float]]) -> list[dict[str, Any]]:
    """For each cost its points, cheapest first, and their Pareto front."""
    published = {row["run"]: ("published", row) for row in comparison["published"]}
    recipes = {
        recipe: ("recipe", row | {"interval": intervals[recipe]}) for recipe, row in comparison["recipes"].items()
    }
    references = {row["name"]: row for row in comparison["published_exports"]}
    as_models = {name: ("published", row | row["float32"]) for name, row in references.items()}
    one_machine = len({row["timed_on"] for row in comparison["recipes"].values()}) == 1
    axes = [_axis(key, *COSTS[key], key, published | as_models | recipes, one_machine) for key in COSTS]
    processors = {(row["threads"], row["processor"]) for row in comparison["exports"].values()}
    for kind in exports.FILES:
        files = {name: ("published", row | row[kind]) for name, row in references.items() if row[kind]}
        files |= {
            recipe: ("recipe", {"epochs": comparison["recipes"][recipe]["epochs"]} | row[kind])
            for recipe, row in comparison["exports"].items()
            if row[kind]
        }
        for key, (label, unit) in FILE_COSTS.items():
            axes.append(_axis(f"{kind}_{key}", label.format(kind=kind), unit, key, files, len(processors) == 1))
    return [axis for axis in axes if axis["points"]]


def _axis(
    name: str, label: str, unit: str, key: str, rows: dict[str, tuple[str, dict[str, Any]]], one_device: bool
) -> dict[str, Any]:
    points = [
        {
            "name": name,
            "kind": kind,
            "cost": row[key],
            "accuracy": row["test_accuracy"],
            "interval": row.get("interval"),
            "epochs": row.get("epochs"),
        }
        for name, (kind, row) in rows.items()
        if row.get(key)
    ]
    points.sort(key=lambda point: (point["cost"], -point["accuracy"]))
    comparable = points
    if key in DEVICE_COSTS:
        comparable = [point for point in points if point["kind"] == "recipe"] if one_device else []
    return {"key": name, "label": label, "unit": unit, "points": points, "front": front(comparable)}


def front(points: list[dict[str, Any]]) -> list[str]:
    """The names on the Pareto front of points, cheapest first: no cheaper point is as accurate."""
    names, best = [], 0.0
    for point in points:
        if point["accuracy"] > best:
            names.append(point["name"])
            best = point["accuracy"]
    return names


def curves(comparison: Comparison, histories: Histories) -> dict[str, Any]:
    """By metric and line, one list of values a run, epoch by epoch; the published epochs come last.

    The training loss of a recipe with a teacher is left out: it is a different quantity.
    """
    taught = {recipe for recipe, given in comparison["recipe_params"].items() if "teacher" in tables.used(given)}
    runs = {recipe: _runs(comparison, recipe) for recipe in comparison["recipes"]}
    published = {row["run"]: [row["run"]] for row in comparison["published"] if row["run"] in histories}
    lines = []
    for kind, names in (("recipe", runs), ("published", published)):
        for name, of_line in names.items():
            columns = [key for key in METRICS if all(key in histories[run][0] for run in of_line)]
            columns = [key for key in columns if key != "loss" or name not in taught]
            values = {key: [[row[key] for row in histories[run]] for run in of_line] for key in columns}
            lines.append({"name": name, "kind": kind, "runs": of_line, "values": values})
    keys = [key for key in METRICS if any(key in line["values"] for line in lines)]
    shown = [{"key": key, **dict(zip(("label", "unit", "scale"), METRICS[key], strict=True))} for key in keys]
    return {"metrics": shown, "lines": lines}


def pairs(comparison: Comparison, predictions: dict[str, Predictions], budget: str | None) -> dict[str, Any]:
    """Verdicts in words, recalls, confusion matrices on the test images, and where recipes disagree in validation.

    Args:
        comparison: what comparison.json holds.
        predictions: by run.
        budget: whose champion is shown first.
    """
    verdicts = []
    for pair in comparison["pairs"]:
        first = pair["recipes"][0]
        ours, theirs = findings.sides(pair, first)
        clause = findings.verdict(pair, ours, theirs, first)
        sentences = [f"{clause}.", findings.certainty(comparison, pair), pair["note"] and f"{pair['note']}."]
        p = tables.p(pair["p_adjusted"])
        details = f"Adjusted p {p.replace('<', '< ') if '<' in p else f'= {p}'}."
        verdicts.append({"recipes": pair["recipes"], "text": " ".join(filter(None, [*sentences, details]))})
    recalls = {
        recipe: [described[name] for name in CLASS_NAMES] for recipe, described in comparison["descriptions"].items()
    }
    confusions = {}
    for recipe in comparison["recipes"]:
        seeds = [predictions[run] for run in _runs(comparison, recipe)]
        confusions[recipe] = np.mean([_confusion(seed) for seed in seeds], axis=0).round(1).tolist()
    seen = {recipe: predictions[run] for recipe, run in lowest_seeds(comparison).items()}
    default = _default_pair(comparison, budget)
    shown = {"verdicts": verdicts, "recalls": recalls, "confusions": confusions, "default": default}
    return shown | disagreements(seen)


def digests(comparison: Comparison, records: dict[str, Record]) -> tables.Rows:
    """What a record can be checked by: commit, data, model and exported file, the first 16 digits of each."""
    rows = [["run", "commit", "MD5 of the data", "SHA-256 of model.keras", "SHA-256 of model.tflite"]]
    exported = {row["run"]: row["float32"]["sha256"] for row in comparison["exports"].values()}
    for run, found in records.items():
        environment = found.training.environment
        of_model = found.speed.get("model_sha256"), exported.get(run)
        known = [environment.get("commit"), environment.get("data_hash"), *of_model]
        commit, *others = (str(digest or tables.UNKNOWN)[:16] for digest in known)
        rows.append([run, f"{commit}{' (changed)' if environment.get('dirty') else ''}", *others])
    return rows


def tried(comparison: Comparison) -> str:
    """How often each recipe was trained, as a sentence."""
    seeds = {recipe: row["seeds"] for recipe, row in comparison["recipes"].items()}
    each = ", ".join(f"{recipe} {number}" for recipe, number in seeds.items())
    return f"{sum(seeds.values())} training runs are recorded; seeds of each recipe: {each}."


def _default_pair(comparison: Comparison, budget: str | None) -> list[str]:
    """The recipe of a budget's champion and the best other one; without a champion, the first pair."""
    champion = comparison["champions"].get(budget, {"recipe": None})
    rival = champion["recipe"] and findings.best_other(comparison, champion)
    if rival:
        return [champion["recipe"], rival]
    return [name for pair in comparison["pairs"][:1] for name in pair["recipes"]]


def _runs(comparison: Comparison, recipe: str) -> list[str]:
    return [run["run"] for run in comparison["runs"] if run["recipe"] == recipe]


def _confusion(predictions: Predictions) -> np.ndarray:
    """Test images by true and predicted class, int [10, 10]."""
    return metrics.confusion_matrix(predictions.test_probabilities, predictions.test_labels.astype(np.int64))
