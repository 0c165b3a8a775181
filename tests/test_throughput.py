"""benchmarks/throughput.py and paths.py: what they measure, without measuring."""

import time

import keras
import numpy as np

from benchmarks import paths, throughput
from pipeline.config import params


def test_params_of_the_startup_measurement_are_valid():
    config = params.check(throughput.startup_params(), "the benchmark's params")
    assert list(config.runs) == list(config.export.runs) == ["custom-0"]


def test_pauses_of_fit_around_its_steps_do_not_count(monkeypatch):
    fit = keras.Model.fit

    def with_pauses(*args, **kwargs):
        time.sleep(1)
        fit(*args, **kwargs)
        time.sleep(1)

    monkeypatch.setattr(keras.Model, "fit", with_pauses)
    epochs = paths.stock_keras("baseline", 2, np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int32), False)
    next(epochs)  # compiles
    began = time.perf_counter()
    seconds = next(epochs)
    assert 0 < seconds < time.perf_counter() - began - 2
