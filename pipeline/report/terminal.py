"""The comparison on the terminal."""

from typing import Any

from pipeline.report import tables


def show(comparison: dict[str, Any]) -> None:
    """Prints metrics and budgets, at least 100 columns wide so that no number is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, 100)
    for title, rows, notes in (
        (tables.TITLE, tables.metrics(comparison), tables.footnotes(comparison)),
        ("Budgets", tables.budgets(comparison), comparison["limits"]),
    ):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name, number in zip(rows[0], tables.are_numbers(rows), strict=True):
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in rows[1:]:
            table.add_row(*(Text(cell, {"pass": "green", "fail": "red"}.get(cell, "")) for cell in row))
        console.print(tables.title(title, comparison), "", table, "", *notes, "", sep="\n")
