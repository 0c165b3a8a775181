"""The training loop: many steps in one graph call, data on the device, nothing written and nothing read.

Everything random is a function of (seed, epoch, step, place). What a training holds between two epochs is in `State`.
"""

import hashlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipeline.training import cifar10, dataset, layers, optimizers

if TYPE_CHECKING:
    from pipeline.config.params import Recipe

VALIDATION_BATCH = 500  # images


class Epoch(NamedTuple):
    """What an epoch brought: fractions 0..1, cross-entropy in nats, the rate of its last step, speed of training."""

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    images_per_second: float

    def figures(self) -> dict[str, float]:
        """All but the speed: equal for equal weights."""
        return {name: value for name, value in self._asdict().items() if name != "images_per_second"}


class State(NamedTuple):
    """What a training holds after an epoch: with it, it goes on as if it had never stopped.

    Attributes:
        epoch: the last finished one.
        values: of weights, optimizer and moving averages, in the order that `train` makes them in.
    """

    epoch: int
    values: list[np.ndarray]


def train(
    model: keras.Model,
    recipe: "Recipe",
    seed: int,
    train_split: dataset.Split,
    val_split: dataset.Split,
    policy: str = "float32",
    strategy: tf.distribute.Strategy | None = None,
    xla: bool = False,
    resume: State | None = None,
    on_steps: Callable[[int, int, int, float], None] = lambda epoch, done, steps, loss: None,
    on_epoch: Callable[[Epoch, State], None] = lambda epoch, state: None,
) -> None:
    """Trains `model`: its weights are the result.

    An epoch is `len(train_split) // batch_size` full batches of a fresh order; the rest waits for the next epoch.
    Validation is of `model` itself: stock layers, float32, the weights (or their moving average) as they are saved.

    Args:
        model: stock Keras layers, uint8 images in, probabilities out.
        recipe: how to train; `batch_size` is that of all replicas together.
        seed: of initial weights, order, augmentation and dropout.
        train_split: what to learn from.
        val_split: what to measure on.
        policy: Keras dtype policy.
        strategy: replicas; None: one device.
        xla: compile steps with XLA.
        resume: the state that an earlier call of the same arguments gave `on_epoch`; its epoch is not repeated.
        on_steps: called a few times an epoch with epoch, steps done, steps in all, mean loss so far.
        on_epoch: called after each epoch, when `model` holds its weights, with what `resume` takes.

    Raises:
        FloatingPointError: the loss is not finite.
        UntrainableError: the batch cannot be shared equally among the replicas, or as `layers.twin`.
    """
    strategy = strategy or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise layers.UntrainableError(
            f"batch_size {recipe.batch_size} cannot be shared equally among {replicas} devices"
        )
    steps = len(train_split.labels) // recipe.batch_size
    with strategy.scope():
        fast = layers.twin(model, seed, policy)
        schedule = optimizers.Schedule(
            recipe.schedule, recipe.learning_rate, steps * recipe.epochs, recipe.warmup_fraction
        )
        optimizer = optimizers.make_optimizer(recipe, schedule, policy, fast)
        averages = [tf.Variable(weight.value) for weight in fast.weights] if recipe.ema_decay else []
    variables = [*fast.weights, *optimizer.variables, *averages]
    if resume:
        for variable, value in zip(variables, resume.values, strict=True):
            variable.assign(value)
    layers.copy_weights(averages or fast.weights, model)
    run_steps = graph_of_steps(fast, optimizer, averages, recipe, seed, train_split, strategy, xla)
    validate = _graph_of_validation(model, val_split)
    chunk = max(1, steps // 20)  # steps a call: a few hundred milliseconds to seconds between two reports
    for epoch in range(resume.epoch + 1 if resume else 1, recipe.epochs + 1):
        order = tf.constant(dataset.permutation(seed, epoch, len(train_split.labels)))
        loss_sum = correct = 0.0
        began = time.monotonic()
        for start in range(0, steps, chunk):
            done = min(start + chunk, steps)
            losses, hits = run_steps(order, tf.constant(epoch), tf.constant(start), tf.constant(done))
            loss_sum, correct = loss_sum + float(losses), correct + float(hits)
            if not math.isfinite(loss_sum):
                raise FloatingPointError(f"the loss is {loss_sum} in epoch {epoch}, steps {start + 1} to {done}")
            on_steps(epoch, done, steps, loss_sum / done)
        seen = steps * recipe.batch_size
        speed = seen / (time.monotonic() - began)
        layers.copy_weights(averages or fast.weights, model)
        val_loss, val_accuracy = (float(value) for value in validate())
        if not math.isfinite(val_loss):
            raise FloatingPointError(f"the validation loss is {val_loss} after epoch {epoch}")
        rate = float(schedule(steps * epoch - 1))
        on_epoch(
            Epoch(epoch, loss_sum / steps, correct / seen, val_loss, val_accuracy, rate, speed),
            State(epoch, [np.asarray(variable) for variable in variables]),
        )


def graph_of_steps(fast, optimizer, averages, recipe, seed, train_split, strategy, xla=False) -> Callable:
    """A graph function of (order, epoch, first step, last step + 1): sum of losses, number of correct answers."""
    replicas = strategy.num_replicas_in_sync
    share = recipe.batch_size // replicas
    steps = len(train_split.labels) // recipe.batch_size

    devices = strategy.extended.worker_devices if replicas > 1 else [None]

    def on_every_device(values: np.ndarray):
        def on_device(context):
            with tf.device(devices[context.replica_id_in_sync_group]):
                return tf.constant(values)

        return strategy.experimental_distribute_values_from_function(on_device)

    images = on_every_device(train_split.images.reshape(len(train_split.images), -1))
    labels = on_every_device(train_split.labels)

    def gradients(images, labels, order: tf.Tensor, epoch: tf.Tensor, step_in_epoch: tf.Tensor, replica: tf.Tensor):
        places = tf.slice(order, [step_in_epoch * recipe.batch_size + replica * share], [share])
        # Seeds are pairs: places within a step are told apart by adding to both (layers.py, dataset.py).
        count = tf.cast((epoch - 1) * steps + step_in_epoch, tf.int64) * replicas + tf.cast(replica, tf.int64)
        noise = tf.stack([tf.constant(seed, tf.int64), count * 4096])
        batch = tf.reshape(tf.gather(images, places), [share, *cifar10.IMAGE_SHAPE])
        batch = dataset.augment(batch, places, epoch, noise + 2048, recipe.flip, recipe.crop_pixels)
        answers = tf.gather(labels, places)
        targets = tf.one_hot(answers, cifar10.NUM_CLASSES)
        targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / cifar10.NUM_CLASSES
        with tf.GradientTape() as tape, layers.noise(noise):
            logits = fast(batch, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses) / replicas  # the optimizer adds up what the replicas bring
            scaled = optimizer.scale_loss(loss)
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == answers, tf.float32))
        return loss, hits, tape.gradient(scaled, fast.trainable_variables)

    # XLA cannot hold what replicas tell each other, which is the optimizer's part, and all of it is elementwise.
    compiled = tf.function(gradients, jit_compile=True) if xla else gradients

    def step(images, labels, order: tf.Tensor, epoch: tf.Tensor, step_in_epoch: tf.Tensor):
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        loss, hits, slopes = compiled(images, labels, order, epoch, step_in_epoch, replica)
        optimizer.apply(slopes, fast.trainable_variables)
        return loss, hits

    @tf.function
    def run_steps(order: tf.Tensor, epoch: tf.Tensor, start: tf.Tensor, stop: tf.Tensor):
        loss_sum, correct = tf.constant(0.0), tf.constant(0.0)
        for step_in_epoch in tf.range(start, stop):
            loss, hits = strategy.run(step, (images, labels, order, epoch, step_in_epoch))
            loss_sum += strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
            correct += strategy.reduce(tf.distribute.ReduceOp.SUM, hits, axis=None)
            for average, weight in zip(averages, fast.weights, strict=False):
                average.assign(average * recipe.ema_decay + weight.value * (1 - recipe.ema_decay))
        return loss_sum, correct

    return run_steps


def _graph_of_validation(model: keras.Model, split: dataset.Split) -> Callable:
    """A graph function of nothing: mean loss and accuracy of `model` on the split."""
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    count = len(split.labels)

    @tf.function
    def validate():
        loss_sum, correct = tf.constant(0.0), tf.constant(0.0)
        for start in tf.range(0, count, VALIDATION_BATCH):
            answers = labels[start : start + VALIDATION_BATCH]
            chances = model(images[start : start + VALIDATION_BATCH], training=False)
            loss_sum += tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(answers, chances))
            correct += tf.reduce_sum(tf.cast(tf.argmax(chances, 1, tf.int32) == answers, tf.float32))
        return loss_sum / count, correct / count

    return validate


def digest(model: keras.Model) -> str:
    """A short digest of all weights."""
    sha = hashlib.sha256()
    for weight in model.weights:
        sha.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return sha.hexdigest()[:16]
