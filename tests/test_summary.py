"""The page in MLflow: one run of the experiment holds it, and the description links it."""

import re
import shutil
from pathlib import Path

import pytest
from factories import list_runs, write_run

from pipeline import sync
from pipeline.system import command
from pipeline.tracking import address, experiment, runs, store


@pytest.fixture
def page(project):
    """A synced project with one run and a page."""
    store.reconnect()
    list_runs("custom-0")
    write_run("custom-0")
    path = Path("report/index.html")
    path.parent.mkdir()
    path.write_text("<title>first</title>")
    sync.main()
    return path


def summary():
    """The summary run, of which there is one, and what its page says."""
    client = store.client()
    (run,) = client.search_runs([experiment.current_id()], f"tags.{runs.RECORD_ID} = 'comparison'")
    folder = client.download_artifacts(run.info.run_id, "")
    return run, (Path(folder) / "index.html").read_text()


def description():
    return store.client().get_experiment(experiment.current_id()).tags[runs.NOTE]


def test_page_is_an_artifact_of_a_finished_run_that_the_description_links(page):
    run, html = summary()
    assert html == "<title>first</title>"
    assert (run.info.run_name, run.info.status) == ("comparison", "FINISHED")
    address = f"#/experiments/{experiment.current_id()}/runs/{run.info.run_id}/artifacts/index.html"
    assert re.findall(r"\((#.*?)\)", description()) == [address]
    assert description().startswith("[The page")
    assert "Small classifiers for CIFAR-10" in description()


def test_changed_page_takes_the_earlier_ones_place_and_an_equal_one_costs_nothing(page, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(store, "client", lambda: pytest.fail("MLflow was asked"))
        sync.main()
    before = description()
    page.write_text("<title>second</title>")
    sync.main()
    assert summary()[1] == "<title>second</title>"
    assert description() == before


def test_descriptions_own_words_stay(page):
    store.client().set_experiment_tag(experiment.current_id(), runs.NOTE, "Ours.")
    page.write_text("<title>second</title>")
    sync.main()
    assert re.fullmatch(r"\[The page.*\)\.\n\nOurs\.", description())


def test_page_of_one_experiment_does_not_take_its_place(page, monkeypatch):
    page.write_text("<title>experiment</title>")
    monkeypatch.setattr(command, "in_temporary_copy", lambda: True)
    sync.main()
    assert summary()[1] == "<title>first</title>"


def test_page_of_a_workspace_does_not_take_the_place_of_the_repositorys_and_may_take_that_of_its_own(page, monkeypatch):
    folder = Path.cwd() / ".workspaces/x"
    shutil.copytree(".", folder, ignore=shutil.ignore_patterns(".workspaces", "mlflow.db", "mlruns"))
    monkeypatch.setattr(address, "root", Path.cwd)
    sync.main()
    monkeypatch.setattr(address, "root", lambda: folder.parents[1])
    monkeypatch.chdir(folder)
    Path("report/index.html").write_text("<title>workspace</title>")
    sync.main()
    assert summary()[1] == "<title>first</title>"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of its own")
    for html in ("<title>second</title>", "<title>third</title>"):
        Path("report/index.html").write_text(html)
        sync.main()
        assert summary()[1] == html


def test_without_a_page_there_is_no_summary_run(project):
    store.reconnect()
    list_runs("custom-0")
    write_run("custom-0")
    sync.main()
    assert runs.find(experiment.current_id(), "comparison") is None
    assert "[The page" not in description()
