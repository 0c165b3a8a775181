"""The published small network, layer by layer: 92,027 parameters, of which 90,363 are trained.

Its Keras 1 arguments are translated: `border_mode` is `padding`, `SeparableConv2D(64, 3, 3)` has 64 filters of 3x3.
What it left to the defaults of its day (depth multiplier 1, Glorot's uniform initialisation, batch normalization with
epsilon 1e-3 and momentum 0.99) is the default today.
"""

import keras
from keras import layers

from pipeline.models import pixels


def build() -> keras.Model:
    """Separable convolutions, narrowed by 1x1 convolutions before each pooling. Comments: output size, pixels seen."""
    inputs, x = pixels()
    x = _separable(x, 64, index=1)  # 32*32*64, 3
    x = _separable(x, 128, index=2)  # 32*32*128, 5
    x = layers.Conv2D(32, 1, activation="relu", use_bias=False, name="narrow1")(x)  # 32*32*32, 5
    x = layers.MaxPooling2D(2, name="pool1")(x)  # 16*16*32, 6

    x = _separable(x, 128, index=3)  # 16*16*128, 10
    x = _separable(x, 128, index=4)  # 16*16*128, 14
    x = layers.Conv2D(64, 1, activation="relu", use_bias=False, name="narrow2")(x)  # 16*16*64, 14
    x = layers.MaxPooling2D(2, name="pool2")(x)  # 8*8*64, 16

    x = _separable(x, 128, index=5)  # 8*8*128, 24
    x = _separable(x, 256, index=6)  # 8*8*256, 32
    x = layers.SeparableConv2D(10, 1, use_bias=False, name="classes")(x)  # 8*8*10, 32
    x = layers.GlobalAveragePooling2D(name="average")(x)  # 1*1*10
    return keras.Model(inputs, layers.Activation("softmax", name="softmax")(x), name="custom")


def _separable(x: keras.KerasTensor, filters: int, index: int) -> keras.KerasTensor:
    # The ReLU precedes batch normalization, as published; the reverse is more common.
    x = layers.SeparableConv2D(filters, 3, padding="same", activation="relu", use_bias=False, name=f"separable{index}")(
        x
    )
    x = layers.BatchNormalization(name=f"norm{index}")(x)
    return layers.Dropout(0.3, name=f"dropout{index}")(x)
