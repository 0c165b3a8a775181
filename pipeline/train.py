"""Trains one run of params.yaml: `python -m pipeline.train RUN`. Reads, wires, writes; the loop is in loop.py."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import command, params, record, tracking
from pipeline.command import PipelineError

if TYPE_CHECKING:
    import keras

    from pipeline.dataset import Split
    from pipeline.device import Device

CHECKPOINTS = Path("checkpoints")
OUTPUTS = (":(top,exclude)results", ":(top,exclude)report", ":(top,exclude)dvc.lock")


def main() -> None:
    """Trains the run named on the command line and leaves its record in `results/<run>/`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.train", description=__doc__)
    parser.add_argument("run", help="a run of params.yaml")
    run = parser.parse_args().run
    settings = params.read()
    settings.check_run(run)
    recipe = settings.recipe_of(run)

    # TensorFlow takes seconds to import: a typo in params.yaml has been answered by now.
    command.import_tensorflow()
    from pipeline import device

    with command.alone(CHECKPOINTS / run, f"{run} is being trained by another process; wait for it or end it"):
        train(run, settings, device.resolve(settings.train.device, recipe.precision))


def train(run: str, settings: params.Params, machine: "Device") -> None:
    """Trains a run and leaves its record, and its MLflow run, ended whatever happens.

    Raises:
        PipelineError: the data is missing or damaged, the model cannot be trained, or the loss is not finite.
    """
    from pipeline import dataset, geometry, layers, loop, models
    from pipeline.progress import TrainingProgress

    recipe, seed = settings.recipe_of(run), settings.runs[run].seed
    try:
        train_split, val_split = dataset.read_train_val(
            record.DATA, **settings.data.model_dump(exclude={"test_images"})
        )
    except (OSError, ValueError) as error:
        raise PipelineError(f"{error}; `dvc repro fetch` fetches the data") from None
    model = models.build(recipe.model)
    log = record.begin(
        run,
        settings.runs[run].recipe,
        settings.flat(run),
        settings.data.comparable,
        environment(machine, data_hash(train_split, val_split)),
    )
    mlflow_run = tracking.mirror(log, live=True)
    tracking.log_text(mlflow_run, json.dumps(geometry.as_rows(geometry.geometry(model)), indent=1), "geometry.json")
    system_metrics = tracking.SystemMetrics()
    system_metrics.start(mlflow_run)
    progress = TrainingProgress(
        f"{run}: {model.count_params():,} parameters, {recipe.epochs} epochs of {len(train_split.labels):,} images, "
        f"{machine.name} ({machine.threads} threads), {machine.precision}",
        recipe.epochs,
    )
    epoch_began = time.monotonic()

    def on_epoch(epoch: loop.Epoch) -> None:
        nonlocal epoch_began
        seconds = time.monotonic() - epoch_began
        log.add_epoch(epoch.figures(), seconds, epoch.images_per_second)
        progress.epoch(epoch.figures(), seconds, epoch.images_per_second)
        tracking.mirror(log, live=True)
        epoch_began = time.monotonic()

    status = "failed"
    try:
        with progress:
            loop.train(
                model, recipe, seed, train_split, val_split, machine.policy, machine.strategy, progress.steps, on_epoch
            )
        save(model, log.model_file)
        status = "finished"
    except FloatingPointError as error:
        raise PipelineError(f"{run}: {error}; lower recipes.{settings.runs[run].recipe}.learning_rate") from None
    except layers.UntrainableError as error:
        raise PipelineError(f"{run}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        system_metrics.stop()
        log.end(status)
        tracking.mirror(log, live=True)


def environment(machine: "Device", data_hash: str) -> dict[str, Any]:
    """What a training ran on and from: never equal between machines, so kept apart from history and metrics."""
    from pipeline import device

    experiment = {"dvc_experiment": os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}
    return {
        **commit(),
        **experiment,
        "data_hash": data_hash,
        "device": machine.name,
        "processor": machine.processor,
        "threads": machine.threads,
        "precision": machine.precision,
        **device.versions(),
    }


def commit() -> dict[str, Any]:
    """The commit that is checked out, and whether tracked files differ from it; `none` outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # What this very pipeline run writes does not make the tree dirty.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *OUTPUTS)
        committed = params.parse_text(git("show", "HEAD:params.yaml"), "params.yaml of HEAD")
        # A copy of the working files has params of its own, which git does not see.
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed) or committed != params.parse("params.yaml")}
    except (OSError, subprocess.CalledProcessError, PipelineError):
        return {"commit": "none", "dirty": True}


def data_hash(*splits: "Split") -> str:
    """Names exactly these images and labels, in this order."""
    sha = hashlib.sha256()
    for split in splits:
        for array in split:
            sha.update(array.tobytes())
    return sha.hexdigest()[:32]


def save(model: "keras.Model", path: Path) -> None:
    """Saves a model whole or not at all, and so that equal weights give equal bytes.

    A `.keras` file is a zip whose metadata and entries carry the time of writing, which is set to a constant.
    """
    import keras

    written, partial = path.with_name(".written.keras"), path.with_name(f".{path.name}.partial")
    keras.saving.save_model(model, written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(partial, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": "1980-01-01@00:00:00"}).encode()
            if name == "config.json":
                content = _with_counted_ids(content)
            target.writestr(zipfile.ZipInfo(name), content)
    written.unlink()
    os.replace(partial, path)


def _with_counted_ids(configuration: bytes) -> bytes:
    """Keras numbers objects that layers share by their address in memory; here they are counted from 0."""
    counted: dict[bytes, int] = {}

    def count(found: re.Match) -> bytes:
        return b'"shared_object_id": %d' % counted.setdefault(found[1], len(counted))

    return re.sub(rb'"shared_object_id": (\d+)', count, configuration)


if __name__ == "__main__":
    command.run(main)
