"""The training loop: many steps in one graph call, with the data on the device. Reads and writes no files.

Every random number is a function of (seed, epoch, step, layer), so `State` is all that a resumed training run needs.
`loss` and `val_loss` are what Keras reports by these names: cross-entropy plus what regularizers and `add_loss` bring.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipeline.training import optimizers
from pipeline.training.augmentation import augment
from pipeline.training.cifar10 import IMAGE_SHAPE
from pipeline.training.dataset import Split, permutation
from pipeline.training.loss import additional_loss, cross_entropy, distillation_loss, logits_of
from pipeline.training.norm_statistics import precise_statistics
from pipeline.training.reproducible import step_seed
from pipeline.training.trainable import check_randomness, one_line
from pipeline.training.training_clone import (
    UntrainableError,
    copy_weights,
    inference_clone,
    softmax_layer,
    training_clone,
)

if TYPE_CHECKING:
    from pipeline.config.params import Recipe

VALIDATION_BATCH_SIZE = 500
REPORTS_PER_EPOCH = 20  # graph calls, each of a few hundred milliseconds to seconds
SEEDS_PER_STEP = 4096  # layers use step seed + 1 to + 2047 (reproducible.py), augmentation + 2048 to + 2050
AUGMENTATION_SEED = 2048


class Epoch(NamedTuple):
    """Metrics of one epoch: accuracies 0..1, losses in nats, the learning rate of its last step, training speed."""

    epoch: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    images_per_second: float
    teacher_agreement: float | None = None  # share of training images that student and teacher put into one class

    def metrics(self) -> dict[str, float]:
        """All but the speed: equal for equal weights."""
        return {key: it for key, it in self._asdict().items() if key != "images_per_second" and it is not None}


class State(NamedTuple):
    """Everything needed to resume after an epoch, bit for bit.

    Attributes:
        epoch: the last finished one.
        values: weights, optimizer variables and averaged weights, as in `TrainingRun.variables`.
    """

    epoch: int
    values: list[np.ndarray]


@dataclass(frozen=True)
class Teacher:
    """A trained model in inference mode and the precision of the training."""

    model: keras.Model
    from_logits: bool  # whether `model` returns logits, not probabilities

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """float32 [n, 10] of uint8 images [n, 32, 32, 3]."""
        return tf.stop_gradient(logits_of(self.model(images, training=False), self.from_logits))


@dataclass(frozen=True)
class TrainingRun:
    """A model in training and all that its steps need."""

    train_model: keras.Model
    from_logits: bool  # whether `train_model` returns logits, not probabilities
    optimizer: keras.optimizers.Optimizer
    schedule: optimizers.Schedule
    ema_weights: list[tf.Variable]  # averages of the weights; empty without `ema_decay`
    recipe: "Recipe"
    seed: int
    train_split: Split
    strategy: tf.distribute.Strategy
    teacher: "Teacher | None" = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return len(self.train_split.labels) // self.recipe.batch_size

    @property
    def replicas(self) -> int:
        """Devices that share each batch."""
        return self.strategy.num_replicas_in_sync

    @property
    def per_replica_batch_size(self) -> int:
        """Images of a step on one device."""
        return self.recipe.batch_size // self.replicas

    @property
    def weights(self) -> list:
        """The weights that are validated and saved, in the order of `train_model.weights`."""
        return self.ema_weights or self.train_model.weights

    @property
    def variables(self) -> list:
        """All that changes while training."""
        return [*self.train_model.weights, *self.optimizer.variables, *self.ema_weights]


def train(
    model: keras.Model,
    recipe: "Recipe",
    seed: int,
    train_split: Split,
    val_split: Split,
    *,
    teacher: keras.Model | None = None,
    policy: str = "float32",
    strategy: tf.distribute.Strategy | None = None,
    xla: bool = False,
    resume: State | None = None,
    on_steps: Callable[[int, int, int, float], None] = lambda epoch, done, steps, loss: None,
    on_epoch: Callable[[Epoch, State], None] = lambda epoch, state: None,
) -> None:
    """Trains `model` in place.

    Each epoch reshuffles and drops the partial last batch. Validation uses `model` itself: stock layers in float32 with
    the weights (or their moving average) and the statistics of batch normalization as they are saved.

    Args:
        model: from uint8 images (cast, not scaled, if its input has another dtype) to probabilities. Weights that are
            not as their initializers left them are kept; see `initial_weights`.
        recipe: how to train; its `batch_size` is that of all replicas together.
        seed: of initial weights, shuffling, augmentation and dropout.
        train_split: the images to learn from.
        val_split: the images to validate on.
        teacher: a trained model; sees the same augmented images, and `recipe.teacher_weight` of the loss is the
            distance of the student's probabilities from its own. None: the labels alone.
        policy: Keras dtype policy.
        strategy: replicas; None trains on one device.
        xla: whether to compile steps with XLA.
        resume: a state that `on_epoch` received from a call with the same arguments; training continues after it.
        on_steps: called several times an epoch with the epoch, steps done, steps per epoch and mean loss so far.
        on_epoch: called after each epoch, when `model` holds its weights, with metrics and what `resume` takes.

    Raises:
        FloatingPointError: the loss is not finite.
        UntrainableError: the batch cannot be divided among the replicas, or a step cannot be computed or repeated.
    """
    run = prepare(model, recipe, seed, train_split, policy, strategy or tf.distribute.get_strategy(), teacher)
    if resume:
        for variable, value in zip(run.variables, resume.values, strict=True):
            variable.assign(value)
    run_steps, validate = graph_of_steps(run, xla), _graph_of_validation(model, val_split)
    is_precise = recipe.norm_statistics == "precise"
    update_statistics = precise_statistics(model, train_split.images) if is_precise else lambda: None

    def update_model() -> None:
        copy_weights(run.weights, model)
        update_statistics()

    update_model()  # a training run may resume after its last epoch
    for epoch in range(resume.epoch + 1 if resume else 1, recipe.epochs + 1):
        loss, accuracy, agreement, images_per_second = _train_one_epoch(run, epoch, run_steps, on_steps)
        update_model()
        val_loss, val_accuracy = (float(value) for value in validate())
        if not math.isfinite(val_loss):
            raise FloatingPointError(f"the validation loss is {val_loss} after epoch {epoch}")
        learning_rate = float(run.schedule(run.steps_per_epoch * epoch - 1))
        on_epoch(
            Epoch(epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, images_per_second, agreement),
            State(epoch, [np.asarray(variable) for variable in run.variables]),
        )


def prepare(
    model: keras.Model,
    recipe: "Recipe",
    seed: int,
    train_split: Split,
    policy: str,
    strategy: tf.distribute.Strategy,
    teacher: keras.Model | None = None,
) -> TrainingRun:
    """A training run of `model` before its first step. Raises UntrainableError as `train` does."""
    if recipe.batch_size % strategy.num_replicas_in_sync:
        raise UntrainableError(
            f"batch_size {recipe.batch_size} cannot be divided among {strategy.num_replicas_in_sync} devices"
        )
    steps = recipe.epochs * (len(train_split.labels) // recipe.batch_size)
    with strategy.scope():
        train_model = training_clone(model, seed, policy)
        schedule = optimizers.Schedule(recipe.schedule, recipe.learning_rate, steps, recipe.warmup_fraction)
        optimizer = optimizers.make_optimizer(recipe, schedule, policy, train_model)
        ema_weights = [tf.Variable(weight.value) for weight in train_model.weights] if recipe.ema_decay else []
        prepared = Teacher(inference_clone(teacher, policy), softmax_layer(teacher) is not None) if teacher else None
    from_logits = softmax_layer(model) is not None
    return TrainingRun(
        train_model, from_logits, optimizer, schedule, ema_weights, recipe, seed, train_split, strategy, prepared
    )


def _train_one_epoch(
    run: TrainingRun, epoch: int, run_steps: Callable, on_steps: Callable[[int, int, int, float], None]
) -> tuple[float, float, float | None, float]:
    """Mean training loss, accuracy, agreement with the teacher and images per second of an epoch.

    Raises FloatingPointError as `train` does.
    """
    steps, batch_size = run.steps_per_epoch, run.recipe.batch_size
    indices = tf.constant(permutation(run.seed, epoch, len(run.train_split.labels)))
    steps_per_call = max(1, steps // REPORTS_PER_EPOCH)
    loss_sum = num_correct = num_agreeing = 0.0
    began = time.monotonic()
    for start in range(0, steps, steps_per_call):
        stop = min(start + steps_per_call, steps)
        sums = run_steps(indices, tf.constant(epoch), tf.constant(start), tf.constant(stop))
        loss_sum, num_correct = loss_sum + float(sums[0]), num_correct + float(sums[1])
        num_agreeing += float(sums[2])
        if not math.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {loss_sum} in epoch {epoch}, steps {start + 1} to {stop}")
        on_steps(epoch, stop, steps, loss_sum / stop)
    images = steps * batch_size
    agreement = num_agreeing / images if run.teacher else None
    return loss_sum / steps, num_correct / images, agreement, images / (time.monotonic() - began)


def graph_of_steps(run: TrainingRun, xla: bool = False) -> Callable:
    """A graph function that trains steps `start` to `stop - 1` of an epoch.

    Returns:
        A function of (permutation of the training split, epoch, start, stop), all int32, that returns the sum of the
        steps' losses, the number of correctly classified images, and the number of those in the teacher's class.
    """
    recipe, model, optimizer, strategy = run.recipe, run.train_model, run.optimizer, run.strategy
    teacher, teacher_weight = run.teacher, recipe.teacher_weight
    images = _on_every_device(strategy, run.train_split.images.reshape(len(run.train_split.images), -1))
    labels = _on_every_device(strategy, run.train_split.labels)

    def forward_and_backward(images, labels, indices, epoch, step, replica):
        start = step * recipe.batch_size + replica * run.per_replica_batch_size
        indices = tf.slice(indices, [start], [run.per_replica_batch_size])
        count = tf.cast((epoch - 1) * run.steps_per_epoch + step, tf.int64) * run.replicas + tf.cast(replica, tf.int64)
        seed = tf.stack([tf.constant(run.seed, tf.int64), count * SEEDS_PER_STEP])
        batch = tf.reshape(tf.gather(images, indices), [run.per_replica_batch_size, *IMAGE_SHAPE])
        batch = augment(batch, indices, epoch, seed + AUGMENTATION_SEED, recipe)
        batch_labels = tf.gather(labels, indices)
        teacher_logits = teacher.logits(batch) if teacher else None
        with tf.GradientTape() as tape, step_seed(seed):
            outputs = model(batch, training=True)
            losses = cross_entropy(batch_labels, outputs, recipe.label_smoothing, run.from_logits)
            if teacher:
                imitation = distillation_loss(teacher_logits, logits_of(outputs, run.from_logits), recipe.temperature)
                losses = (1 - teacher_weight) * losses + teacher_weight * imitation
            loss = (tf.reduce_mean(losses) + additional_loss(model)) / run.replicas  # the optimizer sums over replicas
            scaled_loss = optimizer.scale_loss(loss)
        classes = tf.argmax(outputs, 1, tf.int32)
        num_correct = tf.reduce_sum(tf.cast(classes == batch_labels, tf.float32))
        num_agreeing = tf.constant(0.0)
        if teacher:
            num_agreeing = tf.reduce_sum(tf.cast(classes == tf.argmax(teacher_logits, 1, tf.int32), tf.float32))
        gradients = tape.gradient(scaled_loss, model.trainable_variables)
        # Those of embeddings are sparse, which Muon does not take.
        gradients = [None if grad is None else tf.convert_to_tensor(grad) for grad in gradients]
        return (loss, num_correct, num_agreeing), gradients

    # XLA cannot compile communication between replicas, which is the optimizer's part: so that stays out.
    compiled = tf.function(forward_and_backward, jit_compile=True, autograph=False) if xla else forward_and_backward

    def train_step(images, labels, indices, epoch, step):
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
        sums, gradients = compiled(images, labels, indices, epoch, step, replica)
        optimizer.apply(gradients, model.trainable_variables)
        return sums

    # AutoGraph takes seconds to convert a model's code, and leaves files in the temporary folder. Keras's `fit` goes
    # without it too.
    @tf.function(autograph=False)
    def run_steps(indices: tf.Tensor, epoch: tf.Tensor, start: tf.Tensor, stop: tf.Tensor):
        def one_step(step, *totals):
            sums = strategy.run(train_step, (images, labels, indices, epoch, step))
            reduced = [strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in sums]
            for average, weight in zip(run.ema_weights, model.weights, strict=False):
                if average.dtype.is_floating:
                    average.assign(average * recipe.ema_decay + weight.value * (1 - recipe.ema_decay))
                else:  # a counter
                    average.assign(weight.value)
            return step + 1, *(total + value for total, value in zip(totals, reduced, strict=True))

        nothing = tf.constant(0.0)
        return tf.while_loop(lambda step, *_: step < stop, one_step, (start, nothing, nothing, nothing))[1:]

    # Traced before the first step, so that what the user's layers raise does not end a run half-way.
    scalar = tf.TensorSpec([], tf.int32)
    try:
        traced = run_steps.get_concrete_function(tf.TensorSpec([len(run.train_split.labels)], tf.int32), *[scalar] * 3)
    except Exception as error:
        raise UntrainableError(f"a training step cannot be computed: {one_line(error)}") from error
    check_randomness(traced.graph)
    return run_steps


def _on_every_device(strategy: tf.distribute.Strategy, values: np.ndarray) -> Any:
    """The same values in the memory of each replica's device."""
    devices = strategy.extended.worker_devices if strategy.num_replicas_in_sync > 1 else [None]

    def on_device(context):
        with tf.device(devices[context.replica_id_in_sync_group]):
            return tf.constant(values)

    return strategy.experimental_distribute_values_from_function(on_device)


def _graph_of_validation(model: keras.Model, split: Split) -> Callable:
    """A graph function without arguments that returns mean loss and accuracy of `model` on the split."""
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    count = len(split.labels)

    @tf.function(autograph=False)
    def validate():
        def one_batch(start, loss_sum, num_correct):
            batch_labels = labels[start : start + VALIDATION_BATCH_SIZE]
            probabilities = model(images[start : start + VALIDATION_BATCH_SIZE], training=False)
            loss_sum += tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(batch_labels, probabilities))
            loss_sum += additional_loss(model) * tf.cast(tf.size(batch_labels), tf.float32)
            num_correct += tf.reduce_sum(tf.cast(tf.argmax(probabilities, 1, tf.int32) == batch_labels, tf.float32))
            return start + VALIDATION_BATCH_SIZE, loss_sum, num_correct

        nothing = tf.constant(0.0)
        _, loss_sum, num_correct = tf.while_loop(lambda start, *_: start < count, one_batch, (0, nothing, nothing))
        return loss_sum / count, num_correct / count

    return validate


def digest(model: keras.Model) -> str:
    """A digest of all weights, 16 hexadecimal digits. Takes less than 10 ms for 100,000 weights."""
    sha = hashlib.sha256()
    for weight in model.weights:
        sha.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return sha.hexdigest()[:16]
