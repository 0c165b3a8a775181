"""The predict command: its answers are evaluate's, and what cannot be read does not stop the rest."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_FILES, ROOT
from PIL import Image

from pipeline import predict
from pipeline.config import params
from pipeline.images import sheet, sources
from pipeline.records import files, record
from pipeline.report.default_run import default_run
from pipeline.system.command import PipelineError
from pipeline.training import dataset
from pipeline.training.cifar10 import CLASS_NAMES

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def exported_project(tmp_path_factory, tensorflow):
    """A folder with params.yaml and the export of a model that is linear in the pixels; the model too."""
    from factories import tiny_model

    from pipeline.conversion import litert

    folder = tmp_path_factory.mktemp("project")
    model, export = tiny_model(), folder / "results/custom-0/export"
    export.mkdir(parents=True)
    content = litert.float32(model)
    (export / "model.tflite").write_bytes(content)
    written = {"sha256": files.sha256_of(content)}
    files.write_json(export / "export.json", {"model_sha256": "", "float32": written, "int8": None})
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return folder, model


@pytest.fixture
def project(exported_project, tmp_path, monkeypatch):
    """The same, as the working directory; images are written to `tmp_path`."""
    monkeypatch.chdir(exported_project[0])
    return tmp_path


def write(path, image=IMAGES[0]):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return str(path)


def run(monkeypatch, capsys, *arguments):
    """Exit status, lines of stdout and of stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["predict", "--run", "custom-0", *arguments])
    with pytest.raises(SystemExit) as ended:
        predict.main()
    out, err = capsys.readouterr()
    return ended.value.code, out.splitlines(), err.splitlines()


def test_validation_images_as_png_get_the_classes_that_evaluate_sees(exported_project, project, monkeypatch, capsys):
    from pipeline.evaluation import inference

    expected = inference.predict(exported_project[1], IMAGES)
    for index, image in enumerate(IMAGES):
        write(project / f"{index:02}.png", image)
    code, lines, errors = run(monkeypatch, capsys, "--json", "--top", "10", str(project))
    assert (code, errors, len(lines)) == (0, [], 100)
    for index, line in enumerate(map(json.loads, lines)):
        assert list(line) == ["file", "class", "probability", "top"]
        assert line["file"] == str(project / f"{index:02}.png")
        assert line["class"] == CLASS_NAMES[expected[index].argmax()]
        received = {entry["class"]: entry["probability"] for entry in line["top"]}
        np.testing.assert_allclose([received[name] for name in CLASS_NAMES], expected[index], atol=1e-4)
        assert line["probability"] == max(received.values())


@pytest.mark.skipif(not (ROOT / "data/cifar10").is_dir(), reason="needs data/cifar10, which `dvc repro fetch` writes")
@pytest.mark.parametrize("run_name", params.read(ROOT / "params.yaml").export.runs)
def test_recorded_model_sees_in_real_images_what_evaluate_saw(run_name, tmp_path, monkeypatch, capsys, tensorflow):
    from pipeline.evaluation import inference, predictions

    monkeypatch.chdir(ROOT)
    data, log = params.read().data, record.load(run_name)
    _, val = dataset.read_train_val(record.DATA, data.train_images, data.val_images, data.split_seed)
    stored = predictions.read(log.folder, log.evaluation).val_probabilities[:100]
    expected = inference.predict(inference.load_model(log.model_file, run_name), val.images[:100])
    for index in range(100):
        write(tmp_path / f"{index:02}.png", val.images[index])
    code, lines, errors = run(monkeypatch, capsys, "--run", run_name, "--json", "--top", "10", str(tmp_path))
    assert (code, errors) == (0, [])
    answers = [json.loads(line) for line in lines]
    assert [answer["class"] for answer in answers] == [CLASS_NAMES[label] for label in stored.argmax(axis=1)]
    named = [{entry["class"]: entry["probability"] for entry in answer["top"]} for answer in answers]
    received = [[probabilities[name] for name in CLASS_NAMES] for probabilities in named]
    np.testing.assert_allclose(received, expected, atol=1e-4)
    np.testing.assert_allclose(received, stored, atol=1e-3)  # float16


def test_unreadable_images_take_a_line_each_and_the_others_go_on(project, monkeypatch, capsys):
    good = write(project / "good.png")
    (project / "cut.png").write_bytes(Path(good).read_bytes()[:1000])
    (project / "empty.png").touch()
    (project / "a\nb.png").write_text("none")
    (project / "folder").mkdir()
    names = ["cut.png", "empty.png", "a\nb.png", "folder", "absent.png"]
    given = [*(str(project / name) for name in names), "https://example.org/cat.png", f"{project}/*.gif", good]
    code, lines, errors = run(monkeypatch, capsys, "--json", *given)
    assert code == 1
    assert [json.loads(line)["file"] for line in lines] == [good]
    assert [error.partition(f"error: {project}/")[2] for error in errors if "example.org" not in error] == [
        "cut.png: it is damaged (image file is truncated): save it anew",
        "empty.png: it is empty",
        "a\\nb.png: it is no image that Pillow opens: save it as PNG or JPEG",
        "folder: no image is in this folder",
        "absent.png: it is not here",
        "*.gif: no file has such a name",
    ]
    assert "error: https://example.org/cat.png: addresses are not read: download it first" in errors


@pytest.mark.parametrize("kind", sorted(NO_FILES.keys() - {"folder"}))
def test_what_is_no_file_is_refused(kind, project, monkeypatch, capsys):
    NO_FILES[kind](project / "image.png")
    code, lines, errors = run(monkeypatch, capsys, str(project / "image.png"))
    assert (code, lines, len(errors)) == (1, [], 1)


def test_folders_globs_and_any_names_are_found(project):
    names = ["a b.png", "x[1].png", "ä.JPG", "deep/er/c.webp"]
    for name in names:
        write(project / name)
    for other in ("notes.txt", "paper.pdf", "drawing.eps", "film.mpg", "weights.h5"):
        (project / other).write_text("no image")
    paths = sorted(str(project / name) for name in names)
    assert [source.name for source in sources.expand([str(project)])] == paths
    assert [source.name for source in sources.expand([f"{project}/**/*.webp"])] == [str(project / "deep/er/c.webp")]
    assert sources.expand([f"{project}/x[1].png"]) == [sources.Source(f"{project}/x[1].png")]
    assert [source.name for source in sources.expand([f"{project}/?[[]1].png"])] == [f"{project}/x[1].png"]


def test_standard_input_is_an_image_too(project, monkeypatch, capsys):
    path = write(project / "image.png")
    expected = run(monkeypatch, capsys, "--json", path)[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(path).read_bytes())))
    received = run(monkeypatch, capsys, "--json", "-")[1]
    assert json.loads(received[0]) == json.loads(expected[0]) | {"file": "-"}


def test_table_shows_file_class_probability_and_runners_up(project, monkeypatch, capsys):
    path = write(project / f"{'long' * 40} [bold].png")
    code, lines, _ = run(monkeypatch, capsys, path)
    answer = json.loads(run(monkeypatch, capsys, "--json", path)[1][0])
    first, second, third = answer["top"]
    assert code == 0
    assert lines[2].split("  ")[0] == path
    assert " ".join(lines[2].removeprefix(path).split()) == (
        f"{first['class']} {100 * first['probability']:.1f} % "
        f"{second['class']} {100 * second['probability']:.1f} %, {third['class']} {100 * third['probability']:.1f} %"
    )
    assert lines[-1] == "model: custom-0"


def test_picture_shows_photo_pixels_and_classes(project, monkeypatch, capsys):
    red = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    given = [write(project / "$red_$.png", red), write(project / "b.png", red)]
    code, _, errors = run(monkeypatch, capsys, "--picture", str(project / "sheet.png"), *given)
    assert (code, errors) == (0, [])
    with Image.open(project / "sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(axis=1).sum() > 20_000  # two photos and their pixels
    assert (pixels == (0, 0x72, 0xB2)).all(axis=1).sum() > 100  # bars
    monkeypatch.setattr(sheet, "MAX_ROWS", 1)
    _, _, errors = run(monkeypatch, capsys, "--picture", str(project / "sheet.png"), *given)
    assert errors == [f"{project}/sheet.png shows the first 1 images"]


@pytest.mark.parametrize(
    "arguments", [["--top", "0"], ["--top", "11"], ["--picture", "sheet.jpg"], ["--fit", "squeeze"]]
)
def test_arguments_are_checked(arguments, project, monkeypatch, capsys):
    code, _, errors = run(monkeypatch, capsys, write(project / "image.png"), *arguments)
    assert code == 2
    assert arguments[0] in errors[-1]
    assert arguments[1] in errors[-1]


def test_run_without_an_export_says_how_to_make_one(project, monkeypatch, capsys):
    with pytest.raises(PipelineError, match=r"make it with `python -m pipeline\.export compact-0`"):
        monkeypatch.setattr(sys, "argv", ["predict", "--run", "compact-0", write(project / "image.png")])
        predict.main()


def test_first_answer_needs_no_tensorflow(exported_project, project):
    path = write(project / "image.png")
    code = (
        "import sys; from pipeline import predict\n"
        "try: predict.main()\n"
        "finally: print(*sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)), 'loaded', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--run", "custom-0", "--json", path],
        cwd=exported_project[0],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "loaded\n"
    assert json.loads(done.stdout)["class"] in CLASS_NAMES


def test_bar_is_on_the_terminal_and_answers_are_in_the_pipe(exported_project, project):
    given = [write(project / f"{index:02}.png") for index in range(predict.BAR_FROM)]
    (project / "bad.png").write_text("none")
    terminal, stderr = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.predict", "--run", "custom-0", "--json", str(project)],
        cwd=exported_project[0],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    os.close(stderr)
    shown = ""
    with contextlib.suppress(OSError):  # the end
        while part := os.read(terminal, 1 << 20):
            shown += part.decode(errors="replace")
    os.close(terminal)
    assert done.returncode == 1
    assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == given
    assert "images" in shown
    assert "bad.png: it is no image that Pillow opens" in shown


def evaluated(folder, run, **evaluation):
    """A record of what the champion's rule reads."""
    (folder / "results" / run).mkdir(parents=True)
    evaluation = {"test_accuracy": 0.5, "parameters": 90_000, "multiply_adds": 1, "epochs": 50} | evaluation
    files.write_json(folder / "results" / run / "evaluation.json", evaluation)
    files.write_json(folder / "results" / run / "speed.json", {"evaluated_ms": 1})


def test_default_is_the_champion_of_the_smallest_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = params.read(ROOT / "params.yaml")
    with pytest.raises(
        PipelineError, match="no recorded run is within the budget published-custom: name one with --run"
    ):
        default_run(config)
    evaluated(tmp_path, "custom-0", val_accuracy=0.85)
    evaluated(tmp_path, "compact-0", val_accuracy=0.91)
    evaluated(tmp_path, "baseline-0", val_accuracy=0.95, parameters=1_000_000)
    assert default_run(config) == (
        "compact-0",
        "it stands in for the champion of published-custom, which needs recipes with 3 seeds",
    )
    (tmp_path / "report").mkdir()
    champion = {"status": "champion", "recipe": "custom", "run": "custom-0"}
    files.write_json(tmp_path / "report/champions.json", {"published-custom": champion, "published-base": {}})
    assert default_run(config) == ("custom-0", "champion of published-custom")
    champion = {"status": "none", "recipe": None, "run": None}
    files.write_json(tmp_path / "report/champions.json", {"published-custom": champion})
    with pytest.raises(PipelineError, match="no recorded run"):
        default_run(config)
    files.write_json(tmp_path / "report/champions.json", {"another": champion})  # the budget has another name now
    assert default_run(config)[0] == "compact-0"
    without = config.model_copy(update={"compare": config.compare.model_copy(update={"budgets": {}})})
    with pytest.raises(PipelineError, match="has no budget, so no model is the default: name a run with --run"):
        default_run(without)


def test_rule_chooses_among_enough_seeds_before_compare_has_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = params.parse(ROOT / "params.yaml")
    tree["runs"] |= {f"custom-{seed}": tree["runs"]["custom-0"] | {"seed": seed} for seed in (1, 2)}
    for seed in range(3):
        evaluated(tmp_path, f"custom-{seed}", val_accuracy=0.85)
    evaluated(tmp_path, "compact-0", val_accuracy=0.91)
    assert default_run(params.check(tree)) == ("custom-0", "champion of published-custom")
