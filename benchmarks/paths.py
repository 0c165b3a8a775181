"""The same training three ways, each in a process of its own: `python -m benchmarks.paths PATH MODEL BATCH IMAGES`.

It prepares and warms up, says `ready`, and for every line on stdin trains another epoch and answers with images per
second of its steps and its resident memory in MiB. Pixels are random: the time does not depend on them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import psutil

BY_SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.005}  # as the others, whatever params.yaml says


def main() -> None:
    """Serves rounds until stdin ends."""
    path, model, batch, images = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, images).astype(np.int32)
    train = {"ours": ours, "keras": stock_keras, "torch": eager_torch, "torch_bfloat16": eager_torch}[path]
    epochs = train(model, batch, pixels, labels, path.endswith("bfloat16"))
    next(epochs)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = next(epochs)
        seen = images // batch * batch
        print(seen / seconds, psutil.Process().memory_info().rss / 2**20, flush=True)


def ours(model: str, batch: int, pixels: np.ndarray, labels: np.ndarray, _: bool) -> Iterator[float]:
    """The loop of this project, precision auto, no augmentation; without its validation, as the others."""
    from pipeline.system.tensorflow_import import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from pipeline import models
    from pipeline.config import params
    from pipeline.system import device
    from pipeline.training import dataset, loop

    changes = {"batch_size": batch, "epochs": 1_000, "flip": "none", "crop_pixels": 0}
    recipe = params.read().recipes[model].model_copy(update=BY_SGD | changes)
    machine = device.resolve("auto", "auto")
    split = dataset.Split(pixels, labels)
    run = loop.prepare(models.build(model), recipe, 0, split, machine.policy, tf.distribute.get_strategy())
    run_steps = loop.graph_of_steps(run)
    for epoch in range(1, 1000):
        began = time.perf_counter()
        indices = tf.constant(dataset.permutation(0, epoch, len(labels)))
        run_steps(indices, tf.constant(epoch), tf.constant(0), tf.constant(run.steps_per_epoch))[0].numpy()
        yield time.perf_counter() - began


def stock_keras(model: str, batch: int, pixels: np.ndarray, labels: np.ndarray, _: bool) -> Iterator[float]:
    """The published code's way: stock layers, `fit` on arrays, float32.

    From the first step to the last: around them, `fit` stands still for seconds, even if an epoch takes no longer.
    """
    from pipeline.system.tensorflow_import import import_tensorflow

    import_tensorflow()
    import keras

    from pipeline import models

    network = models.build(model)
    optimizer = keras.optimizers.SGD(0.05, 0.9, nesterov=True)
    network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    keep = len(labels) // batch * batch
    marks: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda step, logs: marks.append(time.perf_counter()),
        on_train_batch_end=lambda step, logs: marks.append(time.perf_counter()),
    )
    while True:
        marks.clear()
        network.fit(pixels[:keep], labels[:keep], batch_size=batch, verbose=0, callbacks=[clock])
        yield marks[-1] - marks[0]


def eager_torch(model: str, batch: int, pixels: np.ndarray, labels: np.ndarray, bfloat16: bool) -> Iterator[float]:
    """PyTorch, eager, channels last; float32 or autocast to bfloat16."""
    import torch
    from torch import nn

    torch.set_num_threads(len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process(), "cpu_affinity") else 2)
    network = TORCH_MODELS[model](nn).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long()
    while True:
        began = time.perf_counter()
        indices = torch.randperm(len(targets))
        for start in range(0, len(targets) // batch * batch, batch):
            chosen = indices[start : start + batch]
            x = (images[chosen].float() - 121) / 64
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                loss = nn.functional.cross_entropy(network(x), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield time.perf_counter() - began


def torch_baseline(nn):
    """models/baseline.py for PyTorch."""
    layers, channels = [], 3
    for filters in (48, 96, 192):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.Conv2d(filters, filters, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
        channels = filters
    layers += [nn.Flatten(), nn.Linear(192 * 4, 512), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


def torch_custom(nn):
    """models/custom.py for PyTorch."""

    def separable(channels: int, filters: int) -> list:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, filters, 1, bias=False)
        return [depthwise, pointwise, nn.ReLU(), nn.BatchNorm2d(filters, 1e-3, 0.01), nn.Dropout(0.3)]

    def narrow(channels: int, filters: int) -> list:
        return [nn.Conv2d(channels, filters, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*separable(3, 64), *separable(64, 128), *narrow(128, 32), *separable(32, 128), *separable(128, 128)]
    layers += [*narrow(128, 64), *separable(64, 128), *separable(128, 256)]
    layers += [nn.Conv2d(256, 256, 1, groups=256, bias=False), nn.Conv2d(256, 10, 1, bias=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torch_compact(nn):
    """models/compact.py for PyTorch."""

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, channels: int, filters: int):
            super().__init__()
            self.halves = channels != filters
            self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.pool = nn.AvgPool2d(2) if self.halves else nn.Identity()
            self.mixer = nn.Sequential(nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters, 1e-3, 0.1))

        def forward(self, x):
            y = self.mixer(self.pool(self.depthwise(x)))
            return nn.functional.relu(y if self.halves else x + y)

    widths = [48] * 5 + [96] * 5 + [120] * 2  # 4 blocks at 32 px, 5 at 16 px, 2 at 8 px, the first of a size halves
    layers = [nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48, 1e-3, 0.1), nn.ReLU()]
    layers += [Block(channels, filters) for channels, filters in pairwise(widths)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(120, 10))


TORCH_MODELS: dict[str, Callable] = {"baseline": torch_baseline, "custom": torch_custom, "compact": torch_compact}


if __name__ == "__main__":
    main()
