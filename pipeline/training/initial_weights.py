"""The weights that a training run begins with: those that were set stay, the others follow from the seed."""

import zlib
from collections.abc import Iterator

import keras
import numpy as np


def initial_weights(model: keras.Model, seed: int) -> list[np.ndarray]:
    """Initial values of `model.weights`.

    A weight that still has the random value of its layer's unseeded initializer gets the value of that initializer
    seeded by (seed, layer path). Any other value was set on purpose (by a constant, a seeded initializer or an
    assignment in `build()`) or comes from within a custom layer, and stays.
    """
    fresh: dict[int, np.ndarray] = {}
    for path, layer in _layers(model):
        own = {id(weight): weight for weight in layer._trainable_variables + layer._non_trainable_variables}
        for key, initializer in _unseeded_initializers(layer):
            digest = zlib.crc32(f"{seed}/{path}/{key}".encode()) >> 1
            seeded = type(initializer).from_config({**initializer.get_config(), "seed": digest})
            for weight in own.values():
                if id(weight) not in fresh and _has_value(initializer, weight):
                    fresh[id(weight)] = np.asarray(seeded(weight.shape, weight.dtype))
    return [fresh.get(id(weight), weight.numpy()) for weight in model.weights]


def _has_value(initializer: keras.Initializer, weight: keras.Variable) -> bool:
    """Whether a weight is as this initializer, which gives the same value each time, left it."""
    try:
        return np.array_equal(np.asarray(initializer(weight.shape, weight.dtype)), weight.numpy())
    except (ValueError, TypeError):  # not one for this shape or dtype, so not of this weight
        return False


def _unseeded_initializers(layer: keras.Layer) -> list[tuple[str, keras.Initializer]]:
    """Random initializers of a layer, by attribute, that the user gave no seed."""
    attributes = [(key, value) for key, value in vars(layer).items() if isinstance(value, keras.Initializer)]
    return [(key, value) for key, value in attributes if value.get_config().get("seed", 0) is None]


def _layers(layer: keras.Layer, path: str = "", seen: set | None = None) -> Iterator[tuple[str, keras.Layer]]:
    """All layers below one, each once and with a path of its own."""
    seen = set() if seen is None else seen
    names: dict[str, int] = {}
    for inner in layer._layers:
        names[inner.name] = names.get(inner.name, 0) + 1
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        repeated = f"#{names[inner.name]}" if names[inner.name] > 1 else ""  # custom layers may repeat a name
        inner_path = f"{path}{inner.name}{repeated}"
        yield inner_path, inner
        yield from _layers(inner, f"{inner_path}/", seen)
