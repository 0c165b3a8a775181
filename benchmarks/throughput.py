"""Training throughput beside the published code's way and PyTorch: `make bench` writes throughput.json.

Every path is a process of its own; they take turns, round by round, so that a drift of the machine meets all.
Figures are medians of the rounds, and ratios of medians. PyTorch is optional: `pip install torch` in the environment.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

PATHS = ("ours", "keras", "torch", "torch_bfloat16")
MATMUL = 4096  # side
EPOCHS_FOR_MEMORY = 20


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each path (default 5)")
    parser.add_argument("--images", type=int, default=1536, help="in a round (default 1536)")
    parser.add_argument("--batch", type=int, default=256, help="images in a step (default 256)")
    parser.add_argument("--models", nargs="+", default=["baseline", "custom", "compact"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/throughput.json"))
    arguments = parser.parse_args()
    console = Console(highlight=False, width=100)
    paths = [path for path in PATHS if not path.startswith("torch") or importlib.util.find_spec("torch")]
    if len(paths) < len(PATHS):
        console.print("PyTorch is not installed: left out (`.venv/bin/python -m pip install torch` adds it)")
    rates = matmul_rates()
    report: dict[str, Any] = {"machine": machine() | {"matmul_gflops": rates}, "batch_size": arguments.batch}
    for model in arguments.models:
        console.print(
            f"{model}: {', '.join(paths)}, {arguments.rounds} rounds of {arguments.images} images, interleaved"
        )
        measured = interleaved(model, paths, arguments.rounds, arguments.batch, arguments.images)
        work = 6 * multiply_adds(model)  # operations an image: a multiply-add is 2, forward and twice that backward
        report[model] = {
            path: {"images_per_second": round(median(rounds), 1), "rounds": rounds} for path, rounds in measured.items()
        }
        report[model] |= {
            f"ceiling_{precision}": {"images_per_second": round(rate * 1e9 / work, 1)}
            for precision, rate in rates.items()
        }
        console.print(table(model, report[model]))
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    model = arguments.models[-1]
    console.print(f"{model}: how cost grows")
    report["growth"] = growth(model, arguments.images, arguments.batch)
    console.print_json(json.dumps(report["growth"]))
    report["startup"] = startup()
    console.print(f"start-up: {report['startup']}")
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


class Worker:
    """One path in a process of its own, ready to train an epoch when asked."""

    def __init__(self, path: str, model: str, batch: int, images: int):
        self._name = f"{path} {model}"
        command = [sys.executable, "-m", "benchmarks.paths", path, model, str(batch), str(images)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def epoch(self) -> tuple[float, float]:
        """Trains an epoch: images per second, resident MiB afterwards."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        rate, memory = self._answer("").split()
        return round(float(rate), 1), round(float(memory))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self, start: str) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line or not line.startswith(start):
            sys.exit(f"error: the benchmark process of {self._name} ended")
        return line


def interleaved(model: str, paths: list[str], rounds: int, batch: int, images: int) -> dict[str, list[float]]:
    """Images per second of each path, round by round: all paths once, then all again."""
    workers = {path: Worker(path, model, batch, images) for path in paths}
    measured: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(rounds):
        for path, worker in workers.items():
            measured[path].append(worker.epoch()[0])
    for worker in workers.values():
        worker.close()
    return measured


def growth(model: str, images: int, batch: int) -> dict[str, Any]:
    """Our path against batch size and number of images, and its memory over many epochs."""
    by_batch, by_images = {}, {}
    for size in (64, 128, 256, 512):
        (rates,) = interleaved(model, ["ours"], 3, size, max(images, size)).values()
        by_batch[str(size)] = median(rates)
    for count in (images // 2, images * 4):
        (rates,) = interleaved(model, ["ours"], 2, batch, count).values()
        by_images[str(count)] = median(rates)
    worker = Worker("ours", model, batch, batch)
    memory = [worker.epoch()[1] for _ in range(EPOCHS_FOR_MEMORY)]
    worker.close()
    return {"images_per_second_by_batch": by_batch, "images_per_second_by_images": by_images, "mib_by_epoch": memory}


def startup_params() -> dict[str, Any]:
    """Those of custom-0 alone, for one epoch of a few steps."""
    from pipeline.config import overrides, params

    tree = params.read().model_dump()
    tree["data"] |= {"train_images": 1000, "val_images": 100, "test_images": 100}
    tree["recipes"]["custom"] |= {"epochs": 1}
    overrides.select_runs(tree, run="", recipe="custom", seed=0)
    return tree


def startup() -> dict[str, float]:
    """Seconds of `dvc repro` until the first step is done and of one with nothing to do; peak memory of a training."""
    from pipeline import workspace
    from pipeline.config import params
    from pipeline.system.file_lock import file_lock

    tree = startup_params()
    copy = workspace.FOLDER / "bench"
    with tempfile.TemporaryDirectory() as store, file_lock(copy, f"{copy} is in use by another benchmark"):
        workspace.copy(copy, tree)
        environment = workspace.environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"}

        def repro(target: str) -> float:
            began = time.perf_counter()
            command = [sys.executable, "-m", "dvc", "repro", "-q", *target.split()]
            subprocess.run(command, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        repro("fetch")
        began_ms = time.time() * 1000
        repro("train@custom-0")
        training = json.loads((copy / "results/custom-0/training.json").read_text())
        (epoch,) = training["epochs"]
        to_first = (epoch["ended_ms"] - began_ms) / 1000  # at most: the epoch's 3 steps and its validation are in it
        repro("")
        noop = median(repro("") for _ in range(3))
        workspace.copy(copy, tree | {"data": params.read().data.model_dump()})
        repro("train@custom-0")
        return {
            "seconds_to_first_step": round(to_first, 1),
            "seconds_of_noop_repro": round(noop, 2),
            "peak_mib_of_training": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),  # all images
        }


def matmul_rates() -> dict[str, float]:
    """GFLOP/s of a square matrix product, by precision; the median of five."""
    from pipeline.system.tensorflow_import import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    rates = {}
    for precision in ("float32", "bfloat16"):
        side = tf.cast(tf.random.normal([MATMUL, MATMUL]), precision)
        product = tf.function(lambda a: tf.reduce_sum(tf.cast(tf.matmul(a, a)[:8], tf.float32)))
        product(side).numpy()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            product(side).numpy()
            seconds.append(time.perf_counter() - began)
        rates[precision] = round(2 * MATMUL**3 / median(seconds) / 1e9, 1)
    return rates


def multiply_adds(model: str) -> int:
    """Of one image, forward."""
    from pipeline import models
    from pipeline.evaluation import geometry

    total = geometry.total_multiply_adds(geometry.geometry(models.build(model)))
    assert total is not None, f"{model} has a layer without a rule in geometry.py"
    return total


def machine() -> dict[str, Any]:
    """What this was measured on."""
    from pipeline.system import device
    from pipeline.system.versions import versions

    return {"processor": device.processor(), "threads": device.threads(), "versions": versions()}


def table(model: str, results: dict[str, Any]) -> Table:
    """A path a row: images/s with their range, and how many times as fast ours is."""
    shown = Table(title=model, title_justify="left")
    for heading in ("path", "images/s", "lowest to highest", "ours / this"):
        shown.add_column(heading, justify="left" if heading == "path" else "right")
    for path, result in results.items():
        rounds = result.get("rounds", [])
        extent = f"{min(rounds):,.0f} to {max(rounds):,.0f}" if rounds else "matmul rate / work"
        ratio = results["ours"]["images_per_second"] / result["images_per_second"]
        shown.add_row(path, f"{result['images_per_second']:,.0f}", extent, f"{ratio:.2f}")
    return shown


if __name__ == "__main__":
    main()
