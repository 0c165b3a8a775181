"""Optimizers and the learning rate over the steps of a training."""

import math
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from pipeline.config.params import Recipe


DEPTHWISE = keras.layers.DepthwiseConv2D | keras.layers.SeparableConv2D
ELEMENTWISE = (  # layers whose weights scale or shift values, however many axes they have
    keras.layers.PReLU
    | keras.layers.BatchNormalization
    | keras.layers.LayerNormalization
    | keras.layers.GroupNormalization
    | keras.layers.RMSNormalization
)
ADAM_SHARE = 0.25  # of the learning rate, in what Muon leaves to Adam


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over a fraction of the steps, then constant, or linear or cosine down to 0."""

    def __init__(self, shape: str, peak: float, steps: int, warmup_fraction: float):
        self.shape, self.peak, self.steps = shape, peak, steps
        self.warmup_steps = int(steps * warmup_fraction)

    def __call__(self, step):
        """The rate of a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        rise = (step + 1) / max(1, self.warmup_steps)
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)  # 1 at the peak, near 0 at the end
        fall = {
            "constant": lambda: tf.ones_like(left),
            "linear": lambda: left,
            "cosine": lambda: 0.5 - 0.5 * tf.cos(math.pi * left),
        }[self.shape]()
        return self.peak * tf.where(step < self.warmup_steps, rise, fall)

    def get_config(self) -> dict[str, Any]:
        """Keras wants it; the optimizer is never saved."""
        return {"shape": self.shape, "peak": self.peak, "steps": self.steps}


class Muon(keras.optimizers.Muon):
    """Keras' Muon, for convolutions too: a kernel [h, w, in, out] is the matrix [h * w * in, out].

    Adam updates what is no matrix: biases and norms, embeddings, depthwise and other grouped kernels; kernels of other
    ranks; and the layer that gives the classes.

    Args:
        spared: weights for Adam, besides those whose shape is no matrix's.
        more: as Keras' Muon takes it.

    Source: Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024; for the size of a step: Liu et al.,
        "Muon is scalable for LLM training", 2025.
    """

    def __init__(self, *args: Any, spared: list, **more: Any):
        super().__init__(*args, **more)
        self._spared = frozenset(map(id, spared))  # names may be those of several weights in nested models

    def _should_use_adamw(self, variable) -> bool:
        *rows, columns = variable.shape or (1,)
        matrix = len(rows) in (1, 3) and math.prod(rows) > 1 and columns > 1
        return not matrix or id(variable) in self._spared

    def _muon_update_step(self, gradient, variable, lr, m) -> None:
        self.assign_add(m, gradient + m * (self.momentum - 1))
        direction = tf.cast(gradient + self.momentum * m, lr.dtype)  # Nesterov; the rest is not for float64
        update = self.zeropower_via_newtonschulz5(tf.reshape(direction, [-1, direction.shape[-1]]), self.ns_steps)
        step = tf.reshape(self.lr_adjust(lr * update), variable.shape)
        self.assign_sub(variable, tf.cast(step, variable.dtype))


def _kernels_of_groups(model: keras.Model) -> list:
    """Kernels that mix few channels or none: of depthwise, separable and grouped convolutions."""
    layers = [layer for layer in model._flatten_layers() if layer.built]
    depthwise = [layer for layer in layers if isinstance(layer, DEPTHWISE)]
    grouped = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1]
    return [layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel for layer in depthwise] + [
        layer.kernel for layer in grouped
    ]


def _biases_and_norms(model: keras.Model) -> list:
    """Weights that are added to values or scale them, of whatever rank."""
    of_layers = [layer for layer in model._flatten_layers() if isinstance(layer, ELEMENTWISE)]
    return [weight for layer in of_layers for weight in layer.trainable_weights] + [
        weight for weight in model.trainable_weights if len(weight.shape) < 2 or weight.name == "bias"
    ]


def _embeddings(model: keras.Model) -> list:
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return [weight for layer in layers for weight in layer.trainable_weights]


def _last_trainable_layer(model: keras.Model) -> keras.Layer:
    """The layer that gives the classes, in a nested model too."""
    last = next(layer for layer in reversed(model.layers) if layer.trainable_weights)
    return _last_trainable_layer(last) if isinstance(last, keras.Model) and last.layers else last


def make_optimizer(recipe: "Recipe", schedule: Schedule, policy: str, model: keras.Model) -> keras.optimizers.Optimizer:
    """The recipe's optimizer. Weight decay is decoupled and spares biases and norms."""
    decay = recipe.weight_decay or None
    optimizer: keras.optimizers.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule, recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=decay)
    elif recipe.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, beta_1=recipe.momentum, weight_decay=decay or 0.0)
    else:
        last = _last_trainable_layer(model)
        optimizer = Muon(
            schedule,
            momentum=recipe.momentum,
            weight_decay=decay,
            adam_weight_decay=decay,
            adam_lr_ratio=ADAM_SHARE,
            spared=[
                *last.trainable_weights,
                *_kernels_of_groups(model),
                *_biases_and_norms(model),
                *_embeddings(model),
            ],
        )
    if decay:
        optimizer.exclude_from_weight_decay(var_list=_biases_and_norms(model))
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
