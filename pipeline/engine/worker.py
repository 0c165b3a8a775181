"""What a worker does with a training run, wherever it is: epochs come out of the channel, nothing is written."""

import os
import tempfile
import time
import traceback
from pathlib import Path

from pipeline import train
from pipeline.engine import Begun, Channel, Epoch, Failed, Finished, Job, Steps
from pipeline.records import keras_file
from pipeline.system.command import PipelineError, RecipeError, shortened
from pipeline.system.tensorflow_import import import_tensorflow

STEPS_SECONDS = 1.0  # between two `Steps`: a thousand runs must not flood the driver


def work(job: Job, folder: Path, channel: Channel) -> None:
    """Computes a run.

    Args:
        job: the run.
        folder: where `data/cifar10` is, and the files of the job.
        channel: to the driver.
    """
    try:
        os.chdir(folder)
        _compute(job, channel)
    except PipelineError as error:
        channel.send(Failed(str(error), by_recipe=isinstance(error, RecipeError)))
    except Exception as error:
        reason = f"{job.run}: {type(error).__name__}: {shortened(str(error))}"
        channel.send(Failed(reason, traceback.format_exc(), by_node=isinstance(error, OSError)))


def _compute(job: Job, channel: Channel) -> None:
    import_tensorflow()
    from pipeline.system import device
    from pipeline.training import loop

    recipe = job.config.recipe_of(job.run)
    machine = device.resolve(job.config.train.device, recipe.precision, job.config.train.xla)
    prepared = train.prepare(job.run, job.config, machine)
    channel.send(Begun(prepared.fingerprint, prepared.environment, prepared.layers, prepared.title))
    resume = channel.receive()
    said = 0.0

    def on_steps(epoch: int, done: int, steps: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() >= said + STEPS_SECONDS:
            said = time.monotonic()
            channel.send(Steps(epoch, done, steps, loss))

    def on_epoch(epoch: loop.Epoch, state: loop.State) -> None:
        digest = loop.digest(prepared.model)
        channel.send(Epoch(epoch.metrics(), epoch.images_per_second, digest, state.values))

    state = loop.State(resume.epoch, resume.values) if resume.epoch else None
    train.compute(prepared, state, on_steps, on_epoch)
    with tempfile.TemporaryDirectory(prefix="worker-") as temporary:
        file = Path(temporary) / "model.keras"
        keras_file.save(prepared.model, file)
        channel.send(Finished(file.read_bytes()))
