"""What comparison.json holds: the metrics of each run, recipe and published result, and who keeps to which budget."""

from datetime import UTC, datetime
from statistics import mean, median, stdev
from typing import Any

from pipeline.config import params
from pipeline.records import references
from pipeline.records.record import Record

SPLITS = ("train_images", "val_images", "test_images")


def compare(config: params.Params, records: dict[str, Record]) -> dict[str, Any]:
    """Compares the runs of params.yaml, each other and with what is published.

    Returns:
        Numbers by recipe and budget; what `dvc metrics` shall leave out stands in lists.
    """
    runs = [run_metrics(run) for run in records.values()]
    by_recipe = {recipe: [run for run in runs if run["recipe"] == recipe] for recipe in config.recipes}
    recipes = {recipe: over_seeds(seeds) for recipe, seeds in by_recipe.items() if seeds}
    return {
        "comparable": all(run["comparable"] for run in runs),
        "recipes": recipes,
        "budgets": {
            name: {recipe: within(budget, metrics) for recipe, metrics in recipes.items()}
            for name, budget in config.compare.budgets.items()
        },
        "limits": [
            f"{name}: at most {budget.max_parameters:,} parameters and {budget.max_epochs} epochs, "
            f"test accuracy above {100 * budget.accuracy_to_beat:.5g} %"
            for name, budget in config.compare.budgets.items()
        ],
        "published": [_published(references.load_reference(name)) for name in references.names()],
        "runs": runs,
    }


def run_metrics(run: Record) -> dict[str, Any]:
    """One run: its metrics, and when and where it was trained."""
    training, evaluation, environment = run.training, run.evaluation, run.training.environment
    return {
        **{key: getattr(training, key) for key in ("run", "recipe", "seed", "comparable")},
        **{key: evaluation[key] for key in ("test_accuracy", "val_accuracy", "test_accuracy_flip")},
        **{key: evaluation[key] for key in ("parameters", "multiply_adds", "epochs")},
        "training_minutes": round(sum(epoch.epoch_seconds for epoch in training.epochs) / 60, 2),
        "images_per_second": round(median(epoch.images_per_second for epoch in training.epochs), 1),
        "origin": [
            f"{datetime.fromtimestamp(training.started_ms / 1000, UTC):%Y-%m-%d}",
            f"{environment['device']} ({environment['threads']} threads), "
            f"{environment['processor']}, {environment['precision']}",
            f"TensorFlow {environment['tensorflow']}, Keras {environment['keras']}",
            "/".join(f"{training.params[split]:,}" for split in SPLITS),
        ],
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One recipe: means over its runs."""
    # Six decimals: 10,000 images resolve four, and no rounding error of floats shall pass a budget.
    means = ("test_accuracy", "val_accuracy", "test_accuracy_flip", "training_minutes", "images_per_second")
    return {
        **{key: round(mean(run[key] for run in runs), 6) for key in means},
        "test_accuracy_std": round(stdev(run["test_accuracy"] for run in runs), 6) if len(runs) > 1 else None,
        "seeds": len(runs),
        **{key: max(run[key] for run in runs) for key in ("parameters", "multiply_adds", "epochs")},  # all are equal
    }


def _published(result: dict[str, Any]) -> dict[str, Any]:
    seconds = result["training_seconds"]
    return {
        **{key: result[key] for key in ("run", "parameters", "multiply_adds", "epochs")},
        **{key: result[key] for key in ("accuracy_measured_on", "source", "notes")},
        "test_accuracy": result["accuracy"],
        "seeds": 1,
        "training_minutes": seconds and round(seconds / 60, 2),
    }


def within(budget: params.Budget, metrics: dict[str, Any]) -> dict[str, Any]:
    """Whether a recipe passes a budget, and each limit that it violates."""
    violations = []
    if metrics["parameters"] > budget.max_parameters:
        violations.append(f"{metrics['parameters']:,} parameters exceed {budget.max_parameters:,}")
    if metrics["epochs"] > budget.max_epochs:
        violations.append(f"{metrics['epochs']} epochs exceed {budget.max_epochs}")
    if metrics["test_accuracy"] <= budget.accuracy_to_beat:
        violations.append(f"{100 * metrics['test_accuracy']:.5g} % does not beat {100 * budget.accuracy_to_beat:.5g} %")
    return {"passes": not violations, "violations": violations}
