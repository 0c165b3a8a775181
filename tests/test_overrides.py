"""Overlays and `-S KEY=VALUE` change params.yaml's values, or are refused in one line."""

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import overrides, params
from pipeline.system.command import PipelineError


def test_overlay_replaces_values_and_the_list_of_runs(tree):
    overlay = {
        "recipes": {"custom": {"epochs": 3}},
        "runs": {"custom-0": tree["runs"]["custom-0"]},
        "export": {"runs": {"custom-0": {"max_bytes": 1}}},
    }
    overrides.replace(tree, overlay, "overlay")
    config = params.check(tree)
    assert config.recipes["custom"].epochs == 3
    assert config.recipes["custom"].batch_size == 256
    assert list(config.runs) == ["custom-0"]


def test_quick_profile_is_valid_and_not_comparable(tree):
    overrides.replace(tree, params.parse(ROOT / "params.quick.yaml"), "params.quick.yaml")
    config = params.check(tree)
    assert set(config.runs) == {"baseline-0", "custom-0", "compact-0"}
    assert not config.data.comparable


@pytest.mark.parametrize(
    "overlay", [{"recipe": {}}, {"recipes": {"kustom": {}}}, {"recipes": {"custom": {"epoch": 1}}}, 3]
)
def test_overlay_with_an_unknown_key_is_refused(tree, overlay):
    with pytest.raises(PipelineError, match=r"overlay: (unknown key|received 3)"):
        overrides.replace(tree, overlay, "overlay")


def test_key_without_a_dot_is_the_recipe_of_the_run(tree):
    overrides.set_param(tree, "epochs", 3, "custom-0")
    assert tree["recipes"]["custom"]["epochs"] == 3
    assert tree["recipes"]["baseline"]["epochs"] == 50
    overrides.set_param(tree, "epochs", 4, "")
    assert {recipe["epochs"] for recipe in tree["recipes"].values()} == {4}
    overrides.set_param(tree, "data.train_images", 100, "")
    assert tree["data"]["train_images"] == 100


KEYS = st.sampled_from(
    ["epochs", "recipes", "recipes.custom", "recipes.custom.epochs", "runs", "runs.custom-0", "data"]
)
VALUES = st.sampled_from(
    ["3", "{}", "[]", "~", "a", "{custom: {}}", "{custom-0: 3}", "{custom-0: {recipe: x}}", "[*a]"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(KEYS | st.text("abc.\n"), VALUES | st.text("a1:{}[]*&! ")), max_size=3))
def test_any_changes_are_refused_in_one_line_or_valid(changes):
    tree = params.read(ROOT / "params.yaml").model_dump()
    try:
        for key, value in changes:
            overrides.set_param(tree, key, params.parse_text(value, "-S"), "custom-0")
        params.check(tree)
    except PipelineError as error:
        assert len(str(error).splitlines()) == 1
