"""What the comparison says of each run and of each budget's champion, as names and short texts for MLflow."""

from typing import Any

from pipeline.report import findings, tables


def by_run(comparison: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Of every run: its recipe's mean, its recipe beside each other one, and the budgets it is the model for.

    A pair of single seeds is told to the two runs that it compares, any other to all runs of both recipes.
    """
    quick = "" if comparison["comparable"] else " (quick)"
    tags = {
        run["run"]: {"test_accuracy": _mean(comparison["recipes"][run["recipe"]]) + quick} for run in comparison["runs"]
    }
    for pair in comparison["pairs"]:
        for sign, ours, theirs in ((1, 0, 1), (-1, 1, 0)):
            for run in pair["runs"][ours]:
                rival = pair["recipes"][theirs] if pair["of"] == "recipes" else pair["runs"][theirs][0]
                tags[run][f"vs.{rival}"] = _verdict(pair, sign) + quick
    for budget, champion in comparison["champions"].items():
        if champion["run"]:
            tags[champion["run"]][f"model_for.{budget}"] = champion["status"] + quick
    return tags


def by_budget(comparison: dict[str, Any]) -> dict[str, tuple[dict[str, str], str]]:
    """Of every budget that has a model to take: tags, what decided among them, and the reason in sentences."""
    told = {}
    sentences = findings.budgets(comparison)
    for (budget, champion), sentence in zip(comparison["champions"].items(), sentences, strict=True):
        if champion["run"]:
            row = comparison["recipes"][champion["recipe"]]
            decided = {key: row[key] for key in ("val_accuracy", "seeds", "multiply_adds", "parameters", "epochs")}
            named = {key: champion[key] for key in ("status", "run", "recipe", "min_seeds", "margin")}
            tags = {key: str(value) for key, value in (named | decided).items()}
            tags |= {"limits": findings.budget_words(comparison["limits"][budget]), "test_accuracy": _mean(row)}
            tags["run_test_accuracy"] = (
                f"{tables.cell(findings.run_of(comparison, champion['run']), 'test_accuracy')} %"
            )
            told[budget] = (tags, sentence)
    return told


def _mean(row: dict[str, Any]) -> str:
    interval = row["test_accuracy_interval"]
    covered = f", 95 % interval over seeds {tables.interval(interval)}" if interval else ""
    return f"{tables.cell(row, 'test_accuracy')} %, n = {row['seeds']}{covered}"


def _verdict(pair: dict[str, Any], sign: int) -> str:
    limits = sorted(sign * limit for limit in pair["interval"])
    verdict = pair["verdict"] if sign > 0 else pair["verdict"].replace("better", "worse")
    return f"{verdict}: {100 * sign * pair['difference']:+.2f} points, {tables.interval(limits)}"
