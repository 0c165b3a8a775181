"""A picture of photos, of the pixels that the model saw, and of its most probable classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.report import figure

MAX_ROWS = 50
MAX_SIDE = 256  # pixels of a photo on the sheet


class Row(NamedTuple):
    """One image: its name, the photo, its pixels uint8 [32, 32, 3], and pairs of a class and its probability."""

    name: str
    photo: Image.Image
    pixels: np.ndarray
    top: list[tuple[str, float]]


def row(name: str, photo: Image.Image, pixels: np.ndarray, top: list[tuple[str, float]]) -> Row:
    """A row that holds a small copy of the photo."""
    small = photo.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return Row(name, small, pixels, top)


def draw(title: str, rows: list[Row]) -> bytes:
    """The sheet as PNG."""
    sheet = figure.new(7, 0.6 + 1.5 * len(rows), title)
    axes = sheet.subplots(len(rows), 3, squeeze=False, width_ratios=(1, 1, 2))
    for (photo, pixels, bars), row in zip(axes, rows, strict=True):
        photo.imshow(row.photo)
        pixels.imshow(row.pixels, interpolation="nearest")
        for picture in (photo, pixels):
            picture.set_axis_off()
        name = row.name if len(row.name) <= 40 else f"…{row.name[-39:]}"
        photo.set_title(name, fontsize=7, loc="left", parse_math=False)
        classes = [name for name, _ in row.top]
        shown = bars.barh(classes, [probability for _, probability in row.top], color=figure.COLOURS[0])
        bars.bar_label(shown, [f"{100 * probability:.1f} %" for _, probability in row.top], fontsize=7, padding=2)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.2)
        bars.set_xticks([])
        bars.tick_params(labelsize=7, length=0)
        bars.spines[["top", "right", "bottom"]].set_visible(False)
    return figure.png(sheet)
