"""The run whose model is used where none is named: the champion of the smallest budget."""

from statistics import mean
from typing import Any

from pipeline.config import params
from pipeline.records import files, record
from pipeline.report import champions
from pipeline.report.recorded import REPORT
from pipeline.system.command import PipelineError


def default_run(config: params.Params) -> tuple[str, str]:
    """The run, and in words what makes it the default.

    Before compare has written it to `report/champions.json`, the rule is applied to the records that are there.

    Raises:
        PipelineError: there is no budget, or no recorded run is within the smallest.
    """
    budgets = config.compare.budgets
    if not budgets:
        raise PipelineError("params.yaml has no budget, so no model is the default: name a run with --run")
    budget = min(budgets, key=lambda name: (budgets[name].max_parameters, budgets[name].max_epochs))
    path = REPORT / "champions.json"
    chosen = files.read_json(path) if path.exists() else {}
    if budget not in chosen:  # nothing was compared yet, or the budget is new
        chosen = _of_records(config)
    champion = chosen.get(budget)
    if not isinstance(champion, dict) or not isinstance(run := champion.get("run"), str):
        raise PipelineError(f"no recorded run is within the budget {budget}: name one with --run")
    if champion.get("status") == "champion":
        return run, f"champion of {budget}"
    seeds = config.compare.champion.min_seeds
    return run, f"it stands in for the champion of {budget}, which needs recipes with {seeds} seeds"


def _of_records(config: params.Params) -> dict[str, Any]:
    seeds: dict[str, list[dict[str, Any]]] = {}
    for run, listed in sorted(config.runs.items(), key=lambda item: item[1].seed):
        evaluation, _ = record.evaluation_of(record.RESULTS / run)
        if {"parameters", "epochs", "val_accuracy"} <= set(evaluation):
            row = {"multiply_adds": None} | evaluation | {"run": run, "seed": listed.seed}
            seeds.setdefault(listed.recipe, []).append(row)
    recipes = {
        recipe: rows[0] | {"seeds": len(rows), "val_accuracy": mean(row["val_accuracy"] for row in rows)}
        for recipe, rows in seeds.items()
    }
    return champions.choose(config.compare, seeds, recipes)
