"""The whole pipeline on a part of the real data, as a user runs it: in a clone, through DVC and MLflow."""

import json
import textwrap
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, sh, small_clone

from pipeline.config import params
from pipeline.records import record

pytestmark = pytest.mark.slow

RUNS = {"custom-0", "published-base", "published-custom", "comparison"}  # in the store


@pytest.fixture(scope="module")
def clone(tmp_path_factory, environment) -> Path:
    """The small clone after `dvc repro`, committed again."""
    folder = small_clone(tmp_path_factory.mktemp("clone") / "project", environment)
    sh("dvc repro && git add -A && git commit -qm results", folder, environment)
    return folder


def store(folder: Path, environment: dict) -> dict:
    """What `mlflow ui` without flags would show: runs by name."""
    code = """
        import json, mlflow
        client = mlflow.MlflowClient()
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        print("STORE" + json.dumps({r.info.run_name: {
            "status": r.info.status, "params": r.data.params, "tags": r.data.tags, "metrics": r.data.metrics,
            "start": r.info.start_time, "models": [o.model_id for o in r.outputs.model_outputs] if r.outputs else [],
            "files": [f.path for f in client.list_artifacts(r.info.run_id)],
            "steps": [m.step for m in client.get_metric_history(r.info.run_id, "val_accuracy")],
        } for r in runs} | {"": len(runs)}))
    """
    written = sh(f"python -c '{textwrap.dedent(code)}'", folder, environment)
    runs = json.loads(written.partition("STORE")[2])
    assert runs.pop("") == len(runs), "two runs have one name"
    return runs


@pytest.fixture(scope="module")
def stored(clone, environment) -> dict:
    """The store of the clone."""
    return store(clone, environment)


@pytest.fixture(scope="module")
def fresh(clone, environment, tmp_path_factory) -> tuple[Path, str]:
    """A clone of the clone after `dvc repro`, and what that said."""
    folder = tmp_path_factory.mktemp("fresh") / "project"
    sh(f"git clone -q {clone} {folder}", folder.parent, environment)
    return folder, sh("dvc repro", folder, environment)


def test_repro_leaves_every_run_in_the_store_that_mlflow_ui_opens(clone, environment, stored):
    assert set(stored) == RUNS
    ours, published = stored["custom-0"], stored["published-custom"]
    assert ours["status"] == "FINISHED"
    assert ours["steps"] == [1, 2]
    assert published["steps"] == list(range(1, 51))
    evaluation = json.loads((clone / "results/custom-0/evaluation.json").read_text())
    assert ours["metrics"]["test_accuracy"] == evaluation["test_accuracy"]
    assert ours["metrics"]["parameters"] == 92_027
    assert ours["params"]["epochs"] == "2"
    assert ours["tags"]["commit"] == sh("git rev-parse HEAD~1", clone, environment).strip()
    assert ours["tags"]["dirty"] == "false"
    assert record.NOT_COMPARABLE.capitalize() in ours["tags"]["mlflow.note.content"]
    assert "replayed" not in ours["tags"]
    assert {"curves.png", "confusion_matrix.png", "most_confident_errors.png", "geometry.json"} <= set(ours["files"])
    assert len(ours["models"]) == 1


def test_repro_leaves_the_page_in_the_report_and_in_the_store(clone, stored):
    page = (clone / "report/index.html").read_text()
    assert page.count(', an image of the validation split"') == 10
    assert '<script type="text/plain" id="model-custom-0">' in page
    assert stored["comparison"]["files"] == ["index.html"]


def test_everything_made_is_committed_or_ignored(clone, environment):
    assert sh("git status --porcelain", clone, environment) == ""
    stale = json.loads(sh("dvc status --json", clone, environment))
    assert set(stale) == {"sync"}


def test_logged_model_loads_without_the_repository(clone, environment, stored, tmp_path):
    (model,) = stored["custom-0"]["models"]
    code = f"""
        import numpy, keras, mlflow
        mlflow.set_tracking_uri("sqlite:///{clone}/mlflow.db")
        images = numpy.zeros((2, 32, 32, 3), numpy.uint8)
        chances = mlflow.pyfunc.load_model("models:/{model}").predict(images)
        folder = mlflow.artifacts.download_artifacts("models:/{model}")
        plain = keras.saving.load_model(folder + "/data/model.keras").predict(images, verbose=0)
        numpy.testing.assert_allclose(numpy.asarray(chances), plain, atol=1e-6)
        assert plain.shape == (2, 10)
    """
    sh(f"python -c '{textwrap.dedent(code)}'", tmp_path, environment)


def test_fresh_clone_fetches_skips_and_has_the_whole_store(clone, environment, stored, fresh):
    folder, said = fresh
    assert "Running stage 'fetch'" in said
    assert "Running stage 'train" not in said
    assert "Running stage 'evaluate" not in said
    assert sh("git status --porcelain", folder, environment) == ""
    runs = store(folder, environment)
    assert set(runs) == set(stored) == RUNS
    assert runs["custom-0"]["tags"]["replayed"] == "true"
    for key in ("steps", "params", "start"):
        assert runs["custom-0"][key] == stored["custom-0"][key]
    assert len(runs["custom-0"]["models"]) == 1


def test_new_model_is_one_file_a_recipe_and_a_run(environment, fresh):
    fresh, _ = fresh
    (fresh / "pipeline/models/tiny.py").write_text(
        textwrap.dedent('''
            """One convolution."""

            import keras
            from keras import layers

            from pipeline.models import pixels


            def build() -> keras.Model:
                """A 3x3 convolution, averaged."""
                inputs, x = pixels()
                x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
                x = layers.GlobalAveragePooling2D(name="average")(x)
                return keras.Model(inputs, layers.Dense(10, "softmax", name="classes")(x))
        ''')
    )
    tree = params.parse(fresh / "params.yaml")
    tree["recipes"]["tiny"] = tree["recipes"]["custom"] | {"model": "tiny"}
    tree["runs"]["tiny-0"] = {"recipe": "tiny", "model": "tiny", "seed": 0, "needs": "data/cifar10"}
    tree["export"]["runs"]["tiny-0"] = {"max_bytes": 10_000}
    (fresh / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    said = sh("dvc repro", fresh, environment)
    assert "Running stage 'train@tiny-0'" in said
    assert "Running stage 'train@custom-0'" not in said
    assert "tiny" in (fresh / "report/README.md").read_text()
    assert (fresh / "results/tiny-0/export/model.int8.tflite").stat().st_size <= 10_000
    assert "tiny-0" in store(fresh, environment)


def readme_command(start: str) -> str:
    """The command line in README.md that begins so, without its comment."""
    (line,) = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.strip().startswith(start)]
    return line.partition("  #")[0]


def test_experiments_can_be_run_shown_and_compared(clone, environment, tmp_path):
    sh(f"git clone -q {clone} fresh", tmp_path, environment)
    fresh = tmp_path / "fresh"
    sh("git config user.name t && git config user.email t@example.org", fresh, environment)
    sh("dvc exp run -S recipes.custom.epochs=1", fresh, environment)
    assert "epochs" in sh("dvc params diff", fresh, environment)
    assert "test_accuracy" in sh("dvc metrics diff --all", fresh, environment)
    assert "index.html" in sh("dvc plots diff", fresh, environment)
    assert "val_accuracy" in (fresh / "dvc_plots/index.html").read_text()
    shown = sh(readme_command("dvc exp show"), fresh, environment | {"COLUMNS": "300"})
    assert "recipes.custom.learning_rate" in shown
    assert "custom.val_accuracy" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    sh(readme_command("git restore"), fresh, environment)
    assert sh("git status --porcelain", fresh, environment) == ""
    assert set(json.loads(sh("dvc status --json", fresh, environment))) == {"sync"}
    changes = "-S recipes.custom.epochs=1 -S recipes.custom.learning_rate=0.01"
    sh(f"dvc exp run --temp {changes} evaluate@custom-0", fresh, environment)
    assert sh("git status --porcelain", fresh, environment) == ""
    runs = store_of_copies(fresh, environment)
    assert runs == ["1", "1"]  # both in the one store of the repository


def store_of_copies(folder: Path, environment: dict) -> list[str]:
    """The epochs of every run of custom-0 in the store."""
    code = """
        import mlflow
        client = mlflow.MlflowClient()
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.run = \\"custom-0\\"")
        print("STORE" + " ".join(run.data.params["epochs"] for run in runs))
    """
    return sh(f"python -c '{textwrap.dedent(code)}'", folder, environment).partition("STORE")[2].split()


def test_mlflow_project_runs_in_a_copy_and_refuses_bad_values_in_one_line(clone, environment, tmp_path):
    sh(f"git clone -q {clone} fresh", tmp_path, environment)
    fresh = tmp_path / "fresh"
    line = "mlflow run . --env-manager local -e run -P run=custom-0"
    sh(f"{line} -P epochs=1", fresh, environment)
    assert sh("git status --porcelain", fresh, environment) == ""
    parent = 'tags.`mlflow.parentRunId` LIKE \\"%\\"'
    code = f"""
        import mlflow
        client = mlflow.MlflowClient()
        (child,) = client.search_runs(["0"], "{parent}")
        parent = client.get_run(child.data.tags["mlflow.parentRunId"])
        print("STORE", child.info.run_name, child.data.params["epochs"], parent.info.status)
    """
    assert "STORE custom-0 1 FINISHED" in sh(f"python -c '{textwrap.dedent(code)}'", fresh, environment)
    said = sh(f"! {line} -P epochs=abc", fresh, environment)
    assert "recipes.custom.epochs: received 'abc'; allowed: a whole number from 1 to 1000" in said
    assert "Traceback" not in said


def test_project_of_a_git_address_logs_into_the_callers_store(clone, environment, tmp_path):
    caller, address = tmp_path / "calle r", tmp_path / "my repo/project.git"
    for folder in (caller, tmp_path / "fetched"):
        folder.mkdir()
    sh(f"git clone -q --bare '{clone}' '{address}'", tmp_path, environment)
    relative = environment | {"MLFLOW_TRACKING_URI": "sqlite:///my%20runs.db", "TMPDIR": str(tmp_path / "fetched")}
    sh(f"mlflow run {address.as_uri()} --env-manager local -e run -P epochs=1 -P seed=3", caller, relative)
    code = """
        import json, mlflow
        client = mlflow.MlflowClient()
        runs = {run.data.tags.get("mlflow.parentRunId", ""): run for run in client.search_runs(["0"])}
        parent = runs.pop("")
        child = runs.pop(parent.info.run_id)
        print("STORE", child.info.run_name, parent.data.params, parent.info.run_name, runs)
        print("FILES", [file.path for file in client.list_artifacts(child.info.run_id)])
    """
    said = sh(f"python -c '{textwrap.dedent(code)}'", caller, relative)
    given = {"epochs": "1", "seed": "3"}
    assert f"STORE custom-3 {given} run custom-3: epochs=1, seed=3 {{}}" in said
    assert "history.csv" in said.partition("FILES")[2]
    assert not list((tmp_path / "fetched").rglob("*.db"))
    assert {path.name for path in caller.iterdir()} == {"my runs.db", "mlruns"}
