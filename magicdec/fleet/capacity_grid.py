"""Time per output token by concurrency and context, and what passes the limits."""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from magicdec.costmodel.base.units import format_seconds, format_tokens
from magicdec.costmodel.passes.forward import Array, BoolArray
from magicdec.costmodel.planning.sweep import Sweep

from ..inputs.scenario import Scenario
from ..render.tables import text_table, wrapped
from ..results.base import Result, Row, known

NOTHING_FITS = -2  # in `Sweep.choice`


def chosen_tpot_s(found: Sweep) -> Array:
    """Time per output token of the strategy to use in every cell. [s]"""
    chosen = found.autoregressive_tpot_s
    for index, best in enumerate(found.bests):
        chosen = np.where(found.choice == index, best.tpot_s, chosen)
    return np.asarray(chosen)


@dataclass(frozen=True, repr=False, eq=False)
class CapacityGrid(Result):
    """What a machine serves at once.

    Attributes:
        scenario: Model and machine.
        sweep: The strategy to use in every cell, limits aside.
        within: The strategy to use in every cell among those that hold the limit on TPOT.
        output_len: New tokens per sequence. [tokens]
        max_tpot_s, max_ttft_s: Limits. [s]
        highest: The highest concurrency within limits and memory at each context; None where nothing passes. [sequences]
    """

    scenario: Scenario
    sweep: Sweep
    within: Sweep
    output_len: int
    max_tpot_s: float | None = None
    max_ttft_s: float | None = None
    highest: tuple[int | None, ...] = ()

    @property
    def fits(self) -> BoolArray:
        """Whether a cell fits in memory."""
        return np.asarray(self.sweep.choice > NOTHING_FITS)

    @property
    def ttft_s(self) -> Array:
        """Time to first token at each context. [s]"""
        return self.scenario.deployment.ttft_s(self.sweep.context_lens.astype(np.float64))

    @property
    def passes(self) -> BoolArray:
        """Whether a cell fits and holds the limits."""
        good = np.asarray(self.within.choice > NOTHING_FITS)
        if self.max_ttft_s is not None:
            good = good & (self.ttft_s <= self.max_ttft_s)
        return np.asarray(good)

    def used(self, i: int, j: int) -> Sweep:
        """The sweep that a cell shows: within the limit where that is possible."""
        return self.within if self.within.choice[i, j] > NOTHING_FITS else self.sweep

    @property
    def headline(self) -> str:
        pairs = zip(self.sweep.context_lens, self.highest, strict=True)
        at = [f"{most:,} at {format_tokens(context)}" if most else f"none at {format_tokens(context)}" for context, most in pairs]
        return f"{self.scenario}: highest concurrency within {self._limits()}: {', '.join(at)}"

    def _limits(self) -> str:
        named = {"TPOT": self.max_tpot_s, "TTFT": self.max_ttft_s}
        return ", ".join([*(f"{name} {format_seconds(value)}" for name, value in named.items() if value), "memory"])

    def rows(self) -> list[Row]:
        passes = self.passes
        found: list[Row] = []
        for i, batch in enumerate(self.sweep.batch_sizes):
            for j, context in enumerate(self.sweep.context_lens):
                used = self.used(i, j)
                row: Row = {
                    "batch_size": int(batch),
                    "context_len": int(context),
                    "output_len": self.output_len,
                    "strategy": str(used.strategy(i, j)) if self.fits[i, j] else None,
                    "predicted_tpot_s": known(float(chosen_tpot_s(used)[i, j])),
                    "predicted_ttft_s": float(self.ttft_s[j]),
                    "predicted_speedup": known(float(used.speedup[i, j])),
                    "predicted_speedup_low": known(float(used.speedup_low[i, j])),
                    "fits_in_memory": bool(self.fits[i, j]),
                    "passes": bool(passes[i, j]),
                    "highest_batch_size": self.highest[j],
                }
                found.append(row)
        return found

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.scenario.deployment.target.name,
            "hardware": self.scenario.deployment.hardware.name,
            "num_gpus": self.scenario.deployment.num_gpus,
            "max_tpot_s": self.max_tpot_s,
            "max_ttft_s": self.max_ttft_s,
            "cells": [dict(row) for row in self.rows()],
        }

    def __str__(self) -> str:
        found, passes = self.sweep, self.passes
        drafts = [best.draft for best in found.bests]
        marks = dict(enumerate(string.ascii_letters))

        def cell(i: int, j: int) -> str:
            if not self.fits[i, j]:
                return ".."
            used = self.used(i, j)
            mark = marks.get(int(used.choice[i, j]), "")
            return f"{1e3 * chosen_tpot_s(used)[i, j]:.3g}{mark}" + ("" if passes[i, j] else "!")

        table = text_table(
            ["TPOT [ms]", *(format_tokens(context) for context in found.context_lens)],
            [[str(batch), *(cell(i, j) for j in range(len(found.context_lens)))] for i, batch in enumerate(found.batch_sizes)],
        )
        used = [(marks[k], draft) for k, draft in enumerate(drafts) if ((found.choice == k) | (self.within.choice == k)).any()]
        lines = [wrapped(self.headline, "  "), "", table, ""]
        lines += [f"{mark}  {draft.strategy(1, 1).draft_text.replace(' budget 1', '')}" for mark, draft in used]
        return "\n".join([*lines, "!  beyond a limit", ".. does not fit in memory"])
