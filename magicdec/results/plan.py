"""The chosen strategy, the plan that carries it, and what it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.base.units import format_bytes, format_seconds
from magicdec.costmodel.planning.search import Candidate, best_of_each, why_not
from magicdec.costmodel.plans.plan import Plan, PredictedRound, render_plan
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload

from ..files.writing import write_text
from ..render.sentences import verdict
from ..render.tables import text_table
from .base import Result, Row, known

if TYPE_CHECKING:
    from .speedup_map import SpeedupMap


@dataclass(frozen=True, repr=False, eq=False)
class PlanResult(Result):
    """A plan and what it was chosen from.

    Attributes:
        plan: What `magicdec run` and `magicdec export` take.
        ranked: Candidates that fit in memory and hold the limits, best first; the first one is the plan's.
        candidates: All candidates.
        runner_up: The best candidate of another kind for the same batch size.
        speedup_map: Best strategies over batch size and context, if asked for; its table is in the plan.
        max_tpot_s: The limit that was to be held. [s]
        gpu_price: Price of a GPU, if given. [dollars per hour]
    """

    plan: Plan
    ranked: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    runner_up: Candidate | None = None
    speedup_map: SpeedupMap | None = None
    max_tpot_s: float | None = None
    gpu_price: float | None = None

    @property
    def strategy(self) -> Strategy:
        """The chosen strategy."""
        return self.plan.strategy

    @property
    def prediction(self) -> PredictedRound:
        """What it is predicted to take and gain."""
        return self.plan.prediction

    @property
    def workload(self) -> Workload:
        """What was planned for."""
        return self.plan.workload

    def save(self, path: str | Path) -> None:
        """Write the plan file.

        Raises:
            InputError: It cannot be written.
        """
        write_text(str(path), render_plan(self.plan))

    @property
    def shown(self) -> list[Candidate]:
        """The best candidate of every kind; of those that do not qualify the first."""
        best = self.ranked[0]
        others = [c for c in self.candidates if c not in self.ranked and c.batch_size == best.batch_size]
        return best_of_each([*self.ranked, *others])

    @property
    def headline(self) -> str:
        where, w = self.plan.hardware, self.plan.workload
        place = f"{self.plan.target.name} on {where.num_gpus} x {where.name}, batch {w.batch_size}, context {w.context_len}"
        if self.plan.strategy.draft_kind == "none":
            return f"{place}: {self.plan.strategy}"
        return f"{place}: {self.plan.strategy}, decodes {self.plan.prediction.predicted_speedup:.2f}x as fast"

    def rows(self) -> list[Row]:
        return [
            {
                "strategy": str(c.strategy),
                "batch_size": c.batch_size,
                "predicted_tpot_s": known(c.tpot_s),
                "predicted_throughput_tokens_per_s": known(c.throughput_tokens_per_s),
                "predicted_speedup": known(c.speedup),
                "predicted_speedup_low": known(c.speedup_low),
                "predicted_speedup_high": known(c.speedup_high),
                "cost_per_million_tokens": known(self._cost(c)),
                "memory_bytes": c.memory_bytes,
                "why_not": why_not(c, self.ranked[0], self.max_tpot_s),
            }
            for c in self.shown
        ]

    def to_dict(self) -> dict[str, object]:
        return dict(to_document(self.plan))

    def __str__(self) -> str:
        served, output_len = self.plan.serving, self.plan.workload.output_len
        lines = [self._table()]
        if self.speedup_map is not None:
            lines += ["", self.speedup_map.text()]
        if served is not None:
            fast, slow = served.predicted_throughput_tokens_per_s, served.predicted_plain_throughput_tokens_per_s
            request, autoregressive = format_seconds(served.predicted_request_s), format_seconds(served.predicted_plain_request_s)
            lines += [
                "",
                f"TTFT {format_seconds(served.predicted_ttft_s)} (no queueing)",
                f"a request of {output_len} output tokens takes {request}; without speculation {autoregressive}",
                f"end-to-end throughput: {fast:,.0f} against {slow:,.0f} tokens/s ({fast / slow:.2f}x); "
                f"prefill takes {served.prefill_share:.0%} of the time",
            ]
        lines += [f"note: {note}" for note in self.plan.notes]
        return "\n".join([*lines, "", verdict(self.ranked[0], self.runner_up, served)])

    def _table(self) -> str:
        """The best of every kind, and why each is not the one to use."""
        has_price = self.gpu_price is not None
        header = ["strategy, best first", "batch", "TPOT", "tokens/s", "speedup", *(["$ per M tokens"] if has_price else [])]
        rows = [
            [
                str(c.strategy),
                str(c.batch_size),
                *self._speeds(c),
                format_bytes(c.memory_bytes),
                why_not(c, self.ranked[0], self.max_tpot_s),
            ]
            for c in self.shown
        ]
        return text_table([*header, "memory per GPU", "why not"], rows)

    def _speeds(self, c: Candidate) -> Sequence[str]:
        has_price = self.gpu_price is not None
        if np.isnan(c.speedup):
            return ["?"] * (4 if has_price else 3)
        cost = [f"{self._cost(c):.2f}"] if has_price else []
        return [format_seconds(c.tpot_s), f"{c.throughput_tokens_per_s:.0f}", f"{c.speedup:.2f}x", *cost]

    def _cost(self, c: Candidate) -> float:
        """Dollars per million output tokens while decoding; nan without a price. [dollars]"""
        if self.gpu_price is None:
            return float("nan")
        return self.gpu_price * self.plan.hardware.num_gpus / 3600 / c.throughput_tokens_per_s * 1e6
