"""Plots of one run, as PNG."""

from math import ceil, sqrt

import numpy as np

from pipeline.evaluation import metrics
from pipeline.report import figure as figures
from pipeline.training.cifar10 import CLASS_NAMES

SPLITS = (("training", "", figures.COLOURS[0], "--"), ("validation", "val_", figures.COLOURS[1], "-"))


def learning_curves(run: str, history: list[dict[str, float]]) -> bytes:
    """Loss and accuracy by epoch."""
    from matplotlib.ticker import MaxNLocator

    figure = figures.new(9, 4, run)
    epochs = [row["epoch"] for row in history]
    marker = "." if len(epochs) < 20 else ""  # a single epoch draws no line
    for position, (key, unit, scale, form) in enumerate((("loss", "nats", 1, ".3f"), ("accuracy", "%", 100, ".2f")), 1):
        axes = figure.add_subplot(1, 2, position, xlabel="epoch", ylabel=f"{key}, {unit}")
        for split, prefix, colour, line in SPLITS:
            values = [scale * row[prefix + key] for row in history]
            axes.plot(epochs, values, line, color=colour, marker=marker, label=f"{split}: {values[-1]:{form}}")
        axes.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.legend(frameon=False)
    return figures.png(figure)


def confusion_matrix(run: str, confusion: np.ndarray) -> bytes:
    """The confusion matrix: numbers are images, colours are fractions of the true class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = figures.new(8, 7, f"{run}\n{np.trace(confusion):,} of {confusion.sum():,} test images are correct")
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    # The square root keeps cells off the diagonal visible.
    cells = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(CLASS_NAMES)), CLASS_NAMES)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), images in np.ndenumerate(confusion):
        colour = "white" if fractions[row, column] > 0.3 else "black"
        axes.text(column, row, f"{images:,}" if images else "", ha="center", va="center", color=colour, fontsize=9)
    bar = figure.colorbar(
        cells, label="fraction of the true class", format=PercentFormatter(1, symbol=" %"), shrink=0.8
    )
    bar.outline.set_visible(False)
    return figures.png(figure)


def most_confident_errors(
    run: str, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, count: int
) -> bytes:
    """A gallery of the `count` most confident errors, row by row."""
    errors = metrics.most_confident_errors(probabilities, labels, count)
    columns = max(5, ceil(sqrt(len(errors))))
    rows = ceil(len(errors) / columns)
    what = "most confident errors: true class → predicted class, confidence" if rows else "no errors"
    figure = figures.new(1.7 * columns, 2 * rows + 0.6, f"{run}, {len(labels):,} test images\n{what}")
    for position, index in enumerate(errors, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(images[index], interpolation="nearest")
        axes.set_axis_off()
        predicted = probabilities[index].argmax()
        names = f"{CLASS_NAMES[labels[index]]} → {CLASS_NAMES[predicted]}"
        axes.set_title(f"{names}\n{100 * probabilities[index, predicted]:.2f} %", fontsize=8)
    return figures.png(figure)
