"""Records, models and projects that tests need, made up."""

import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from conftest import ROOT

import pipeline
from pipeline.config import params
from pipeline.evaluation import predictions
from pipeline.records import files
from pipeline.training import cifar10

NUMBERS = {"parameters": 92_027, "multiply_adds": 24_017_920, "epochs": 2}
HISTORY = [
    {"epoch": 1, "loss": 2.2, "accuracy": 0.2, "val_loss": 2.1, "val_accuracy": 0.25, "learning_rate": 0.1},
    {"epoch": 2, "loss": 2.0, "accuracy": 0.3, "val_loss": 1.9, "val_accuracy": 0.35, "learning_rate": 0.05},
]


def list_runs(*runs):
    listed = {
        run: {"recipe": run[:-2], "model": run[:-2], "seed": int(run[-1]), "needs": "data/cifar10"} for run in runs
    }
    tree = params.parse(ROOT / "params.yaml") | {"runs": listed}
    tree["export"]["runs"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


@cache
def probabilities_npz(test_accuracy, val_accuracy, errors_seed=None):
    """Predictions of 10,000 test and 5,000 validation images with exactly these accuracies.

    The last images are misclassified, or images drawn by the seed.
    """
    arrays = []
    for images, accuracy in ((10_000, test_accuracy), (5_000, val_accuracy)):
        labels = np.arange(images) % 10
        order = np.arange(images) if errors_seed is None else np.random.default_rng(errors_seed).permutation(images)
        is_wrong = order >= round(images * accuracy)
        arrays += [0.1 + 0.8 * np.eye(10)[(labels + is_wrong) % 10], labels]
    return predictions.encode(*arrays)


def _params(run):
    """Those of a run that params.yaml lists, or few."""
    few = {"epochs": 2, "train_images": 45_000, "val_images": 5_000, "test_images": 10_000}
    config = params.read() if Path("params.yaml").exists() else None
    return config.flat(run) if config and run in config.runs else few


def write_run(run, test_accuracy=0.85, comparable=True, errors_seed=None, **evaluation):
    """The record of a run `<recipe>-<seed>`: two epochs, of 30 and 90 seconds."""
    folder = Path("results") / run
    folder.mkdir(parents=True, exist_ok=True)
    recipe, seed = run[:-2], int(run[-1])
    files.write(
        folder / "history.csv",
        "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate\n1,1.5,0.4,1.4,0.5,0.1\n2,1.1,0.6,1,0.7,0.1\n",
    )
    training = {
        "record_id": run,
        "run": run,
        "status": "finished",
        "recipe": recipe,
        "model": recipe,
        "seed": seed,
        "params": _params(run),
        "started_ms": 1_795_388_400_000,  # 2026-11-22, 23:00 in UTC
        "ended_ms": 1_795_388_520_000,
        "epochs": [
            {"epoch": 1, "ended_ms": 1, "epoch_seconds": 30.0, "images_per_second": 1500.0},
            {"epoch": 2, "ended_ms": 2, "epoch_seconds": 90.0, "images_per_second": 500.0},
        ],
        "environment": {
            "commit": "0" * 40,
            "dirty": False,
            "data_hash": "1" * 32,
            "device": "CPU",
            "threads": 2,
            "processor": "Made-up | 9000",
            "precision": "bfloat16",
            "tensorflow": "2.21.0",
            "keras": "3.15.1",
        },
    }
    files.write_json(folder / "training.json", training)
    metrics = {"test_accuracy": test_accuracy, "test_accuracy_flip": test_accuracy + 0.01, "test_loss": 0.5}
    metrics |= {"test_images": 10_000 if comparable else 1_000}
    metrics |= {"val_accuracy": 0.7, "val_loss": 0.6, "calibration_error": 0.05} | NUMBERS | evaluation
    files.write_json(folder / "evaluation.json", metrics)
    npz = probabilities_npz(test_accuracy, metrics["val_accuracy"], errors_seed)
    files.write(folder / "probabilities.npz", npz)
    files.write_json(folder / "speed.json", {"evaluated_ms": 1_795_388_600_000})


def write_export(run, int8=True, **changes):
    """What export left of a run, but for an int8 file; its float32 file is compact-0's. Lists it in params.yaml."""
    tree = params.parse("params.yaml")
    tree["export"]["runs"][run] = {"max_bytes": 170_000}
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    litert = (ROOT / "results/compact-0/export/model.tflite").read_bytes()
    worth = {"sha256": "0" * 64, "val_accuracy": 0.9, "test_agreement": 1.0}
    export = {
        "model_sha256": "",
        "float32": worth | {"bytes": len(litert), "test_accuracy": 0.88, "sha256": files.sha256_of(litert)},
        "int8": worth | {"bytes": 152_624, "test_accuracy": 0.8512, "arena_bytes": 220_416} if int8 else None,
        "without_int8": "" if int8 else "layer 'x' uses Y",
        "violations": [],
    }
    folder = Path("results") / run / "export"
    folder.mkdir(parents=True)
    files.write(folder / "model.tflite", litert)
    files.write_json(folder / "export.json", export | changes)
    speed = {"latency_ms": {"float32": 0.36, "int8": 0.417}, "threads": 2, "processor": "Made-up 9000"}
    files.write_json(folder / "speed.json", speed)


def change_training(run, **training):
    path = Path("results") / run / "training.json"
    files.write_json(path, json.loads(path.read_text()) | training)


def report_files():
    return {str(path.relative_to("report")): path.read_bytes() for path in Path("report").rglob("*") if path.is_file()}


class EvaluateStage:
    """A folder with params.yaml, made-up data and the record of a finished training run `custom-0`."""

    def __init__(self, folder, monkeypatch):
        from pipeline.evaluation import inference

        self.folder, self.results, self.logged = folder, folder / "results/custom-0", []
        tree = params.parse(ROOT / "params.yaml")
        tree["data"] = {"train_images": 100, "val_images": 100, "test_images": 50, "split_seed": 3}
        tree["train"]["device"] = "cpu"
        tree["evaluate"]["most_confident_errors"] = 4  # 25 pictures cost 0.8 s to lay out
        for recipe in tree["recipes"].values():
            recipe["batch_size"] = 10
        (folder / "params.yaml").write_text(yaml.safe_dump(tree))
        (folder / "data/cifar10").mkdir(parents=True)
        pixels = np.random.default_rng(0)
        for name in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES):
            records = pixels.integers(0, 256, (100, cifar10.RECORD_BYTES), np.uint8)
            records[:, 0] = np.arange(100) % 10
            records.tofile(folder / "data/cifar10" / name)
        self.results.mkdir(parents=True)
        self.write_training(status="finished")
        rows = [",".join(HISTORY[0]), *(",".join(map(str, row.values())) for row in HISTORY)]
        (self.results / "history.csv").write_text("\n".join(rows) + "\n")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["evaluate", "custom-0"])
        monkeypatch.setattr(pipeline, "tracking", SimpleNamespace(sync_run=self.logged.append), raising=False)
        monkeypatch.setattr(inference, "LATENCY_CALLS", 3)
        monkeypatch.setattr(inference, "THROUGHPUT_CALLS", 2)

    def write_training(self, status):
        training = {"record_id": "0" * 32, "run": "custom-0", "status": status, "params": {}, "environment": {}}
        training |= {"recipe": "custom", "model": "custom", "seed": 0}
        training |= {"started_ms": 0, "ended_ms": 9}
        timed = {"ended_ms": 9, "epoch_seconds": 1.0, "images_per_second": 1.0}
        training["epochs"] = [{"epoch": row["epoch"], **timed} for row in HISTORY]
        (self.results / "training.json").write_text(json.dumps(training))

    def save(self, model):
        model.save(self.results / "model.keras")

    def read(self, name):
        return json.loads((self.results / name).read_text())

    def files(self):
        return {path.name: path.read_bytes() for path in self.results.iterdir()}


def tiny_model():
    """Linear in the pixels, so that a flipped image is another image to it."""
    import keras

    pixels = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
    x = keras.layers.Flatten(name="flatten")(keras.layers.Rescaling(1 / 255, name="scaled")(pixels))
    start = keras.initializers.RandomNormal(0.0, 0.05, seed=1)
    classes = keras.layers.Dense(10, activation="softmax", kernel_initializer=start, name="classes")
    return keras.Model(pixels, classes(x), name="tiny")
