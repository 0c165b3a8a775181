"""A workspace has params of its own and leaves everything else alone."""

import pytest

from pipeline import command, params, workspace
from pipeline.command import PipelineError


def test_overlay_replaces_values_and_the_list_of_runs(tree):
    overlay = {"recipes": {"custom": {"epochs": 3}}, "runs": {"custom-0": tree["runs"]["custom-0"]}}
    workspace.replace(tree, overlay, "overlay")
    settings = params.check(tree)
    assert settings.recipes["custom"].epochs == 3
    assert settings.recipes["custom"].batch_size == 256
    assert list(settings.runs) == ["custom-0"]


def test_quick_profile_is_valid_and_not_comparable(tree):
    workspace.replace(
        tree, params.parse(workspace.Path(__file__).parents[1] / "params.quick.yaml"), "params.quick.yaml"
    )
    settings = params.check(tree)
    assert set(settings.runs) == {"baseline-0", "custom-0"}
    assert not settings.data.comparable


@pytest.mark.parametrize(
    "overlay", [{"recipe": {}}, {"recipes": {"kustom": {}}}, {"recipes": {"custom": {"epoch": 1}}}, 3]
)
def test_overlay_with_an_unknown_key_is_refused(tree, overlay):
    with pytest.raises(PipelineError, match=r"overlay: (unknown key|received 3)"):
        workspace.replace(tree, overlay, "overlay")


def test_key_without_a_dot_is_the_recipe_of_the_run(tree):
    workspace.set_param(tree, "epochs", 3, "custom-0")
    assert tree["recipes"]["custom"]["epochs"] == 3
    assert tree["recipes"]["baseline"]["epochs"] == 50
    workspace.set_param(tree, "epochs", 4, "")
    assert {recipe["epochs"] for recipe in tree["recipes"].values()} == {4}
    workspace.set_param(tree, "data.train_images", 100, "")
    assert tree["data"]["train_images"] == 100


def test_second_run_in_a_workspace_is_refused(tmp_path):
    first, second = (command.alone(tmp_path / "w", "in use") for _ in range(2))
    with first, pytest.raises(PipelineError, match="in use"), second:
        pass


def test_copy_starts_from_the_recorded_results_each_time(tmp_path, monkeypatch, tree):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "results/a/x.json": "recorded",
        "dvc.yaml": "",
        "params.yaml": "mine",
        ".dvc/config": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    copied = workspace.FOLDER / "w"
    copied.mkdir(parents=True)
    for _ in range(2):
        workspace.copy(copied, tree)
        assert (copied / "results/a/x.json").read_text() == "recorded"
        assert params.read(copied / "params.yaml").recipes
        (copied / "results/a/x.json").write_text("changed")
        (copied / "results/b").mkdir()
    assert (tmp_path / "params.yaml").read_text() == "mine"
    assert (tmp_path / "results/a/x.json").read_text() == "recorded"
