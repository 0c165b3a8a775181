"""The registry holds the champions of what is committed; their models need no repository."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from factories import list_runs, write_run
from mlflow.tracking._tracking_service import utils as tracking_uri
from PIL import Image
from test_stages import imported

from pipeline import compare, sync
from pipeline.config import params
from pipeline.conversion import exported
from pipeline.records import record
from pipeline.report import cards, comparison_plots
from pipeline.tracking import registry, store
from pipeline.training.cifar10 import CLASS_NAMES

NAMES = ["cifar10-published-base", "cifar10-published-custom"]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], check=True)


def commit():
    """Compares, and commits everything."""
    compare.main()
    git("add", "-A")
    git("commit", "-qm", "results")


def add_run(run, **evaluation):
    """A record with the exported files of compact-0."""
    write_run(run, **evaluation)
    shutil.copytree(ROOT / "results/compact-0/export", f"results/{run}/export", dirs_exist_ok=True)


@pytest.fixture
def committed(project, monkeypatch):
    """A repository with two recorded runs, of which compact-0 stands in for both champions."""
    store.reconnect()
    monkeypatch.setattr(tracking_uri, "_tracking_uri", None)  # MLflow would keep that of the first test
    monkeypatch.setattr(sys, "argv", ["compare"])
    monkeypatch.setattr(comparison_plots, "_png", lambda figure: b"")  # drawing takes a second
    (project / "data/cifar10").unlink()  # too few images for params.yaml; the page does without
    (project / ".gitignore").write_text("/mlflow.db*\n/mlruns/\n/.workspaces/\n/.dvc/\n")
    git("init", "-q")
    list_runs("baseline-0", "compact-0")
    add_run("baseline-0", parameters=1_000_000)
    add_run("compact-0", val_accuracy=0.75)
    commit()
    return project


def registered():
    """Each registered model's alias: version, its tags and the record that its MLflow run shows."""
    client = store.client()
    found = {}
    for model in client.search_registered_models():
        if version := model.aliases.get("champion"):
            version = client.get_model_version(model.name, version)
            run = client.get_run(version.run_id)
            assert run.info.lifecycle_stage == "active"
            found[model.name] = (version.version, version.tags, run.data.tags["record_id"])
    return found


def test_champions_are_registered_once_and_again_from_git(committed, monkeypatch):
    sync.main()
    first = registered()
    assert list(first) == NAMES
    version, tags, record_id = first["cifar10-published-custom"]
    assert (version, record_id, tags["record_id"]) == (1, "compact-0", "compact-0")
    told = {"status": "stand-in", "run": "compact-0", "recipe": "compact", "seeds": "1", "val_accuracy": "0.75"}
    told |= {"min_seeds": "3", "margin": "0.002", "parameters": "92027", "multiply_adds": "24017920", "epochs": "2"}
    assert told.items() <= tags.items()
    assert tags["limits"].startswith("at most 92,027 parameters")
    card = Path("report/models/compact.md").read_text()
    assert [model.description for model in store.client().search_registered_models()] == [card, card]
    why = store.client().get_model_version(NAMES[1], 1).description
    assert why.startswith(
        "published-custom (at most 92,027 parameters and 50 epochs): take compact-0 (stand-in). Recipe "
    )
    with monkeypatch.context() as without:
        without.setattr(store, "client", lambda: pytest.fail("MLflow was asked"))
        sync.main()
    registry.sync_champions(sync.registered(records()))
    assert registered() == first
    assert len(store.client().search_model_versions()) == 2
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    store.reconnect()
    sync.main()
    assert registered() == first


def records():
    return [record.load(run) for run in params.read().runs]


def test_alias_moves_with_the_commit_that_is_checked_out(committed):
    sync.main()
    add_run("baseline-0", parameters=1_000_000, val_accuracy=0.8)
    commit()
    sync.main()
    assert {name: (of[0], of[2]) for name, of in registered().items()} == {
        NAMES[0]: (2, "baseline-0"),
        NAMES[1]: (1, "compact-0"),
    }
    git("checkout", "-q", "HEAD~1")
    sync.main()
    assert {name: (of[0], of[2]) for name, of in registered().items()} == {
        NAMES[0]: (1, "compact-0"),
        NAMES[1]: (1, "compact-0"),
    }
    assert len(store.client().search_model_versions()) == 3


def test_more_seeds_change_the_tags_and_no_version(committed):
    sync.main()
    list_runs("baseline-0", *(f"compact-{seed}" for seed in range(3)))
    for seed in (1, 2):
        add_run(f"compact-{seed}", val_accuracy=0.73)
    commit()
    sync.main()
    version, tags, record_id = registered()[NAMES[1]]
    assert (version, record_id, tags["status"], tags["seeds"]) == (1, "compact-0", "champion", "3")
    assert tags["val_accuracy"] == "0.736667"


def test_budget_without_a_champion_has_no_alias(committed):
    sync.main()
    add_run("compact-0", parameters=2_000_000)
    add_run("baseline-0", parameters=1_000_000)
    commit()
    sync.main()
    assert [(name, record_id) for name, (_, _, record_id) in registered().items()] == [(NAMES[0], "baseline-0")]


def test_champion_that_is_not_exported_is_warned_of(committed, capsys):
    shutil.rmtree("results/compact-0/export")
    commit()
    sync.main()
    assert registered() == {}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert warnings[1].startswith("warning: the champion of published-custom is not registered in MLflow: results/comp")
    assert warnings[1].endswith("export.json is not here: make it with `python -m pipeline.export compact-0`")


@pytest.mark.parametrize(
    "why", ["a changed record", "a changed report", "changed code", "quick", "experiment", "workspace", "no git"]
)
def test_what_is_not_a_commits_result_is_not_registered(why, committed, monkeypatch):
    assert len(sync.registered(records())) == 2
    if why == "a changed record":
        add_run("compact-0", val_accuracy=0.76)
    elif why == "a changed report":
        list_runs("compact-0")
        compare.main()
    elif why == "changed code":
        Path("pipeline").mkdir()
        Path("pipeline/new.py").touch()
    elif why == "quick":
        path = Path("results/compact-0/evaluation.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test_images": 1_000}))
        commit()
    elif why == "no git":
        shutil.rmtree(".git")
    else:
        folder = Path({"experiment": ".dvc/tmp/exps/x", "workspace": ".workspaces/x"}[why])
        folder.mkdir(parents=True)
        for name in ("params.yaml", "reference", "report", "results"):
            (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, folder / name)
        monkeypatch.chdir(folder)
        if why == "experiment":
            git("init", "-q")
            git("add", "-A")
            git("commit", "-qm", "as DVC does")
    assert sync.registered(records()) is None


def test_code_that_goes_with_the_model_is_all_that_it_imports():
    needed = imported(registry.CLASSIFIER)
    packages = {str(folder) for file in needed for folder in Path(file).parents} - {"."}
    assert set(registry.CODE) == needed | {f"{folder}/__init__.py" for folder in packages}


@pytest.mark.parametrize(
    ("given", "name"),
    [("", cards.REGISTERED.format(budget="small")), ("our team's/cifar:10", "our-team-s-cifar-10-small")],
)
def test_models_are_named_after_the_experiment_as_cards_name_them(given, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", given)
    assert registry.Champion("small", None, {}, "", "").name == name


def test_card_in_mlflow_names_the_models_of_its_experiment(committed, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setattr(cards, "REGISTERED", "cifar10-{budget}")
    card = cards.path("compact")
    card.write_text("models:/cifar10-published-custom@champion, results of cifar10")
    git("commit", "-qam", "another card")
    assert {champion.note for champion in sync.registered(records())} == {
        "models:/mine-published-custom@champion, results of cifar10"
    }


def test_note_that_is_too_long_is_cut_between_lines():
    assert registry._shortened("a\nb") == "a\nb"
    cut = registry._shortened("line\n" * 1_001)
    assert len(cut) <= registry.MOST_CHARACTERS
    assert cut.endswith("line\n…")


ELSEWHERE = """
import base64, json, sys
for name in ("tensorflow", "keras"):
    sys.modules[name] = None  # importing it fails
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
images = pandas.DataFrame({"image": json.load(sys.stdin)})
print(json.dumps(model.predict(images)))
import pipeline.images.reader
print(pipeline.images.reader.__file__)
try:
    model.predict(pandas.DataFrame({"image": [images["image"][0], "bm9uZQ=="]}))
except Exception as error:
    print(error)
"""


def encoded(folder):
    """The images as base64 of PNG files."""
    for index, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / f"{index}.png")
    return [base64.b64encode((folder / f"{index}.png").read_bytes()).decode() for index in range(len(PIXELS))]


def without_repository(**more):
    """The environment of a process that finds this repository nowhere."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


def test_model_answers_as_predict_does_without_repository_and_tensorflow(committed, tmp_path_factory):
    sync.main()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, f"models:/{NAMES[1]}@champion"],
        input=json.dumps(encoded(elsewhere)),
        cwd=elsewhere,
        env=without_repository(),
        capture_output=True,
        text=True,
    )
    answers, code, error = done.stdout.splitlines()
    assert done.stderr == ""
    expected = exported.load("compact-0").predict(PIXELS)
    for answer, probabilities in zip(json.loads(answers), expected, strict=True):
        assert list(answer) == ["class", "probability", "probabilities"]
        assert answer["class"] == CLASS_NAMES[probabilities.argmax()]
        assert answer["probability"] == answer["probabilities"][answer["class"]]
        assert list(answer["probabilities"]) == list(CLASS_NAMES)
        np.testing.assert_allclose(list(answer["probabilities"].values()), probabilities, atol=1e-6)
    assert str(ROOT) not in code
    assert error == "image 2: it is no image that Pillow opens: save it as PNG or JPEG"


class Server:
    """`mlflow models serve` of a champion, as the README starts it."""

    def __init__(self, name, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.log = (folder / "log").open("w")
        command = ["mlflow", "models", "serve", "-m", f"models:/{name}@champion", "--env-manager", "local"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, "-p", str(self.port)],
            cwd=folder,
            env=without_repository(PATH=path),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, body, path="/invocations"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self.ask("", "/ping")
            except OSError:
                time.sleep(0.1)
        raise AssertionError(Path(self.log.name).read_text())

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()
        self.log.close()


@pytest.fixture
def server(committed, tmp_path_factory):
    sync.main()
    server = Server(NAMES[1], tmp_path_factory.mktemp("elsewhere"))
    yield server
    server.stop()


def request(*images):
    return json.dumps({"dataframe_records": [{"image": image} for image in images]})


@pytest.mark.slow
def test_served_model_answers_refuses_in_one_line_and_outlives_bad_requests(server, tmp_path_factory):
    server.wait(60)
    first, *others = encoded(tmp_path_factory.mktemp("images"))
    status, text = server.ask(request(first, *others))
    assert status == 200
    expected = exported.load("compact-0").predict(PIXELS).argmax(axis=1)
    assert [answer["class"] for answer in json.loads(text)["predictions"]] == [CLASS_NAMES[label] for label in expected]
    bad = {
        "": "image 1: it is empty",
        "!": "image 1: it is not base64: encode the image file, for example with `base64 -w0 photo.png`",
        "bm9uZQ==": "image 1: it is no image that Pillow opens: save it as PNG or JPEG",
        first[:1000]: "image 1: it is damaged (image file is truncated): save it anew",
    }
    for number in range(1_000):
        (image, error), *_ = list(bad.items())[number % len(bad) :]
        status, text = server.ask(request(image))
        assert status == 400
        if number < len(bad):
            assert json.loads(text)["message"].endswith(f"\nError: {error}")
            assert "Traceback" not in text
        assert len(text) < 500
    for refused in ("", "{", "[]", "{}", '{"inputs": {"photo": ["x"]}}'):
        assert server.ask(refused or "null")[0] == 400
    assert server.ask(request(first))[0] == 200
    assert "Traceback" not in Path(server.log.name).read_text()
    for page in ("README.md", "docs/serving.md"):
        answer = asked_by_curl((ROOT / page).read_text(), server.port, tmp_path_factory.mktemp("photo"))
        assert json.loads(answer)["predictions"][0]["class"] in CLASS_NAMES


def asked_by_curl(page, port, folder):
    """What the example of a page answers to a photo that is too large for an argument of a command."""
    (example,) = re.findall(r"^ {4}(\(printf .*\n +curl .*)$", page, re.MULTILINE)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1_200, 3), np.uint8)).save(folder / "photo.jpg")
    assert (folder / "photo.jpg").stat().st_size > 200_000
    command = example.replace(":5001", f":{port}")
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
