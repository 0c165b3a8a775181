"""The model to take for each budget: chosen on the validation split alone, by the rule in params.yaml."""

from typing import Any

from pipeline.config import params

Rows = dict[str, dict[str, Any]]  # a recipe's means over seeds, by recipe


def choose(config: params.Compare, seeds: dict[str, list[dict[str, Any]]], recipes: Rows) -> dict[str, Any]:
    """The champion of each budget.

    Of the recipes within the limits and with at least `min_seeds` seeds, it is the one with the best mean validation
    accuracy. A cheaper one, in multiply-adds, takes its place if its mean is within `margin`. Ties go to the higher
    mean, then to the name. The model is that of the recipe's lowest seed. While no recipe has enough seeds, the same
    rule chooses among all within the limits, and the model stands in.

    Args:
        config: budgets and rule.
        seeds: each recipe's runs, the lowest seed first.
        recipes: each recipe's means.

    Returns:
        By budget: status (`champion`, `stand-in` or `none`), recipe, run, the rule's values, a note, which recipes are
        within the limits, and why each other recipe is not the champion.
    """
    return {name: _of(budget, config.champion, seeds, recipes) for name, budget in config.budgets.items()}


def limit_violations(budget: params.Budget, row: dict[str, Any]) -> list[str]:
    """Each limit of a budget that a recipe does not keep."""
    violations = []
    if row["parameters"] > budget.max_parameters:
        violations.append(f"{row['parameters']:,} parameters exceed {budget.max_parameters:,}")
    if row["epochs"] > budget.max_epochs:
        violations.append(f"{row['epochs']} epochs exceed {budget.max_epochs}")
    return violations


def rule(champion: dict[str, Any]) -> str:
    """The rule in words, from a champion's record."""
    return (
        f"Of the recipes within the limits and with at least {champion['min_seeds']} seeds, the one with the best mean "
        f"validation accuracy; a cheaper one (multiply-adds) takes its place if its mean is within "
        f"{100 * champion['margin']:g} points. Ties go to the higher mean, then to the name. No test result and no "
        "verdict decides. The model is that of the lowest seed."
    )


def _of(
    budget: params.Budget, rule: params.Champion, seeds: dict[str, list[dict[str, Any]]], recipes: Rows
) -> dict[str, Any]:
    others = {
        name: ", ".join(violations) for name, row in recipes.items() if (violations := limit_violations(budget, row))
    }
    allowed = {name: row for name, row in recipes.items() if name not in others}
    settled = {name: row for name, row in allowed.items() if row["seeds"] >= rule.min_seeds}
    candidates = settled or allowed
    result: dict[str, Any] = {"status": "none", "recipe": None, "run": None, **rule.model_dump(), "note": ""}
    result["within_limits"] = list(allowed)
    if candidates:
        name = _best(candidates, rule.margin)
        others |= {other: _few_seeds(row, rule) for other, row in allowed.items() if other not in candidates}
        others |= {
            other: _why_not(row, name, candidates[name], rule) for other, row in candidates.items() if other != name
        }
        result |= {"status": "champion" if settled else "stand-in", "recipe": name, "run": seeds[name][0]["run"]}
        if not settled:
            result["note"] = (
                f"no recipe within these limits has {rule.min_seeds} seeds yet; "
                "until one has, the same rule chooses among all of them"
            )
    else:
        result["note"] = "no recipe is within the limits"
    return result | {"others": {name: others[name] for name in recipes if name in others}}


def _best(recipes: Rows, margin: float) -> str:
    leader = min(recipes, key=lambda name: (-recipes[name]["val_accuracy"], name))
    close = [leader, *(name for name in recipes if _replaces(recipes[name], recipes[leader], margin))]
    cost = {name: recipes[name]["multiply_adds"] for name in close}
    return min(close, key=lambda name: (cost[name] or 0, -recipes[name]["val_accuracy"], name))


def _replaces(row: dict[str, Any], leader: dict[str, Any], margin: float) -> bool:
    """Whether a recipe is cheaper than the leader and within the margin; an unknown cost never counts as cheaper."""
    costs = row["multiply_adds"], leader["multiply_adds"]
    return None not in costs and costs[0] < costs[1] and _behind(row, leader) <= margin


def _behind(row: dict[str, Any], leader: dict[str, Any]) -> float:
    return round(leader["val_accuracy"] - row["val_accuracy"], 6)  # 0.86 - 0.858 is not above 0.002


def _few_seeds(row: dict[str, Any], rule: params.Champion) -> str:
    return f"it has {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}; the rule asks for {rule.min_seeds}"


def _why_not(row: dict[str, Any], name: str, champion: dict[str, Any], rule: params.Champion) -> str:
    behind = _behind(row, champion)
    costs = row["multiply_adds"], champion["multiply_adds"]
    cheaper = f"{name} is within {100 * rule.margin:g} points of the best mean and cheaper"
    if behind <= 0 and None not in costs and costs[0] != costs[1]:
        ours, theirs = (f"{cost / 1e6:.1f} M" for cost in costs)
        return f"{cheaper}: {theirs} multiply-adds, not {ours}"
    if behind <= 0 and costs[0] is None and costs[1] is not None:
        return f"{cheaper}, as far as is known: its own multiply-adds are not"
    if behind == 0:
        return f"it ties with {name}, whose name comes first"
    return f"its mean validation accuracy is {_points(behind)} lower than that of {name}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"
