"""The published base network that the small models are measured against: 1,172,410 parameters.

Inferred: the published text gives "~1.2 million" parameters and no layers. This is the standard base network of the
course that the text comes from, and its count agrees.
"""

import keras
from keras import layers

from pipeline.models import pixels


def build() -> keras.Model:
    """Three blocks of two convolutions, then three dense layers, which hold 45 % of the parameters."""
    inputs, x = pixels()
    for block, filters in enumerate((48, 96, 192), start=1):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv1")(x)
        x = layers.Conv2D(filters, 3, padding="valid", activation="relu", name=f"block{block}_conv2")(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        x = layers.Dropout(0.25, name=f"block{block}_dropout")(x)
    x = layers.Flatten(name="flatten")(x)  # 2 * 2 * 192 = 768
    for index, units in enumerate((512, 256), start=1):
        x = layers.Dense(units, activation="relu", name=f"dense{index}")(x)
        x = layers.Dropout(0.5, name=f"dense{index}_dropout")(x)
    outputs = layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs, name="baseline")
