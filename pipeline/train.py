"""Trains one run of params.yaml: `python -m pipeline.train RUN`. Reads, wires, writes; the loop is in loop.py."""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import tracking
from pipeline.config import params
from pipeline.records import checkpoint, record
from pipeline.system import command
from pipeline.system.command import PipelineError

if TYPE_CHECKING:
    import keras

    from pipeline.system.device import Device
    from pipeline.training.dataset import Split

PATIENCE = 60.0  # seconds, for a training to end whose DVC is gone
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
    command.end_with_dvc()
    command.import_tensorflow()
    from pipeline.system import device

    machine = device.resolve(settings.train.device, recipe.precision, settings.train.xla)
    busy = f"{run} is being trained by another process; wait for it or end it"
    with command.alone(record.CHECKPOINTS / run, busy, PATIENCE):  # it may be one whose DVC was killed
        train(run, settings, machine)


def train(run: str, settings: params.Params, machine: "Device") -> None:
    """Trains a run, from its last finished epoch on, and leaves its record, and its MLflow run, ended whatever happens.

    Raises:
        PipelineError: the data is missing or damaged, the model cannot be trained, the loss is not finite, or the
            results cannot be written.
    """
    import tensorflow as tf

    from pipeline import models
    from pipeline.evaluation import geometry
    from pipeline.system.progress import TrainingProgress
    from pipeline.training import dataset, layers, loop

    recipe, seed = settings.recipe_of(run), settings.runs[run].seed
    try:
        record.check_data()
        train_split, val_split = dataset.read_train_val(
            record.DATA, **settings.data.model_dump(exclude={"test_images"})
        )
    except (OSError, ValueError) as error:
        raise PipelineError(f"{error}; `dvc repro fetch` fetches the data") from None
    model = models.build(recipe.model)
    data = data_hash(train_split, val_split)
    identity = {**settings.flat(run), "data_hash": data, **machine.determines(), **code_hashes(recipe.model)}
    checkpoints = record.CHECKPOINTS / run
    found, notes = checkpoint.newest(checkpoints, identity)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if found:
        log = record.resume(run, found.training, found.history)
    else:
        log = record.begin(
            run,
            settings.runs[run].recipe,
            settings.flat(run),
            settings.data.comparable,
            environment(machine, data),
        )

    def keep(state: loop.State | None) -> None:
        """A full disk is no reason to end: the training is worth more than this epoch's checkpoint."""
        try:
            log.save_training()
            values = state.values if state else []
            checkpoint.write(checkpoints, checkpoint.Checkpoint(identity, log.training, log.history, values))
        except OSError as error:
            print(f"warning: epoch {len(log.history)} is not on disk ({error}); the training goes on", file=sys.stderr)

    if not found:
        keep(None)  # killed before its first epoch ends, it goes on in the same MLflow run
    live = tracking.Live(log, {"geometry.json": json.dumps(geometry.as_rows(geometry.geometry(model)), indent=1)})
    progress = TrainingProgress(
        f"{run}: {model.count_params():,} parameters, {recipe.epochs} epochs of {len(train_split.labels):,} images, "
        f"{machine.name} ({machine.threads} threads), {machine.precision}"
        + (f"; goes on after epoch {found.epoch}" if found and found.epoch else ""),
        recipe.epochs,
    )
    epoch_began = time.monotonic()

    def on_epoch(epoch: loop.Epoch, state: loop.State) -> None:
        nonlocal epoch_began
        seconds = time.monotonic() - epoch_began
        epoch_began = time.monotonic()
        log.add_epoch(epoch.figures(), seconds, epoch.images_per_second)
        keep(state)
        progress.epoch(epoch.figures(), seconds, epoch.images_per_second)
        live.update(log)

    status = "failed"
    try:
        with progress:
            loop.train(
                model,
                recipe,
                seed,
                train_split,
                val_split,
                machine.policy,
                machine.strategy,
                machine.xla,
                loop.State(found.epoch, found.values) if found and found.epoch else None,
                progress.steps,
                on_epoch,
            )
        save(model, log.model_file)
        status = "finished"
    except FloatingPointError as error:
        raise PipelineError(f"{run}: {error}; lower recipes.{settings.runs[run].recipe}.learning_rate") from None
    except layers.UntrainableError as error:
        raise PipelineError(f"{run}: {error}") from None
    except tf.errors.OpError as error:  # mostly: no memory left, or XLA cannot compile
        reason = " ".join(error.message.split())[:300]
        raise PipelineError(f"{run}: TensorFlow: {reason}; lower batch_size, or try train.xla: off") from None
    except OSError as error:
        raise PipelineError(f"{run}: {error}; `dvc repro` goes on after the last finished epoch") from None
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        try:
            log.end(status)
        finally:
            live.close(log)
    checkpoint.clear(checkpoints)


def code_hashes(model: str) -> dict[str, str]:
    """Of the files that change weights, the same that dvc.yaml lists: `code <file>` -> digest."""
    folder = Path(__file__).parent
    files = [*sorted(folder.glob("training/*.py")), folder / "models/__init__.py", folder / f"models/{model}.py"]
    return {f"code {file.relative_to(folder)}": record.sha256(file)[:16] for file in files}


def environment(machine: "Device", data_hash: str) -> dict[str, Any]:
    """What a training ran on and from: never equal between machines, so kept apart from history and metrics."""
    from pipeline.system import device

    experiment = {"dvc_experiment": os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}
    return {
        **commit(),
        **experiment,
        "data_hash": data_hash,
        **machine.determines(),
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
    try:
        keras.saving.save_model(model, written)
        with zipfile.ZipFile(written) as source, zipfile.ZipFile(partial, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name == "metadata.json":
                    content = json.dumps(json.loads(content) | {"date_saved": "1980-01-01@00:00:00"}).encode()
                if name == "config.json":
                    content = _with_counted_ids(content)
                target.writestr(zipfile.ZipInfo(name), content)
        os.replace(partial, path)
    finally:
        written.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def _with_counted_ids(configuration: bytes) -> bytes:
    """Keras numbers objects that layers share by their address in memory; here they are counted from 0."""
    counted: dict[bytes, int] = {}

    def count(found: re.Match) -> bytes:
        return b'"shared_object_id": %d' % counted.setdefault(found[1], len(counted))

    return re.sub(rb'"shared_object_id": (\d+)', count, configuration)


if __name__ == "__main__":
    command.run(main)
    # The checkpoints are gone and DVC knows nothing yet: whoever killed the half second that Python and TensorFlow take
    # to end would have to train again.
    sys.stdout.flush()
    os._exit(0)
