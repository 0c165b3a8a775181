"""The comparison on the terminal."""

from typing import Any

from pipeline.report import findings, tables

MIN_WIDTH = 60  # columns, in which every table fits with its numbers whole
COLOURS = {"pass": "green", "fail": "red", "better": "green", "better weights": "green"}


def show(comparison: dict[str, Any]) -> None:
    """Prints accuracies, costs, verdicts, budgets and champions."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, MIN_WIDTH)
    for title, rows, notes in (
        (tables.TITLE, tables.accuracy(comparison), findings.accuracy_notes(comparison)),
        ("Cost", tables.cost(comparison), []),
        ("Verdicts", [row[:-1] for row in tables.pairs(comparison)], findings.pair_notes(comparison)),  # no room for p
        ("Budgets", tables.budgets(comparison), [f"{name}: {words}" for name, words in comparison["limits"].items()]),
    ):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name, number in zip(rows[0], tables.are_numbers(rows), strict=True):
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in rows[1:]:
            table.add_row(*(Text(cell, COLOURS.get(cell, "")) for cell in row))
        blocks = [tables.title(title, comparison), "", *([table, ""] if rows[1:] else []), *notes]
        console.print(*blocks, *([""] if notes else []), sep="\n")
    console.print(tables.title("The model to take", comparison), "", *findings.budgets(comparison), sep="\n")
