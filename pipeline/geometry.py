"""Prints the geometry of a model, layer by layer: `python -m pipeline.geometry MODEL`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pipeline import models
from pipeline.evaluation.geometry import LayerGeometry, geometry, total_multiply_adds
from pipeline.system import command, provenance
from pipeline.system.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from rich.table import Table

TYPES_FROM = 72  # columns of a terminal
UNKNOWN = "–"  # noqa: RUF001


def main() -> None:
    """Prints output sizes, receptive fields, parameters and multiply-adds of the model on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.geometry", description=__doc__)
    parser.add_argument("model", metavar="{" + ",".join(models.names()) + "}")
    name = parser.parse_args().model
    import_tensorflow()  # Keras would, with its notes
    rows = geometry(models.build(name))

    from rich.console import Console

    console = Console()
    console.print(table(name, rows, types=console.width >= TYPES_FROM))
    file = f"pipeline/models/{name}.py"
    if provenance.is_untracked(command.REPOSITORY / file):
        advice = f"`git add {file}` before `dvc exp run --temp` or `--queue`, which copy only what git tracks"
        print(f"note: {advice}", file=sys.stderr)


def table(title: str, rows: list[LayerGeometry], types: bool = True) -> Table:
    """The layers as a table for people, with the totals below; without their types for a narrow terminal."""
    from rich import box
    from rich.table import Table

    # Fits 80 columns for the models here; longer names are folded, never cut.
    table = Table(title=title, box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", footer="total", overflow="fold")
    if types:
        table.add_column("type", overflow="fold")
    numbers: dict[str, Any] = {"justify": "right", "no_wrap": True}
    table.add_column("output\nsize", **numbers)
    table.add_column("sees\npixels", **numbers)
    table.add_column("\nparameters", **numbers, footer=f"{sum(row.parameters for row in rows):,}")
    table.add_column("multiply-\nadds", **numbers, footer=_number(total_multiply_adds(rows)))
    for row in rows:
        size = "*".join(str(side) for side in row.output_size)
        sees = "image" if row.receptive_field is None else str(row.receptive_field).replace("unknown", UNKNOWN)
        names = (row.layer, row.type) if types else (row.layer,)
        table.add_row(*names, size, sees, f"{row.parameters:,}", _number(row.multiply_adds))
    return table


def _number(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"


if __name__ == "__main__":
    command.run(main, anywhere=True)
