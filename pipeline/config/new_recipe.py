"""Adds a recipe to params.yaml; every line that is there stays as it is."""

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.config import params
from pipeline.records import files
from pipeline.system.command import PipelineError


def lines(name: str, recipe: dict[str, Any], indent: int = 2) -> str:
    """The recipe as it stands in params.yaml, below `recipes:`."""
    text = io.StringIO()
    YAML().dump({name: recipe}, text)
    return "".join(f"{' ' * indent}{line}\n" for line in text.getvalue().splitlines())


def check_new(path: Path, name: str) -> None:
    """Raises PipelineError if there is a recipe of this name."""
    if name in params.read(path).recipes:
        raise PipelineError(f"{path} has a recipe {name} already; rename or remove it, for --write adds one")


def add(path: Path, name: str, recipe: dict[str, Any]) -> None:
    """Adds a recipe below the others.

    Raises:
        PipelineError: there is one of this name, or the file is laid out in a way that leaves no place for it.
    """
    check_new(path, name)
    before = files.read(path, params.MOST_BYTES).decode("utf-8")
    recipes = YAML().load(before)["recipes"]  # a round trip would move comments; it knows on which line each key is
    last = max(line for it in recipes.values() for line, _ in (it.lc.key(key) for key in it if key in it.lc.data))
    rows = before.splitlines(keepends=True)
    indent = recipes.lc.key(next(iter(recipes)))[1]
    text = "".join([*rows[: last + 1], lines(name, recipe, indent), *rows[last + 1 :]])
    expected = params.parse(path)
    expected["recipes"][name] = recipe
    try:
        fits = params.parse_text(text, str(path)) == expected
    except PipelineError:
        fits = False
    if not fits:
        raise PipelineError(f"{path}: there is no place for recipes.{name} below the others; add its lines by hand")
    files.write(path, text)
