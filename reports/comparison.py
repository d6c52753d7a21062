"""Throughput against time per output token of several combinations, with and without speculation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from magicdec.costmodel.base.errors import bad

from .style import LINE_COLOURS, new_figure, plain, save

KINDS = (".png", ".svg", ".pdf")
Points = Sequence[tuple[float, float]]


def draw(path: str, curves: Sequence[tuple[str, Points, Points]], max_tpot_s: float | None) -> None:
    """Draw output rate against TPOT along the batch sizes of each curve, after figure 1b of the MagicDec paper.

    Args:
        path: File to write; its suffix says the format.
        curves: (label, points with speculation, points without): TPOT and output rate. [s, tokens/s]
        max_tpot_s: Limit on the time per output token, drawn as a line. [s]

    Raises:
        InputError: The file cannot be written, or its suffix is unknown.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        raise bad("figure", "", f"a file that ends in {' or '.join(KINDS)}", path)
    figure, (ax,) = new_figure()
    for colour, (label, fast, slow) in zip(cycle(LINE_COLOURS), curves, strict=False):
        for points, style, words in ((slow, "--", None), (fast, "-", plain(label))):
            if points:
                x, y = zip(*points, strict=True)
                ax.plot([1e3 * tpot_s for tpot_s in x], y, style, marker="o", markersize=3.5, color=colour, label=words)
    if max_tpot_s is not None:
        ax.axvline(1e3 * max_tpot_s, color="black", linewidth=0.9, linestyle=":")
        ax.annotate("limit", (1e3 * max_tpot_s, 0), (3, 3), textcoords="offset points", fontsize=8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("time per output token [ms]; solid with, dashed without speculation")
    ax.set_ylabel("output rate while decoding [tokens/s]")
    ax.legend(frameon=False, fontsize=8)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save(figure, Path(path), kind=suffix.removeprefix("."))
    except OSError as error:
        raise bad(path, "", "a file that can be written", error.strerror) from None
