"""`sweeps` in params.yaml: what they may try, and a trial's params."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from pipeline.config import params
from pipeline.config.params import Dimension, Params, Recipe, Sweep
from pipeline.system.command import PipelineError, RecipeError, plain, shown

FIXED = ("model", "epochs", "teacher")  # what a sweep compares its trials at
MOST_COMBINATIONS = 64  # that are checked together
MOST_NAME = 50  # characters: a trial's run has more


def problem(config: Params, name: str, sweep: Sweep) -> str | None:
    """What is wrong with a sweep, after its name; None if nothing is."""
    if len(name) > MOST_NAME:
        return f": received a name of {len(name)} characters; allowed: at most {MOST_NAME}"
    if name.startswith("published-"):  # a trial's run does so too
        return ": received a name that begins with published-, which is kept for references; choose another"
    if sweep.recipe not in config.recipes:
        return f".recipe: received {sweep.recipe!r}; allowed: one of {', '.join(config.recipes)}"
    for key, dimension in sweep.space.items():
        if key not in Recipe.model_fields or key in FIXED:
            keys = [it for it in Recipe.model_fields if it not in FIXED]
            return f".space.{plain(key)}: received an unknown key; allowed: {', '.join(keys)}"
        if said := _dimension_problem(config.recipes[sweep.recipe], key, dimension, sweep.sampler):
            return f".space.{key}{said}"
    if sweep.sampler == "grid":
        size = math.prod(len(dimension.choices) for dimension in sweep.space.values())
        if sweep.trials > size:
            return f".trials: received {sweep.trials}; allowed: at most {size}, the points of the grid"
    return _combination_problem(config, sweep)


def trial_params(config: Params, sweep: Sweep, run: str, values: dict[str, Any]) -> Params:
    """The params with one more run, of a recipe of its own: the sweep's with these values, in seed 0.

    Raises:
        RecipeError: the values contradict each other.
    """
    tree = config.model_dump()
    recipe = tree["recipes"][sweep.recipe] | values
    tree["recipes"][run] = recipe | ({"epochs": sweep.epochs} if sweep.epochs else {})
    needs = params.needs(recipe["teacher"])
    tree["runs"][run] = {"recipe": run, "model": recipe["model"], "seed": 0, "needs": needs}
    tree["sweeps"] = {}
    try:
        return params.check(tree, f"{run}, a trial")
    except PipelineError as error:
        raise RecipeError(str(error)) from None


def _dimension_problem(recipe: Recipe, key: str, dimension: Dimension, sampler: str) -> str | None:
    """What is wrong with the values of one key."""
    if dimension.choices is not None:
        if dimension.low is not None or dimension.high is not None or dimension.log:
            return ": received choices beside low, high or log; allowed: either choices, or low and high"
        if not isinstance(dimension.choices, list) or len(dimension.choices) < 2:
            return f".choices: received {shown(dimension.choices)}; allowed: a list of at least two values"
        if repeated := [value for i, value in enumerate(dimension.choices) if value in dimension.choices[:i]]:
            return f".choices: received {shown(repeated[0])} twice; allowed: each value once"
        return next(filter(None, (_value_problem(recipe, key, "choices", it) for it in dimension.choices)), None)
    if sampler == "grid":
        return ": received no choices; allowed with the sampler grid: choices"
    for end in ("low", "high"):
        value = getattr(dimension, end)
        if value is None:
            return f".{end} is missing; add it, or choices"
        if said := _value_problem(recipe, key, end, value):
            return said
        if isinstance(value, str):
            return f".{end}: received {shown(value)}; allowed for {key}: choices"
    if dimension.low >= dimension.high:
        return f".low: received {dimension.low}; allowed: below high, {dimension.high}"
    if dimension.log and dimension.low <= 0:
        return f".low: received {dimension.low}; allowed with log: above 0"
    return None


def _value_problem(recipe: Recipe, key: str, where: str, value: Any) -> str | None:
    try:
        Recipe.model_validate(recipe.model_dump() | {key: value})
    except ValidationError:
        return f".{where}: received {shown(value)}; allowed: {Recipe.model_fields[key].description}"
    return None


def _combinations(sweep: Sweep) -> Iterable[tuple]:
    """All combinations; if they are many, each value with the first, and with the last, of all other keys."""
    ends = [list(it.choices) if it.choices is not None else [it.low, it.high] for it in sweep.space.values()]
    if math.prod(map(len, ends)) <= MOST_COMBINATIONS:
        return itertools.product(*ends)
    others = (tuple(values[i] for values in ends) for i in (0, -1))
    return [
        (*rest[:key], value, *rest[key + 1 :]) for rest in others for key, values in enumerate(ends) for value in values
    ]


def _combination_problem(config: Params, sweep: Sweep) -> str | None:
    """Values that contradict each other, or the rest of the recipe. Of a range its ends stand for all."""
    for combination in _combinations(sweep):
        values = dict(zip(sweep.space, combination, strict=True))
        try:
            trial_params(config, sweep, "trial", values)
        except PipelineError as error:
            together = ", ".join(f"{key} {value}" for key, value in values.items())
            return f".space: received values that contradict each other ({together}): {error}"
    return None
