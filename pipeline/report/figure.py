"""Matplotlib without pyplot, which costs 0.4 s to import and keeps state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; black and grey are left for published results.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def new(width: float, height: float, title: str) -> Figure:
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=150, layout="constrained")
    figure.suptitle(title)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG: equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, metadata={"Software": None})  # by default the file names matplotlib's version
    return content.getvalue()
