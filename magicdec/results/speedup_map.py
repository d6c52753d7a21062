"""The best strategy of every batch size and context length."""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np

from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.passes.forward import Array
from magicdec.costmodel.planning.sweep import Sweep
from magicdec.costmodel.plans.policy_table import PolicyTable

from ..inputs.scenario import Scenario
from ..render.tables import text_table
from .base import Result, Row, known

AUTOREGRESSIVE, NOTHING_FITS = -1, -2  # in `Sweep.choice`


@dataclass(frozen=True)
class Regret:
    """What a simple choice costs, compared with the map's.

    Attributes:
        choice: The simple choice, in words.
        extra_time: Additional time per token, on average over the cells that can be served. [ratio]
    """

    choice: str
    extra_time: float


@dataclass(frozen=True, repr=False, eq=False)
class SpeedupMap(Result):
    """Best strategies over batch size and context length.

    Attributes:
        scenario: Model and machine.
        sweep: The best of every draft in every cell.
        policy: The chosen strategies as the table that a plan carries.
        regrets: What simple choices would cost.
        output_len: New tokens per sequence. [tokens]
    """

    scenario: Scenario
    sweep: Sweep
    policy: PolicyTable
    regrets: tuple[Regret, ...]
    output_len: int = 128

    @property
    def typical(self) -> tuple[int, int]:
        """Batch size and context of the cell that gains most; where none gains, of the largest that can be served."""
        sizes = np.multiply.outer(self.sweep.batch_sizes, self.sweep.context_lens) / 1e12  # decides between equals
        merit = np.where(self.sweep.choice > NOTHING_FITS, self.sweep.speedup_low + sizes, -1.0)
        i, j = np.unravel_index(merit.argmax(), merit.shape)
        return int(self.sweep.batch_sizes[i]), int(self.sweep.context_lens[j])

    @property
    def headline(self) -> str:
        speculating = int((self.sweep.choice >= 0).sum())
        best = f"{float(np.nanmax(self.sweep.speedup)):.2f}x"
        return f"{self.scenario}: speculation pays in {speculating} of {self.sweep.choice.size} cells, at best {best}"

    def rows(self) -> list[Row]:
        found = self.sweep
        end_to_end, end_to_end_low = self.end_to_end(found.speedup), self.end_to_end(found.speedup_low)
        return [
            {
                "batch_size": int(batch),
                "context_len": int(context),
                "strategy": None if found.choice[i, j] == NOTHING_FITS else str(found.strategy(i, j)),
                "predicted_speedup": known(float(found.speedup[i, j])),
                "predicted_speedup_low": known(float(found.speedup_low[i, j])),
                "predicted_end_to_end_speedup": known(float(end_to_end[i, j])),
                "predicted_end_to_end_speedup_low": known(float(end_to_end_low[i, j])),
                "autoregressive_tpot_s": known(float(found.autoregressive_tpot_s[i, j])),
                "bound": str(found.bound[i, j]),
            }
            for i, batch in enumerate(found.batch_sizes)
            for j, context in enumerate(found.context_lens)
        ]

    def end_to_end(self, speedup: Array) -> Array:
        """Throughput over that without speculation, prompts included, of a decoding speedup in every cell. [ratio]"""
        found, where = self.sweep, self.scenario.deployment
        prompts_s = found.batch_sizes[:, None] / where.replicas * where.ttft_s(found.context_lens.astype(np.float64))
        plain_s = self.output_len * found.autoregressive_tpot_s
        return np.asarray((plain_s + prompts_s) / (plain_s / speedup + prompts_s))

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.scenario.deployment.target.name,
            "hardware": self.scenario.deployment.hardware.name,
            "num_gpus": self.scenario.deployment.num_gpus,
            "policy": to_document(self.policy),
            "cells": [dict(row) for row in self.rows()],
            "regrets": {one.choice: one.extra_time for one in self.regrets},
        }

    def __str__(self) -> str:
        return f"{self.headline}\n\n{self.text()}"

    def text(self) -> str:
        """The chosen strategy's speedup in every cell, a letter for each strategy, and what simple choices would cost."""
        letters = [*string.ascii_letters, *map(str, range(1000))]
        marks = ["-", *letters]  # the first strategy does not speculate
        table = self.policy
        rows = [
            [str(batch), *(self._cell(marks[table.choice[i][j]], i, j) for j in range(len(table.context_lens)))]
            for i, batch in enumerate(table.batch_sizes)
        ]
        gains = self.end_to_end(self.sweep.speedup)
        whole = [
            [str(batch), *("-" if self.sweep.choice[i, j] < 0 else f"{gains[i, j]:.2f}" for j in range(len(table.context_lens)))]
            for i, batch in enumerate(table.batch_sizes)
        ]
        nothing_fits = [".. does not fit"] if (self.sweep.choice == NOTHING_FITS).any() else []
        lines = [
            text_table(["batch \\ context", *map(format_tokens, table.context_lens)], rows),
            "",
            *(f"{mark}  {one}" for mark, one in zip(letters, table.strategies[1:], strict=False)),
            "-  no speculation",
            *nothing_fits,
            "",
            text_table([f"end to end, {self.output_len} out", *map(format_tokens, table.context_lens)], whole),
            "",
            *(
                f"{one.choice} takes {max(one.extra_time, 0.0):.0%} more time per token, on average over the map"
                for one in self.regrets
            ),
        ]
        return "\n".join(lines)

    def _cell(self, mark: str, i: int, j: int) -> str:
        if self.sweep.choice[i, j] == NOTHING_FITS:
            return ".."
        return mark if self.sweep.choice[i, j] == AUTOREGRESSIVE else f"{self.sweep.speedup[i, j]:.2f}{mark}"
