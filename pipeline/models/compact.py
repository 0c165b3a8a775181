"""The compact network: within the 92,027 parameters of the published custom network, moving statistics included.

Nearly all parameters of a separable network are in the 1x1 convolutions that mix channels. A narrow block at 32 px has
as many multiply-adds as one of twice the channels at 16 px, but a quarter of its parameters, so the network begins with
four of them.
"""

import keras
from keras import layers

from pipeline.models import pixels

FINE, MIDDLE, COARSE = 48, 96, 120  # channels at 32, 16 and 8 px


def build() -> keras.Model:
    """Residual blocks of a depthwise 3x3, a 1x1 and a norm. Comments: output size, pixels seen."""
    inputs, x = pixels()
    x = layers.Conv2D(FINE, 3, padding="same", use_bias=False, name="stem")(x)
    x = _relu(_norm(x, "stem"), "stem")  # 32*32*48, 3
    for index in range(1, 5):
        x = _block(x, f"fine{index}", FINE)  # 32*32*48, 5 to 11
    x = _block(x, "widen", MIDDLE, halve=True)  # 16*16*96, 14
    for index in range(1, 5):
        x = _block(x, f"middle{index}", MIDDLE)  # 16*16*96, 18 to 30
    x = _block(x, "halve", COARSE, halve=True)  # 8*8*120, 36
    x = _block(x, "coarse", COARSE)  # 8*8*120, 44
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="classes")(x), name="compact")


def _block(x: keras.KerasTensor, name: str, filters: int, halve: bool = False) -> keras.KerasTensor:
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    if halve:  # not by a strided depthwise convolution, whose gradient takes 31 to 67 times as long on a CPU
        y = layers.AveragePooling2D(2, name=f"{name}_pool")(y)
    y = _norm(layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_mixer")(y), name)
    # The ReLU follows the sum: before it, validation lags far behind training until the learning rate is low.
    return _relu(y if halve else layers.Add(name=f"{name}_sum")([x, y]), name)


def _norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # At momentum 0.99 the moving statistics lag behind the weights.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)


def _relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(name=f"{name}_relu")(x)
