"""What the comparison says of a run stands in the report and in MLflow alike."""

import json
from pathlib import Path

import pytest
from factories import list_runs, write_run

from pipeline import compare, sync, tracking
from pipeline.config import params
from pipeline.records import record
from pipeline.report import run_tags
from pipeline.system.command import PipelineError
from pipeline.tracking import address, store


def comparison():
    config = params.read()
    records = compare.load(config)
    return compare.compare(config, records, compare.read_predictions(records), {})


def write_report():
    Path("report").mkdir(exist_ok=True)
    Path("report/comparison.json").write_text(json.dumps(comparison()))


def found_runs():
    client = store.client()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def compare_tags():
    """The tags of each run that the comparison set."""
    tags = {run.info.run_name: run.data.tags for run in found_runs()}
    return {
        name: {key.removeprefix("compare."): value for key, value in of.items() if key.startswith("compare.")}
        for name, of in tags.items()
    }


def test_tags_of_single_seeds_are_of_the_runs(project):
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0", 0.85, errors_seed=0)
    write_run("custom-0", 0.87, errors_seed=1)
    (pair,) = comparison()["pairs"]
    low, high = (f"{100 * limit:.2f}" for limit in pair["interval"])
    tags = run_tags.by_run(comparison())
    assert tags["custom-0"]["test_accuracy"] == "87.00 %, n = 1"
    assert tags["custom-0"]["vs.baseline-0"] == f"better weights: +2.00 points, {low} to {high}"
    assert tags["baseline-0"]["vs.custom-0"] == f"worse weights: -2.00 points, -{high} to -{low}"


def test_tags_of_several_seeds_are_of_the_recipes(project):
    list_runs(*(f"{recipe}-{seed}" for recipe in ("baseline", "custom") for seed in range(3)))
    for seed in range(3):
        write_run(f"baseline-{seed}", 0.85, errors_seed=seed)
        write_run(f"custom-{seed}", 0.86 + 0.01 * seed, errors_seed=3 + seed, val_accuracy=0.71, comparable=False)
    tags = run_tags.by_run(comparison())
    low, high = (f"{100 * limit:.2f}" for limit in comparison()["recipes"]["custom"]["test_accuracy_interval"])
    for seed in range(3):
        assert (
            tags[f"custom-{seed}"]["test_accuracy"]
            == f"87.00 %, n = 3, 95 % interval over seeds {low} to {high} (quick)"
        )
        assert tags[f"custom-{seed}"]["vs.baseline"].endswith(" (quick)")
        assert ("model_for.published-custom" in tags[f"custom-{seed}"]) == (seed == 0)
    assert tags["custom-0"]["model_for.published-custom"] == "champion (quick)"


def test_sync_tags_each_run_once_and_takes_back_what_no_longer_holds(project, monkeypatch):
    store.reconnect()
    list_runs("baseline-0", "custom-0")
    write_run("baseline-0", 0.85, errors_seed=0, val_accuracy=0.71)
    write_run("custom-0", 0.87, errors_seed=1)
    write_report()
    sync.main()
    assert compare_tags() == run_tags.by_run(comparison()) | {"published-base": {}, "published-custom": {}}
    with monkeypatch.context() as without:
        without.setattr(store, "client", lambda: pytest.fail("MLflow was asked"))
        sync.main()
    list_runs("custom-0")
    write_report()
    sync.main()
    tags = compare_tags()["custom-0"]
    assert tags == run_tags.by_run(comparison())["custom-0"]
    assert not any(name.startswith("vs.") for name in tags)


def test_tags_leave_the_run_of_a_replaced_record_and_stay_on_those_of_other_folders(project, monkeypatch):
    store.reconnect()
    list_runs("custom-0")
    for record_id, folder in (("old", "."), ("other", ".workspaces/x"), ("new", ".")):
        write_run("custom-0")
        training = Path("results/custom-0/training.json")
        training.write_text(json.dumps(json.loads(training.read_text()) | {"record_id": record_id}))
        write_report()
        monkeypatch.setattr(address, "folder", lambda folder=folder: folder)
        sync.main()
    tags = {run.data.tags["record_id"]: run.data.tags for run in found_runs() if run.info.run_name == "custom-0"}
    of_comparison = {
        record_id: {name for name in names if "compar" in name and name != "comparable"}
        for record_id, names in tags.items()
    }
    assert of_comparison["old"] == set()
    assert of_comparison["other"] == of_comparison["new"] > {"compare.test_accuracy"}


def test_run_that_is_not_compared_gets_no_tags(project):
    store.reconnect()
    list_runs("custom-0")
    write_run("custom-0")
    sync.main()
    assert compare_tags()["custom-0"] == {}
    tracking.sync_comparison(record.load("custom-0"), {"test_accuracy": "1"})
    assert compare_tags()["custom-0"] == {"test_accuracy": "1"}


def test_file_that_holds_no_comparison_is_named(project):
    list_runs("custom-0")
    write_run("custom-0")
    Path("report").mkdir()
    Path("report/comparison.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"report/comparison\.json does not hold a comparison .*dvc repro compare"):
        sync.main()
