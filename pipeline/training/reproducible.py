"""What makes random numbers in Keras a function of seed, epoch, step and layer instead of hidden state.

Keras hides state in three places: generators that layers own, one global generator, and the counters behind the names
of unnamed layers. Each is replaced here for as long as a model is built or a step is traced.
"""

import collections
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state  # no public way to reach the global generator and the names

GLOBAL_ID = 2047  # of the global generator; layers have 1, 2, …


@contextmanager
def build_seed(seed: int) -> Iterator[None]:
    """Within, what is built is a function of `seed`: unseeded initial weights, and the names that Keras makes up."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with _global_attribute("object_name_uids", collections.defaultdict(int)):
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class _Step(threading.local):
    """The step that this thread traces. Replicas are traced in a thread each."""

    seed: tf.Tensor | None = None  # int64 [2]
    draws: collections.Counter  # by layer


_step = _Step()


@contextmanager
def step_seed(seed: tf.Tensor) -> Iterator[None]:
    """Within, layers draw their random numbers from `seed`, int64 [2]."""
    _step.seed, _step.draws = seed, collections.Counter()
    try:
        with _global_attribute("global_seed_generator", _StepGenerator()):
            yield
    finally:
        _step.seed = None


def layer_seed(layer_id: int) -> tf.Tensor:
    """A seed of the step, int64 [2], for one more draw of a layer: a shared layer draws anew each time it is called."""
    assert _step.seed is not None
    seed = _step.seed + layer_id
    if earlier := _step.draws[layer_id]:
        seed += tf.constant([earlier << 40, 0], tf.int64)  # run seeds are below 2^31
    _step.draws[layer_id] += 1
    return seed


def follow_step_seed(generator: keras.random.SeedGenerator, layer_id: int) -> None:
    """Makes a layer's generator draw from the step's seed while a step is traced, and leave its state alone.

    Assigning `generator.state` instead would not work on replicas.
    """
    stateful = generator.next
    generator.next = lambda ordered=True: stateful(ordered) if _step.seed is None else _keras_seed(layer_id)


class _StepGenerator:
    """Takes the place of Keras's global generator while a step is traced."""

    def next(self, ordered: bool = True) -> tf.Tensor:
        return _keras_seed(GLOBAL_ID)


def _keras_seed(layer_id: int) -> tf.Tensor:
    """A seed as Keras's random functions take it, int32 [2]."""
    return tf.random.stateless_uniform([2], layer_seed(layer_id), None, None, tf.int32, alg="philox")


@contextmanager
def _global_attribute(name: str, value: Any) -> Iterator[None]:
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)
