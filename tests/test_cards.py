"""The cards say what comparison.json says, and what they tell to run runs."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from factories import list_runs, write_export, write_run

from pipeline import compare
from pipeline.config import params
from pipeline.evaluation import predictions
from pipeline.records import exports
from pipeline.report import cards
from pipeline.report.comparison import confusions
from pipeline.tracking import registry


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty project folder with the published figures: `list_runs` and `write_run` fill it."""
    shutil.copytree(ROOT / "reference", tmp_path / "reference")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare"])


def compared(folder="."):
    config = params.read(Path(folder) / "params.yaml")
    records = compare.load(config)
    exported = {run: exports.evaluated(run) for run in config.export.runs}
    return compare.compare(config, records, compare.read_predictions(records), exported)


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def test_card_of_a_champion_holds_its_metrics_and_all_forms():
    list_runs("baseline-0", *(f"custom-{seed}" for seed in range(3)))
    write_run("baseline-0", 0.95, parameters=10_000_000)
    for seed in range(3):
        write_run(f"custom-{seed}", 0.85 + 0.01 * seed, errors_seed=seed)
    write_export("custom-0")
    compare.main()
    text = Path("report/models/custom.md").read_text()
    comparison = json.loads(Path("report/comparison.json").read_text())
    low, high = (f"{100 * limit:.2f}" for limit in comparison["recipes"]["custom"]["test_accuracy_interval"])
    assert f"| test accuracy, % | 3 | 86.00 | 1.00 | {low} to {high} |" in text
    value, low, high = (f"{100 * number:.1f}" for number in comparison["descriptions"]["custom"]["cat"])
    assert f"| cat | {value} ({low} to {high}) |" in text
    assert "custom-0, one of 3 seeds: 85.00 % test accuracy. It is the model to take for: published-base (ch" in text
    assert "| custom-0 int8 | 152,624 | 90.00 | 85.12 | 0.42 | 100.00 | 220,416 |" in text
    assert "optimizer muon" in text
    assert f"from commit `{'0' * 40}`" in text
    assert len(blocks(text, "python")) == 3
    assert "models:/cifar10-published-custom@champion" in text
    other = Path("report/models/baseline.md").read_text()
    assert "no budget's model to take" in other
    assert "mlflow" not in other
    assert "tflite" not in other


def test_card_of_a_recipe_that_is_gone_goes():
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0")
    write_run("custom-0")
    compare.main()
    list_runs("custom-0")
    compare.main()
    assert [path.name for path in Path("report/models").iterdir()] == ["custom.md"]


def test_confusions_are_fractions_of_the_true_class_and_means_over_seeds():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20)
    answers = [labels.copy(), labels.copy()]
    answers[0][60:70] = 5  # half of the cats are taken for dogs by one seed
    answers[0][100:104] = answers[1][100:104] = 3  # a fifth of the dogs for cats by both
    certain = np.eye(10)
    stored = [predictions.encode(certain[given], labels, certain[labels], labels) for given in answers]
    seeds = [predictions.decode(content) for content in stored]
    assert confusions(seeds) == [
        {"true": "cat", "predicted": "dog", "fraction": 0.25},
        {"true": "dog", "predicted": "cat", "fraction": 0.2},
    ]


@pytest.mark.parametrize("run", params.read(ROOT / "params.yaml").export.runs)
def test_card_fits_into_mlflow_and_its_python_runs(run, monkeypatch, tensorflow):
    from pipeline.evaluation import inference

    monkeypatch.chdir(ROOT)
    text = cards.path(params.read().runs[run].recipe).read_text()
    assert len(text) <= registry.MOST_CHARACTERS
    keras, litert, *_ = blocks(text, "python")
    names = {}
    exec(keras, names)
    expected = names["probabilities"]
    model = inference.load_model(Path(f"results/{run}/model.keras"), run)
    np.testing.assert_allclose(expected, inference.predict(model, names["pixels"])[0], atol=1e-6)
    exec(litert, names)
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-5)
