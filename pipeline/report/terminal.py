"""An evaluation and the comparison on the terminal."""

from typing import Any

from pipeline.records.record import NOT_COMPARABLE
from pipeline.report import findings, tables

MIN_WIDTH = 60  # columns, in which every table fits with its numbers whole
COLOURS = {"pass": "green", "fail": "red", "better": "green", "better weights": "green"}


def show_comparison(comparison: dict[str, Any]) -> None:
    """Prints accuracies, costs, verdicts, budgets and champions."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, MIN_WIDTH)
    for title, rows, notes in (
        (tables.TITLE, tables.accuracy(comparison), findings.accuracy_notes(comparison)),
        ("Cost", tables.cost(comparison), findings.cost_notes(comparison)),
        ("Verdicts", [row[:-1] for row in tables.pairs(comparison)], findings.pair_notes(comparison)),  # no room for p
        ("Exported files", [row[:5] for row in tables.exports(comparison)], findings.export_notes(comparison)),
        ("Budgets", tables.budgets(comparison), findings.budget_notes(comparison)),
    ):
        if not rows[1:] and not notes:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name, number in zip(rows[0], tables.are_numbers(rows), strict=True):
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in rows[1:]:
            table.add_row(*(Text(cell, COLOURS.get(cell, "")) for cell in row))
        blocks = [tables.title(title, comparison), "", *([table, ""] if rows[1:] else []), *notes]
        console.print(*blocks, *([""] if notes else []), sep="\n")
    console.print(tables.title("The model to take", comparison), "", *findings.budgets(comparison), sep="\n")


def show_evaluation(run: str, evaluation: dict[str, Any], speed: dict[str, Any], comparable: bool) -> None:
    """Prints an evaluation in two lines, and a third if the run is not comparable."""
    from rich.console import Console

    percent = {key: f"{100 * value:.2f} %" for key, value in evaluation.items() if "accuracy" in key}
    known = evaluation["multiply_adds"]
    multiply_adds = "an unknown number of" if known is None else f"{known:,}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{run}: {percent['test_accuracy']}[/] of {evaluation['test_images']:,} test images are correct, "
        f"{percent['test_accuracy_flip']} averaged with their flipped images; validation {percent['val_accuracy']}"
    )
    console.print(
        f"test loss {evaluation['test_loss']:.4f} nats, calibration error {evaluation['calibration_error']:.4f}; "
        f"{evaluation['parameters']:,} parameters, {multiply_adds} multiply-adds; "
        f"{speed['latency_ms']} ms for one image, {speed['throughput']:,.0f} images/s ({speed['device']})"
    )
    if not comparable:
        console.print(NOT_COMPARABLE)
