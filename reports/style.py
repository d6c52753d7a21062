"""Shared style of all figures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from magicdec.costmodel.base.names import one_line, shortened

BOUND_COLOURS = {
    "weights": "#4477aa",
    "kv": "#ee6677",
    "compute": "#228833",
    "communication": "#ccbb44",
    "overhead": "#bbbbbb",
}
LINE_COLOURS = ("#332288", "#117733", "#44aa99", "#ddaa33", "#cc6677", "#882255", "#88ccee", "#999933")


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        name: Base name of its files.
        title: What it shows.
        caption: How to read it.
        figure: The drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def new_figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure with `columns` axes side by side."""
    figure = Figure(figsize=(7.2 if columns == 1 else 5.4 * columns, 4.4), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, target: Path | IO[str], *, kind: str) -> None:
    """Write a figure as `png` or `svg`. A character that the font lacks, such as an emoji in a name, is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def plain(text: str) -> str:
    """A text of a user for a figure: dollar signs do not begin a formula, and one line has at most 120 characters."""
    return shortened(one_line(text), 120).replace("$", r"\$")


def log2_axis(ax: Axes, values: list[int], label: str) -> None:
    """Make the x axis logarithmic, with the values themselves as ticks."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [f"{v // 1000}k" if v >= 1000 and v % 1000 == 0 else str(v) for v in values])
    ax.minorticks_off()
    ax.set_xlabel(label)
