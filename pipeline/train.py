"""Trains one run of params.yaml: `python -m pipeline.train RUN`. Reads, wires, records; training/loop.py loops."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline import splits, tracking
from pipeline.config import params
from pipeline.records import checkpoint, fingerprint, keras_file, record
from pipeline.system import command, provenance
from pipeline.system.command import PipelineError, RecipeError
from pipeline.system.dvc_parent import end_with_dvc
from pipeline.system.file_lock import file_lock
from pipeline.system.tensorflow_import import import_tensorflow
from pipeline.system.versions import versions

if TYPE_CHECKING:
    import keras
    import numpy as np

    from pipeline.system.device import Device
    from pipeline.system.progress import ShownEpochs
    from pipeline.training import loop
    from pipeline.training.dataset import Split

CODE = ("commit", "dirty")  # which code a record is of; before its first epoch ends, that may change
TIMEOUT = 60.0  # seconds, for a training process to end whose DVC is gone


def main() -> None:
    """Trains the run named on the command line and leaves its record in `results/<run>/`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.train", description=__doc__)
    parser.add_argument("run", help="a run of params.yaml")
    run = parser.parse_args().run
    config = params.read()
    config.check_run(run)
    recipe = config.recipe_of(run)
    tracking.check()

    if warning := provenance.read().warning():
        print(f"warning: {warning}", file=sys.stderr)
    # TensorFlow takes seconds to import: a typo in params.yaml has been answered by now.
    end_with_dvc()
    import_tensorflow()
    from pipeline.system import device

    machine = device.resolve(config.train.device, recipe.precision, config.train.xla)
    with locked(run, TIMEOUT):  # by one, maybe, whose DVC was killed
        train(run, config, machine)


def locked(run: str, timeout: float = 0.0) -> AbstractContextManager[None]:
    """Keeps other processes from training a run. Raises BusyError if one still does after so many seconds."""
    busy = f"{run} is being trained by another process; wait for it or end it"
    return file_lock(record.CHECKPOINTS / run, busy, timeout)


def train(run: str, config: params.Params, machine: "Device") -> None:
    """Trains a run, resuming after its last finished epoch, and leaves its record and its MLflow run, however it ends.

    Raises:
        PipelineError: the data is missing or damaged, the model cannot be trained, the loss is not finite, or the
            results cannot be written.
    """
    from pipeline.system.progress import TrainingProgress
    from pipeline.training import loop

    prepared = prepare(run, config, machine)
    log, found = begin_or_resume(run, config, prepared.fingerprint, code_origin() | prepared.environment)
    live = tracking.Live(log, {"geometry.json": prepared.layers})
    progress = TrainingProgress(
        prepared.title + (f"; resumes after epoch {found.epoch}" if found else ""), config.recipe_of(run).epochs
    )
    record_epoch = EpochRecorder(log, prepared.fingerprint, progress, live)
    with recorded_end(log, live), progress:
        compute(
            prepared,
            resume=loop.State(found.epoch, found.values) if found else None,
            on_steps=progress.steps,
            on_epoch=lambda epoch, state: record_epoch(
                epoch.metrics(), epoch.images_per_second, loop.digest(prepared.model), state.values
            ),
        )
        with one_line_errors(run, config.runs[run].recipe):
            keras_file.save(prepared.model, log.model_file)
    checkpoint.clear(record.CHECKPOINTS / run)


class Prepared(NamedTuple):
    """A training run before its first step.

    Attributes:
        run: its name.
        config: the whole of params.yaml.
        machine: what it is computed on.
        model: with its initial weights.
        train_split: the images to learn from.
        val_split: the images to validate on.
        teacher: the model to imitate, or None.
        fingerprint: all that its weights depend on.
        environment: what its record says of data, device and versions.
        layers: geometry.json.
        title: what it is, for a person.
    """

    run: str
    config: params.Params
    machine: "Device"
    model: "keras.Model"
    train_split: "Split"
    val_split: "Split"
    teacher: "keras.Model | None"
    fingerprint: dict[str, Any]
    environment: dict[str, Any]
    layers: str
    title: str


def prepare(run: str, config: params.Params, machine: "Device") -> Prepared:
    """Reads the data and builds the model. Writes nothing. Raises PipelineError as `train` does."""
    from pipeline import models
    from pipeline.evaluation import geometry
    from pipeline.training.trainable import check_trainable

    recipe = config.recipe_of(run)
    train_split, val_split = splits.read_train_val(config.data)
    model = models.build(recipe.model, config.runs[run].seed)
    with one_line_errors(run, config.runs[run].recipe):
        check_trainable(model)
    teacher, teacher_tags = read_teacher(config.teacher_of(run), config.data)
    origin = {"data_hash": fingerprint.hash_data(train_split, val_split), **teacher_tags}
    return Prepared(
        run=run,
        config=config,
        machine=machine,
        model=model,
        train_split=train_split,
        val_split=val_split,
        teacher=teacher,
        fingerprint=fingerprint.fingerprint(config, run, machine, origin),
        environment=environment(machine, origin),
        layers=json.dumps(geometry.as_rows(geometry.geometry(model)), indent=1),
        title=f"{run}: {model.count_params():,} parameters, {command.counted(recipe.epochs, 'epoch')} of "
        f"{len(train_split.labels):,} images, {machine.name} ({machine.threads} threads), {machine.precision}",
    )


def compute(
    prepared: Prepared,
    resume: "loop.State | None",
    on_steps: Callable[[int, int, int, float], None],
    on_epoch: Callable[["loop.Epoch", "loop.State"], None],
) -> None:
    """Trains the model in place; the arguments are those of `loop.train`. Writes nothing. Raises as `train` does."""
    from pipeline.training import loop

    run, config, machine = prepared.run, prepared.config, prepared.machine
    with one_line_errors(run, config.runs[run].recipe):
        loop.train(
            prepared.model,
            config.recipe_of(run),
            config.runs[run].seed,
            prepared.train_split,
            prepared.val_split,
            teacher=prepared.teacher,
            policy=machine.policy,
            strategy=machine.strategy,
            xla=machine.xla,
            resume=resume,
            on_steps=on_steps,
            on_epoch=on_epoch,
        )


def read_teacher(teacher: str | None, data: params.Data) -> tuple["keras.Model | None", dict[str, str]]:
    """The trained model of the run that is the teacher, and what names it: its record and its weights.

    Args:
        teacher: the run.
        data: the splits of its student.

    Raises:
        PipelineError: it is not trained, or on images that its student is validated on; or it is damaged.
    """
    from pipeline.evaluation import inference
    from pipeline.training import loop

    if teacher is None:
        return None, {}
    log = record.load_finished(teacher)
    seed, val_images = (int(log.training.params[key]) for key in ("split_seed", "val_images"))
    if seed != data.split_seed or val_images < data.val_images:  # else its validation split contains the student's
        raise PipelineError(
            f"the teacher {teacher} was trained on images that are validation images now (split_seed {seed}, "
            f"val_images {val_images}; now {data.split_seed}, {data.val_images}): train it again with "
            f"`dvc repro train@{teacher}`"
        )
    model = inference.load_model(log.model_file, teacher, log.training.model)
    return model, {"teacher_record_id": log.id, "teacher_weights_digest": loop.digest(model)}


def begin_or_resume(
    run: str, config: params.Params, mark: dict[str, Any], environment: dict[str, Any]
) -> tuple[record.Record, checkpoint.Checkpoint | None]:
    """The run's record and the checkpoint to resume from; a new record and None if no epoch has been finished."""
    found, notes = checkpoint.newest(record.CHECKPOINTS / run, mark)
    if found and found.epoch and found.training.environment.get("dirty") and not environment.get("dirty"):
        notes.append(
            f"{run} was begun with uncommitted changes, and its record will say so; "
            f"to begin anew, remove {record.CHECKPOINTS / run}"
        )
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if found and (found.epoch or all(found.training.environment.get(key) == environment.get(key) for key in CODE)):
        log = record.resume(run, found.training, found.history)
        return log, found if found.epoch else None
    log = record.begin(run, config.runs[run].recipe, config.flat(run), environment)
    write_checkpoint(log, mark, [])  # killed before its first epoch ends, it resumes in the same MLflow run
    return log, None


def write_checkpoint(log: record.Record, mark: dict[str, Any], values: list) -> None:
    """Writes the record so far and a checkpoint of it. If the disk is full, warns and continues without them."""
    try:
        log.save_training()
        snapshot = checkpoint.Checkpoint(mark, log.training, log.history, values)
        checkpoint.write(record.CHECKPOINTS / log.run, snapshot)
    except OSError as error:
        print(f"warning: epoch {len(log.history)} is not on disk ({error}); training continues", file=sys.stderr)


class EpochRecorder:
    """Takes each finished epoch to the record on disk, a checkpoint, the terminal and MLflow."""

    def __init__(self, log: record.Record, mark: dict[str, Any], progress: "ShownEpochs", live: tracking.Live):
        self._log, self._mark, self._progress, self._live = log, mark, progress, live
        self._epoch_began = time.monotonic()

    def __call__(
        self, metrics: dict[str, float], images_per_second: float, weights_digest: str, values: list["np.ndarray"]
    ) -> None:
        """Records an epoch: its metrics, speed and weights, and the arrays of `loop.State`."""
        seconds = time.monotonic() - self._epoch_began
        self._epoch_began = time.monotonic()
        self._log.add_epoch(metrics, seconds, images_per_second, weights_digest)
        write_checkpoint(self._log, self._mark, values)
        self._progress.epoch(metrics, seconds, images_per_second)
        self._live.update(self._log)


class StoppedError(Exception):
    """Ends a training run on purpose; its record says `killed` and the reason."""


@contextlib.contextmanager
def recorded_end(log: record.Record, live: tracking.Live) -> Iterator[None]:
    """Records how the training run ended, and why if it did not finish, on disk and in MLflow."""
    status: Literal["finished", "failed", "killed"] = "failed"
    reason = ""
    try:
        yield
        status = "finished"
    except (KeyboardInterrupt, SystemExit, StoppedError) as error:
        status, reason = "killed", reason_of(error)
        raise
    except BaseException as error:
        reason = reason_of(error)
        raise
    finally:
        try:
            log.end(status, reason)
        except OSError as error:  # the disk is full: MLflow must not call finished what is not on disk
            log.training.status, log.training.end_reason = "failed", str(error)
            raise PipelineError(f"{log.run}: {error}; {command.resuming()}") from None
        finally:
            live.close(log)


def reason_of(error: BaseException) -> str:
    """Why a training run ended, as its record says it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    if isinstance(error, SystemExit):  # what SIGTERM becomes
        return "ended by SIGTERM"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def one_line_errors(run: str, recipe: str) -> Iterator[None]:
    """Turns what may end a training run into a PipelineError that names the fix, a RecipeError where it is a value."""
    import tensorflow as tf

    from pipeline.training.training_clone import UntrainableError

    try:
        yield
    except FloatingPointError as error:
        raise RecipeError(f"{run}: {error}; lower recipes.{recipe}.learning_rate") from None
    except UntrainableError as error:
        raise RecipeError(f"{run}: {error}") from error
    except tf.errors.OpError as error:  # mostly: no memory left, or XLA cannot compile
        reason = " ".join(error.message.split())[:300]
        kind = RecipeError if isinstance(error, tf.errors.ResourceExhaustedError) else PipelineError
        raise kind(f"{run}: TensorFlow: {reason}; lower batch_size, or try train.xla: off") from None
    except OSError as error:
        raise PipelineError(f"{run}: {error}; {command.resuming()}") from None


def environment(machine: "Device", origin: dict[str, str]) -> dict[str, Any]:
    """What a training run ran on: never equal between machines, so kept apart from history and metrics.

    Args:
        machine: what it is computed on.
        origin: digests of data and teacher.
    """
    return {**origin, **machine.fingerprint(), **versions()}


def code_origin() -> dict[str, Any]:
    """Which commit and which of DVC's experiments a training run comes from."""
    experiment = {"dvc_experiment": os.environ["DVC_EXP_NAME"]} if os.environ.get("DVC_EXP_NAME") else {}
    return {**provenance.read().as_tags(), **experiment}


if __name__ == "__main__":
    command.run(main)
    # The checkpoints are gone and DVC knows nothing yet: whoever killed the half second that Python and TensorFlow take
    # to end would have to train again.
    sys.stdout.flush()
    os._exit(0)
