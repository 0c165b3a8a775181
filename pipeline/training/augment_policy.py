"""A named augmentation policy: one random change of geometry or colour for each image of a batch, as tensors.

`trivial` draws for each image one operation of OPERATIONS and how strongly to apply it, both uniformly.

Source: Müller, Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021, its wide space.
Differences: images are reflected at their borders and not filled; translation ends at half of the image, since what is
farther out would be seen twice; no equalization, whose histograms would take longer than everything else together.
"""

import math

import tensorflow as tf

from pipeline.training.cifar10 import SIDE
from pipeline.training.elementwise import elementwise

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast"),
)
# The largest amounts, of strength 1: the first five with either sign.
MAX_SHEAR = 0.99  # pixels a pixel
MAX_TRANSLATION = SIDE / 2  # pixels
MAX_ROTATION = math.radians(135)
MAX_BLEND = 0.99  # brightness, color, contrast, sharpness times 1 ± this
MAX_POSTERIZED_BITS = 6  # of 8, set to 0
GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow has it


def draw(count: tf.Tensor, seed: tf.Tensor, strength: float) -> tuple[tf.Tensor, tf.Tensor]:
    """One operation for each image, int32 [n], and its amount, float32 [n] in -strength..strength.

    Args:
        count: n.
        seed: int64 [2].
        strength: of the largest amount, 0..1.
    """
    uniform = tf.random.stateless_uniform([2, count], seed, alg="philox")
    operation = tf.cast(uniform[0] * len(OPERATIONS), tf.int32)
    return operation, strength * (2 * uniform[1] - 1)


@elementwise
def source_pixels(operation: tf.Tensor, amount: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The row and the column that each pixel comes from, int32 [n, 32, 32] each, not yet within 0..31."""
    rotation = MAX_ROTATION * _only(operation, amount, "rotate")
    cosine, sine = tf.cos(rotation), tf.sin(rotation)
    shear_x, shear_y = (MAX_SHEAR * _only(operation, amount, name) for name in ("shear_x", "shear_y"))
    move_x, move_y = (MAX_TRANSLATION * _only(operation, amount, name) for name in ("translate_x", "translate_y"))
    centred = tf.range(SIDE, dtype=tf.float32) - (SIDE - 1) / 2
    y, x = centred[None, :, None], centred[None, None, :]
    rows = _images(cosine) * y + _images(shear_y - sine) * x + _images(move_y)
    columns = _images(cosine) * x + _images(shear_x + sine) * y + _images(move_x)
    return tuple(tf.cast(tf.floor(it + SIDE / 2), tf.int32) for it in (rows, columns))


@elementwise
def change_colors(images: tf.Tensor, operation: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Changes brightness, colour, contrast, sharpness or tones of uint8 images [n, 32, 32, 3] whose operation is that.

    All of these are gain * x + offset + a share of the grey and of the smoothed image, with other numbers.
    """
    bits = tf.round(MAX_POSTERIZED_BITS * tf.abs(_only(operation, amount, "posterize")))
    mask = tf.cast(256 - 2**bits, tf.uint8)
    images = tf.bitwise.bitwise_and(images, mask[:, None, None, None])
    pixels = tf.cast(images, tf.float32)
    threshold = 256 * (1 - tf.abs(_only(operation, amount, "solarize")))
    pixels = tf.where(pixels >= threshold[:, None, None, None], 255 - pixels, pixels)

    gray = tf.tensordot(pixels, tf.constant(GRAY), 1)[..., None]  # [n, 32, 32, 1]
    brightness, color, contrast, sharpness = (
        MAX_BLEND * _only(operation, amount, name)[:, None, None, None]
        for name in ("brightness", "color", "contrast", "sharpness")
    )
    gain = 1 + brightness + color + contrast + sharpness  # of which at most one is not 0
    offset = -contrast * tf.round(tf.reduce_mean(gray, axis=[1, 2], keepdims=True))
    darkest, brightest = (reduce(pixels, axis=[1, 2], keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    stretched = (_is(operation, "autocontrast")[:, None, None, None]) & (brightest > darkest)
    stretch = 255 / tf.maximum(brightest - darkest, 1)
    gain = tf.where(stretched, stretch, gain)
    offset = tf.where(stretched, -darkest * stretch, offset)
    changed = gain * pixels + offset - color * gray - sharpness * _smoothed(pixels)
    return tf.cast(tf.clip_by_value(tf.round(changed), 0, 255), tf.uint8)


def _smoothed(pixels: tf.Tensor) -> tf.Tensor:
    """Each pixel averaged with its eight neighbours, itself counted five times: Pillow's SMOOTH, borders repeated."""
    padded = tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * pixels) / 13


def _is(operation: tf.Tensor, name: str) -> tf.Tensor:
    return operation == OPERATIONS.index(name)


def _only(operation: tf.Tensor, amount: tf.Tensor, name: str) -> tf.Tensor:
    """The amounts of the images with this operation, 0 for the others."""
    return tf.where(_is(operation, name), amount, 0.0)


def _images(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None]
