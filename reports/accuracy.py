"""Predicted against measured, every published quantity in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from magicdec.costmodel.calibration.published_rows import IN_SAMPLE, Comparison

from .style import LINE_COLOURS, Drawing, new_figure, plain

STEP_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RATIO_TICKS = (0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5)
MARKERS = ("o", "s", "^", "D", "v", "P")


def accuracy_figure(comparisons: Sequence[Comparison]) -> Drawing:
    """Step times on the left, ratios on the right; hollow markers were not part of the fit."""
    figure, axes = new_figure(2)
    steps = [one for one in comparisons if "step" in one.quantity]
    ratios = [one for one in comparisons if one.quantity.startswith("speedup")]
    panels = ((axes[0], steps, 1e3, "ms", STEP_TICKS), (axes[1], ratios, 1.0, "ratio", RATIO_TICKS))
    for ax, part, scale, unit, ticks in panels:
        groups = sorted({(one.hardware, one.quantity, one.split == IN_SAMPLE) for one in part})
        colours = dict(zip(sorted({group[1] for group in groups}), cycle(LINE_COLOURS), strict=False))
        markers = dict(zip(sorted({group[0] for group in groups}), cycle(MARKERS), strict=False))
        for hardware, quantity, fitted in groups:
            here = [one for one in part if (one.hardware, one.quantity, one.split == IN_SAMPLE) == (hardware, quantity, fitted)]
            colour = colours[quantity]
            ax.scatter(
                [scale * one.measured for one in here],
                [scale * one.predicted for one in here],
                s=18,
                marker=markers[hardware],
                facecolors=colour if fitted else "none",
                edgecolors=colour,
                linewidths=0.9,
                label=plain(f"{quantity}, {hardware}" + ("" if fitted else ", not in the fit")),
            )
        ends = scale * np.array([min(one.measured for one in part) * 0.9, max(one.measured for one in part) * 1.1])
        ax.plot(ends, ends, color="#888888", linewidth=0.8)
        ax.fill_between(ends, 0.95 * ends, 1.05 * ends, color="#888888", alpha=0.15, linewidth=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        shown = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
        ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
        ax.set_yticks(shown, [f"{tick:g}" for tick in shown])
        ax.minorticks_off()
        ax.set_xlabel(f"measured [{unit}]")
        ax.set_ylabel(f"predicted [{unit}]")
        ax.legend(frameon=False, fontsize=6.5)
    axes[0].set_title("step times", fontsize=10)
    axes[1].set_title("speedups", fontsize=10)
    caption = "Each marker is a published row. The line is equality, the band is 5 %. Hollow markers were not part of the fit."
    return Drawing("accuracy", "Predicted against measured", caption, figure)
