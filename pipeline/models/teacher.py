"""The teacher: a dense network of 2.0 M parameters that small ones imitate. It keeps to no budget.

Its form is that of airbench94 (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024), which trains fast for
its accuracy. Different are the stem, which learns instead of whitening, and ReLU, which is faster on a CPU than GELU.
"""

import keras
from keras import layers

from pipeline.models import pixels


def build() -> keras.Model:
    """Three blocks of two 3x3 convolutions, the first of them pooled. Comments: output size, pixels seen."""
    inputs, x = pixels()
    x = _norm_relu(layers.Conv2D(24, 2, use_bias=False, name="stem")(x), "stem")  # 31*31*24, 2
    x = _block(x, "fine", 64)  # 15*15*64, 9
    x = _block(x, "middle", 256)  # 7*7*256, 19
    x = _block(x, "coarse", 256)  # 3*3*256, 39
    x = layers.GlobalMaxPooling2D(name="largest")(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="classes")(x), name="teacher")


def _block(x: keras.KerasTensor, name: str, filters: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv1")(x)
    x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)
    x = _norm_relu(x, f"{name}_1")
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv2")(x)
    return _norm_relu(x, f"{name}_2")


def _norm_relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
