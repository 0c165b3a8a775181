"""The compact network: within the published custom network's 92,027 parameters, moving statistics included.

Parameters are the limit here, not time, and nearly all of a separable network's are in the 1x1 convolutions that mix
channels. So a few of those are called again and again, each time behind a depthwise convolution and before a norm of
that place's own, which are cheap: as deep as 20 blocks, with the parameters of 7.
"""

from itertools import cycle

import keras
from keras import layers

from pipeline.models import pixels

NARROW, WIDE = 48, 112  # channels at 32 px, and at 16 and 8 px
MIXERS = 4  # kernels of WIDE x WIDE, called in turn


def build() -> keras.Model:
    """Residual blocks of depthwise 3x3, 1x1, norm and ReLU. Comments: output size, pixels seen."""
    inputs, x = pixels()
    x = layers.Conv2D(NARROW, 3, padding="same", use_bias=False, name="stem")(x)
    x = _norm_relu(x, "stem")  # 32*32*48, 3
    x = _block(x, "fine1", layers.Conv2D(NARROW, 1, use_bias=False, name="fine1_mix"))  # 32*32*48, 5
    x = _block(x, "fine2", layers.Conv2D(NARROW, 1, use_bias=False, name="fine2_mix"))  # 32*32*48, 7
    x = _block(x, "widen", layers.Conv2D(WIDE, 1, use_bias=False, name="widen_mix"), stride=2)  # 16*16*112, 9

    mixers = cycle([layers.Conv2D(WIDE, 1, use_bias=False, name=f"mix{place}") for place in range(1, MIXERS + 1)])
    for place in range(1, 13):
        x = _block(x, f"middle{place}", next(mixers))  # 16*16*112, 13 to 57
    x = _block(x, "halve", next(mixers), stride=2)  # 8*8*112
    for place in range(1, 6):
        x = _block(x, f"coarse{place}", next(mixers))  # 8*8*112
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="classes")(x), name="compact")


def _block(x: keras.KerasTensor, name: str, mixer: layers.Layer, stride: int = 1) -> keras.KerasTensor:
    y = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    y = _norm_relu(mixer(y), name)
    if stride == 2 and x.shape[-1] == y.shape[-1]:
        x = layers.AveragePooling2D(2, name=f"{name}_shrink")(x)
    return layers.Add(name=f"{name}_add")([x, y]) if x.shape == y.shape else y


def _norm_relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # Momentum 0.9: the statistics that validation uses keep up with weights that change fast.
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x))
