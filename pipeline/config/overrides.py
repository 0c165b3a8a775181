"""Changes to the values of params.yaml: an overlay file, and `-S KEY=VALUE`."""

import difflib
from typing import Any

from pipeline.config import params
from pipeline.system import command
from pipeline.system.command import PipelineError


def replace(tree: dict[str, Any], overlay: Any, source: str) -> None:
    """Puts the values of `overlay` in the place of those of `tree`; `runs` as a whole, the list that is trained.

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
