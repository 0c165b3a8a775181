"""What README.md shows works, and what it names is there."""

import importlib.util
import re

import pytest
from conftest import ROOT
from dvc.utils.serialize import loads_yaml, modify_yaml

from pipeline.config import params

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(language: str) -> str:
    """The example in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


def with_example() -> str:
    """params.yaml after a reader added what the example adds, by a name that no reader has taken."""
    recipe, runs = block("yaml").replace("custom-smoothed", "example").removeprefix("recipes:\n").split("runs:\n")
    text = (ROOT / "params.yaml").read_text()
    head, rest = re.split(r"^(?=runs:)", text, flags=re.MULTILINE)
    line, rest = rest.split("\n", 1)
    return f"{head}{recipe}{line}\n{runs}{rest}"


def test_example_of_a_recipe_is_valid_and_the_same_to_dvc():
    tree = params.parse_text(with_example(), "params.yaml")
    assert tree == loads_yaml(with_example())
    config = params.check(tree)
    ours, theirs = config.recipe_of("example-1"), config.recipe_of("custom-0")
    assert ours.model_dump() == theirs.model_dump() | {"label_smoothing": 0.1}


def test_experiment_changes_the_recipe_of_the_example_and_no_other(tmp_path):
    (tmp_path / "params.yaml").write_text(with_example())
    before = params.read(tmp_path / "params.yaml")
    with modify_yaml(tmp_path / "params.yaml") as tree:  # as `dvc exp run -S` does
        tree["recipes"]["example"]["epochs"] = 3
    after = params.read(tmp_path / "params.yaml")
    assert after.recipes["example"].epochs == 3
    assert {name: recipe for name, recipe in after.recipes.items() if name != "example"} == {
        name: recipe for name, recipe in before.recipes.items() if name != "example"
    }


def test_example_of_a_model_can_be_trained(tmp_path, tensorflow, monkeypatch):
    from pipeline import models

    (tmp_path / "tiny.py").write_text(block("python"))
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert models.build("tiny").count_params() == 314
    assert importlib.util.find_spec("pipeline.models.tiny").origin == str(tmp_path / "tiny.py")


def test_tree_names_each_file_of_the_pipeline_and_no_other():
    lines = re.findall(r"^ {4}( *)([\w./<>-]+)[, ]", README.partition("## Where things are")[2], re.MULTILINE)
    named = {name.rstrip("/") for indent, name in lines if indent}
    there = {path.name for path in (ROOT / "pipeline").iterdir() if not path.name.startswith(("__", "."))}
    assert named == there
    assert [name for indent, name in lines if not indent and "<" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_targets_of_make_are_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.MULTILINE)) <= set(targets)
