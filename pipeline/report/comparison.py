"""What comparison.json holds: runs, recipes, published results and budgets, with intervals, verdicts and champions.

All other places (metrics.json, the tables, the plots, MLflow's tags) show these numbers.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import combinations
from statistics import mean, median
from typing import Any

import numpy as np

from pipeline.config import params
from pipeline.evaluation import metrics
from pipeline.evaluation.predictions import Predictions
from pipeline.records import references
from pipeline.records.record import Record, processor
from pipeline.report import champions, statistics
from pipeline.training.cifar10 import CLASS_NAMES

OVER_SEEDS = ("test_accuracy", "test_loss", "val_accuracy", "val_loss")
DIFFERENCE = 0.003  # whose number of seeds is told
MOST_CONFUSIONS = 5  # that are told
ASSUMED_STD = (0.002, 0.005)  # of accuracy over seeds, until a recipe has two of them


def compare(
    config: params.Params,
    records: dict[str, Record],
    predictions: dict[str, Predictions],
    exports: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Compares the runs of params.yaml, with each other and with what is published.

    Args:
        config: its recipes, budgets and rules.
        records: by run.
        predictions: by run, of the same test images.
        exports: what the exported files are worth, by run; of a recipe its lowest seed.
    """
    runs = [run_metrics(run) for run in records.values()]
    seeds = {recipe: [run for run in runs if run["recipe"] == recipe] for recipe in config.recipes}
    seeds = {recipe: sorted(runs, key=lambda run: run["seed"]) for recipe, runs in seeds.items() if runs}
    machines = Counter(run["origin"][1] for run in runs)
    recipes = {recipe: over_seeds(runs, machines) for recipe, runs in seeds.items()}
    correct = {recipe: np.stack([_correct(predictions[run["run"]]) for run in runs]) for recipe, runs in seeds.items()}
    published = [_published(references.load_reference(name)) for name in references.names()]
    bins = config.evaluate.calibration_bins
    return {
        "comparable": all(run["comparable"] for run in runs),
        "test_images": len(next(iter(predictions.values())).test_labels),
        "recipes": recipes,
        "pairs": pairs(seeds, correct),
        "against_published": [_against(recipe, correct[recipe], result) for recipe in recipes for result in published],
        "seeds_needed": seeds_needed(list(correct.values())),
        "descriptions": {
            recipe: _description([predictions[run["run"]] for run in runs], bins) for recipe, runs in seeds.items()
        },
        "confusions": {recipe: confusions([predictions[run["run"]] for run in runs]) for recipe, runs in seeds.items()},
        "recipe_params": {recipe: config.recipes[recipe].model_dump() for recipe in recipes},
        "budgets": {
            name: {recipe: within(budget, row) for recipe, row in recipes.items()}
            for name, budget in config.compare.budgets.items()
        },
        "limits": {name: budget.model_dump() for name, budget in config.compare.budgets.items()},
        "champions": champions.choose(config.compare, seeds, recipes),
        "published": published,
        "exports": {config.runs[run].recipe: export for run, export in exports.items()},
        "published_exports": references.exported_files(),
        "runs": runs,
    }


def run_metrics(run: Record) -> dict[str, Any]:
    """One run: its metrics, and when and where it was trained."""
    training, evaluation, environment = run.training, run.evaluation, run.training.environment
    seconds = [epoch.epoch_seconds for epoch in training.epochs]
    return {
        **{key: getattr(training, key) for key in ("run", "recipe", "seed")},
        "comparable": run.comparable,
        **{key: evaluation[key] for key in (*OVER_SEEDS, "test_accuracy_flip", "calibration_error")},
        **{key: evaluation[key] for key in ("parameters", "multiply_adds", "epochs")},
        "training_minutes": round(len(seconds) * median(seconds) / 60, 2),  # an hour of a busy machine does not count
        "images_per_second": round(median(epoch.images_per_second for epoch in training.epochs), 1),
        "precision": environment["precision"],
        "commit": environment["commit"],
        "model_sha256": run.speed.get("model_sha256", ""),
        "origin": [
            f"{datetime.fromtimestamp(training.started_ms / 1000, UTC):%Y-%m-%d}",
            f"{environment['device']} ({environment['threads']} threads), {processor(environment)}, "
            f"{environment['precision']}",
            f"TensorFlow {environment['tensorflow']}, Keras {environment['keras']}",
            "/".join(f"{images:,}" for images in run.images.values()),
        ],
    }


def over_seeds(runs: list[dict[str, Any]], machines: Mapping[str, int]) -> dict[str, Any]:
    """One recipe: means over its runs; with two or more, standard deviations and 95 % intervals of the means.

    Times of different kinds of machine have no mean: they are those of one kind, `timed_on`.

    Args:
        runs: the recipe's.
        machines: how many runs of all recipes each kind of machine trained. Of those that trained this recipe, times
            are taken from the kind that trained most.
    """
    row: dict[str, Any] = {"seeds": len(runs)}
    for key in OVER_SEEDS:
        values = [run[key] for run in runs]
        several = len(values) > 1
        # Six decimals: 10,000 images resolve four, and no rounding error of floats shall pass a budget.
        row[key] = round(mean(values), 6)
        row[f"{key}_std"] = round(float(np.std(values, ddof=1)), 6) if several else None
        row[f"{key}_interval"] = _interval(statistics.over_seeds(values)) if several else None
    for key in ("test_accuracy_flip", "calibration_error"):
        row[key] = round(mean(run[key] for run in runs), 6)
    row["timed_on"] = max((run["origin"][1] for run in runs), key=lambda machine: (machines[machine], machine))
    for key in ("training_minutes", "images_per_second"):
        row[key] = round(mean(run[key] for run in runs if run["origin"][1] == row["timed_on"]), 6)
    return row | {key: runs[0][key] for key in ("parameters", "multiply_adds", "epochs")}  # equal in all of them


def pairs(seeds: dict[str, list[dict[str, Any]]], correct: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each pair of recipes on test accuracy; the better one first, p values adjusted over all pairs.

    Args:
        seeds: each recipe's runs, the lowest seed first.
        correct: whether each of these runs (rows) classifies each test image correctly, float [seeds, images].
    """
    ranked = sorted(seeds, key=lambda recipe: -float(correct[recipe].mean()))
    rows = [_pair(first, second, seeds, correct) for first, second in combinations(ranked, 2)]
    for row, adjusted in zip(rows, statistics.holm([row["p_value"] for row in rows]), strict=True):
        is_told_apart = adjusted < statistics.ALPHA
        better = "better" if row["of"] == "recipes" else "better weights"
        note = ""
        if row["interval"][0] > 0 and not is_told_apart:
            note = f"its own interval excludes 0, but the p value adjusted over all {len(rows)} pairs is not below 0.05"
        row |= {
            "p_adjusted": round(adjusted, 6),
            "verdict": better if is_told_apart else "not told apart",
            "note": note,
        }
    return rows


def _pair(
    first: str, second: str, seeds: dict[str, list[dict[str, Any]]], correct: dict[str, np.ndarray]
) -> dict[str, Any]:
    of_recipes = min(len(seeds[first]), len(seeds[second])) > 1
    sides = {recipe: correct[recipe] if of_recipes else correct[recipe][:1] for recipe in (first, second)}
    # The lowest seeds may rank otherwise than the means.
    first, second = sorted(sides, key=lambda recipe: -float(sides[recipe].mean()))
    ours, theirs = sides[first], sides[second]
    estimate = statistics.difference(ours, theirs)
    return {
        "recipes": [first, second],
        "of": "recipes" if of_recipes else "weights",
        "runs": [[run["run"] for run in seeds[recipe]][: None if of_recipes else 1] for recipe in (first, second)],
        "difference": round(estimate.value, 6),
        "interval": _interval(estimate),
        "p_value": round(estimate.p_value if of_recipes else statistics.mcnemar(ours[0], theirs[0]), 6),
    }


def seeds_needed(correct: list[np.ndarray]) -> dict[str, Any]:
    """How many seeds show a difference of 0.3 points: a range, since the deviation over seeds is uncertain."""
    repeated = [seeds for seeds in correct if len(seeds) > 1]
    std = statistics.std_interval(repeated) if repeated else ASSUMED_STD
    answer = {
        "difference": DIFFERENCE,
        "std": [round(limit, 6) for limit in std],
        "assumed": not repeated,
        "these_images": [statistics.seeds_to_detect(DIFFERENCE, limit) for limit in std],
    }
    if len(repeated) > 1:
        variances = [statistics.image_variance(*pair) for pair in combinations(repeated, 2)]
        images = float(np.median(variances))
        answer["further_images"] = [statistics.seeds_to_detect(DIFFERENCE, limit, images) for limit in std]
    return answer


def within(budget: params.Budget, row: dict[str, Any]) -> dict[str, Any]:
    """Whether a recipe passes a budget, and each limit that it violates."""
    violations = champions.limit_violations(budget, row)
    if row["test_accuracy"] <= budget.accuracy_to_beat:
        violations.append(f"{100 * row['test_accuracy']:.5g} % does not beat {100 * budget.accuracy_to_beat:.5g} %")
    return {"passes": not violations, "violations": violations}


def _correct(predictions: Predictions) -> np.ndarray:
    """Whether each test image is classified correctly, float64 [n]."""
    return (predictions.test_probabilities.argmax(axis=1) == predictions.test_labels).astype(np.float64)


def _published(result: dict[str, Any]) -> dict[str, Any]:
    seconds = result["training_seconds"]
    return {
        **{key: result[key] for key in ("run", "parameters", "multiply_adds", "epochs")},
        **{key: result[key] for key in ("accuracy_measured_on", "source", "notes")},
        "test_accuracy": result["accuracy"],
        "seeds": 1,
        "training_minutes": seconds and round(seconds / 60, 2),
    }


def _against(recipe: str, correct: np.ndarray, published: dict[str, Any]) -> dict[str, Any]:
    estimate = statistics.over_seeds_and_images(correct - published["test_accuracy"])
    return {
        "recipe": recipe,
        "published": published["run"],
        "of": "recipe" if len(correct) > 1 else "weights",
        "difference": round(estimate.value, 6),
        "interval": _interval(estimate),
    }


def _description(predictions: list[Predictions], bins: int) -> dict[str, Any]:
    """Calibration error and each class's recall as value, low, high: means over seeds, with intervals."""
    labels = predictions[0].test_labels
    correct = np.stack([_correct(seed) for seed in predictions])
    terms = [
        metrics.calibration_terms(seed.test_probabilities.astype(np.float64), labels, bins) for seed in predictions
    ]
    # The signs of the bins are taken as given (the delta method): for few images the error itself is biased upwards.
    described = {"calibration error": statistics.over_seeds_and_images(np.stack(terms))}
    for label, name in enumerate(CLASS_NAMES):
        described[name] = statistics.over_seeds_and_images(correct[:, labels == label])
    return {name: [round(estimate.value, 6), *_interval(estimate)] for name, estimate in described.items()}


def confusions(predictions: list[Predictions]) -> list[dict[str, Any]]:
    """The pairs of classes most often confused: fractions of the true class's test images, means over seeds."""
    matrices = [metrics.confusion_matrix(seed.test_probabilities, seed.test_labels) for seed in predictions]
    fractions = np.mean(matrices, axis=0) / np.maximum(matrices[0].sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(fractions, 0)
    worst = np.argsort(-fractions, axis=None, kind="stable")[:MOST_CONFUSIONS]
    cells = [(index // len(CLASS_NAMES), index % len(CLASS_NAMES)) for index in worst.tolist()]
    return [
        {
            "true": CLASS_NAMES[row],
            "predicted": CLASS_NAMES[column],
            "fraction": round(float(fractions[row, column]), 6),
        }
        for row, column in cells
        if fractions[row, column]
    ]


def _interval(estimate: statistics.Estimate) -> list[float]:
    return [round(estimate.low, 6), round(estimate.high, 6)]
