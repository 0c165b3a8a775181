"""The compact network: within the 92,027 parameters of the published custom network, moving statistics included.

Parameters are the limit here, time is not, and nearly all of a separable network's are in the 1x1 convolutions that
mix channels. So four of those are called in turn, again and again, each time behind a depthwise convolution and before
a norm of that place's own, which are cheap: 19 blocks with the parameters of 7.
"""

from itertools import cycle

import keras
from keras import layers

from pipeline.models import pixels

NARROW, WIDE = 48, 112  # channels at 32 px, and at 16 and 8 px
MIXERS = 4  # of WIDE x WIDE, called in turn


def build() -> keras.Model:
    """Residual blocks of a depthwise 3x3, a 1x1, a norm and a ReLU. Comments: output size, pixels seen."""
    inputs, x = pixels()
    x = layers.Conv2D(NARROW, 3, padding="same", use_bias=False, name="stem")(x)
    x = _norm_relu(x, "stem")  # 32*32*48, 3
    for name in ("fine1", "fine2"):
        x = _block(x, name, _mixer(f"{name}_mixer", NARROW))  # 32*32*48, 5 and 7
    x = _block(x, "widen", _mixer("widen_mixer", WIDE), halve=True)  # 16*16*112, 10

    mixers = cycle([_mixer(f"mixer{place}", WIDE) for place in range(1, MIXERS + 1)])
    for place in range(1, 9):
        x = _block(x, f"middle{place}", next(mixers))  # 16*16*112, 14 to 42
    x = _block(x, "halve", next(mixers), halve=True)  # 8*8*112, 48
    for place in range(1, 8):
        x = _block(x, f"coarse{place}", next(mixers))  # 8*8*112, 56 to 104
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="classes")(x), name="compact")


def _mixer(name: str, filters: int) -> layers.Layer:
    return layers.Conv2D(filters, 1, use_bias=False, name=name)


def _block(x: keras.KerasTensor, name: str, mixer: layers.Layer, halve: bool = False) -> keras.KerasTensor:
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    if halve:  # not by a stride of the depthwise convolution, whose gradient takes some fifty times as long on a CPU
        y = layers.AveragePooling2D(2, name=f"{name}_pool")(y)
        x = layers.AveragePooling2D(2, name=f"{name}_shortcut")(x)
    y = _norm_relu(mixer(y), name)
    return layers.Add(name=f"{name}_sum")([x, y]) if x.shape == y.shape else y


def _norm_relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # With momentum 0.99 the statistics that validation uses are those of weights long gone.
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x))
