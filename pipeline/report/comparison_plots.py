"""Plots of the comparison, as PNG."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from pipeline.report import figure as figures
from pipeline.report import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = list[dict[str, float]]


def validation_curves(comparison: dict[str, Any], histories: dict[str, History]) -> bytes:
    """Validation accuracy by epoch; one colour a recipe, black and grey for what is published."""
    figure, axes = _axes(
        "Validation accuracy by epoch", "epoch", "validation accuracy, % (published: test images)", comparison
    )

    def curve(name: str, label: str, colour: str, dashes: str = "-") -> None:
        epochs, values = zip(*((row["epoch"], 100 * row["val_accuracy"]) for row in histories[name]), strict=True)
        axes.plot(epochs, values, dashes, color=colour, alpha=0.8, label=label, marker=".", markevery=[-1])

    for row, dashes in zip(comparison["published"], cycle(("--", ":", "-.")), strict=False):
        if row["run"] in histories:
            curve(row["run"], _label(row["run"], row), "black", dashes)
        else:
            label = _label(row["run"], row) + " (last epoch)"
            axes.axhline(100 * row["test_accuracy"], color="0.5", linestyle=dashes, label=label)
    for (recipe, metrics), colour in zip(comparison["recipes"].items(), cycle(figures.COLOURS), strict=False):
        runs = [run["run"] for run in comparison["runs"] if run["recipe"] == recipe]
        for index, run in enumerate(runs):
            curve(run, "" if index else _label(recipe, metrics, "val_accuracy"), colour)
    # The end is what is compared: the first tenth of the epochs may lie below the axes.
    late = [row["val_accuracy"] for rows in histories.values() for row in rows[len(rows) // 10 :]]
    axes.set_ylim(bottom=max(0, 100 * min(late) - 2))
    return _png(figure)


def accuracy_vs_parameters(comparison: dict[str, Any]) -> bytes:
    """Test accuracy by number of parameters, with 95 % intervals over seeds.

    Grey: fewer parameters and better than what is published.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    title, y = "Test accuracy by number of parameters", "test accuracy, % (bars: 95 % interval over seeds)"
    figure, axes = _axes(title, "parameters (grey: fewer, and better, than published)", y, comparison)
    rows = [*comparison["published"], *comparison["recipes"].values()]
    left, right = min(row["parameters"] for row in rows) / 2, max(row["parameters"] for row in rows) * 2
    for row, marker in zip(comparison["published"], cycle("sDv"), strict=False):
        x, y = row["parameters"], 100 * row["test_accuracy"]
        axes.fill_between([left, x], y, 100, color="black", alpha=0.06, linewidth=0)
        axes.plot(x, y, marker, color="black", fillstyle="none", label=_label(row["run"], row))
    for (recipe, row), colour in zip(comparison["recipes"].items(), cycle(figures.COLOURS), strict=False):
        x, y, limits = row["parameters"], 100 * row["test_accuracy"], row["test_accuracy_interval"]
        bar = limits and [[y - 100 * limits[0]], [100 * limits[1] - y]]
        axes.errorbar(x, y, bar, fmt="o", color=colour, capsize=4, label=_label(recipe, row))
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(top=100 * max((row.get("test_accuracy_interval") or [row["test_accuracy"]])[-1] for row in rows) + 1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    return _png(figure)


def _axes(title: str, x: str, y: str, comparison: dict[str, Any]) -> tuple[Figure, Axes]:
    figure = figures.new(9, 4.5, tables.title(title, comparison))
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _label(name: str, metrics: dict[str, Any], key: str = "test_accuracy") -> str:
    seeds = f" (mean of {metrics['seeds']})" if metrics["seeds"] > 1 else ""
    return f"{name}: {tables.cell(metrics, key)}{seeds}"


def _png(figure: Figure) -> bytes:
    figure.legend(loc="outside right center", frameon=False)  # beside the axes it hides nothing
    return figures.png(figure)
