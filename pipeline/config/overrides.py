"""Changes to the values of params.yaml: an overlay file, and `-S KEY=VALUE`."""

import difflib
from typing import Any

from pipeline.config import params
from pipeline.system import command
from pipeline.system.command import PipelineError


def replace(tree: dict[str, Any], overlay: Any, source: str) -> None:
    """Replaces values of `tree` by those of `overlay`; `runs`, the list that is trained, as a whole.

    Raises:
        PipelineError: a key of the overlay is not in the tree.
    """
    if not isinstance(overlay, dict):
        raise PipelineError(f"{source}: received {command.shown(overlay)}; allowed: a mapping with keys of params.yaml")
    for key, value in overlay.items():
        if key not in tree:
            close = difflib.get_close_matches(str(key), list(tree), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise PipelineError(f"{source}: unknown key {command.plain(key)}; allowed here: {', '.join(tree)}{hint}")
        if isinstance(value, dict) and isinstance(tree[key], dict) and key != "runs":
            replace(tree[key], value, source)
        else:
            tree[key] = value


def select_runs(tree: dict[str, Any], run: str, recipe: str, seed: int | None) -> str:
    """Makes the list of runs one of this recipe and this seed, `<recipe>-<seed>` unless the list has another name.

    Args:
        tree: is changed.
        run: one of the list, the only one asked for; what is not given is this run's. Empty: all of the list.
        recipe: empty: all recipes that the list trains.
        seed: None: the seeds that the list has for the recipe, or 0.

    Returns:
        The run asked for, by its present name.

    Raises:
        PipelineError: there is no such recipe or run.
    """
    if not recipe and seed is None:
        return run
    checked = params.check_values(tree, "params.yaml with these changes")
    if run:
        checked.check_run(run)
    if recipe and recipe not in checked.recipes:
        raise PipelineError(f"recipe: received {command.shown(recipe)}; allowed: one of {', '.join(checked.recipes)}")
    listed = [checked.runs[run]] if run else list(checked.runs.values())
    named = {(it.recipe, it.seed): name for name, it in checked.runs.items()}
    chosen = {
        named.get((name, number), f"{name}-{number}"): {
            "recipe": name,
            "model": checked.recipes[name].model,
            "seed": number,
            "needs": params.needs(checked.recipes[name].teacher),
        }
        for name in ([recipe] if recipe else [it.recipe for it in listed])
        for number in ([seed] if seed is not None else [it.seed for it in listed if run or it.recipe == name] or [0])
    }
    if run:
        tree["runs"] |= chosen
        tree["export"]["runs"] = {}  # one run alone is trained and evaluated
        return next(iter(chosen))
    tree["runs"] = chosen
    tree["export"]["runs"] = {name: limits for name, limits in tree["export"]["runs"].items() if name in chosen}
    return ""


def complete_runs(tree: dict[str, Any], listed: dict[str, Any]) -> None:
    """Sets what each run needs by its recipe's teacher, and adds teachers that are not chosen, but listed.

    Args:
        tree: is changed.
        listed: the runs of params.yaml.
    """
    config = params.check_values(tree, "params.yaml with these changes")
    names = list(config.runs)
    for name in names:  # grows by teachers
        recipe = tree["recipes"].get(tree["runs"][name]["recipe"])
        if recipe is None:
            continue  # `params.check` says so
        tree["runs"][name]["needs"] = params.needs(recipe["teacher"])
        if recipe["teacher"] in listed and recipe["teacher"] not in tree["runs"]:
            tree["runs"][recipe["teacher"]] = dict(listed[recipe["teacher"]])
            names.append(recipe["teacher"])


def set_param(tree: dict[str, Any], key: str, value: Any, run: str) -> None:
    """Sets one value. A key without a dot is a recipe's: of the run's recipe, or without a run of every recipe.

    Raises:
        PipelineError: there is no such key, or what was set before leaves no recipes to set it in.
    """
    if "." in key:
        for part in reversed(key.split(".")):
            value = {part: value}
        replace(tree, value, f"-S {command.plain(key)}")
        return
    params.check_values(tree, "params.yaml with these changes")
    chosen = tree["runs"][run]["recipe"] if run in tree["runs"] else None
    for recipe in tree["recipes"]:
        if chosen in (None, recipe):
            replace(tree["recipes"][recipe], {key: value}, f"-S {command.plain(key)}")
    if key == "model":  # which runs have too
        for name in [run] if run in tree["runs"] else tree["runs"]:
            tree["runs"][name]["model"] = value
