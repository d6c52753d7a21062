"""The chosen strategy, the plan that carries it, and what it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magicdec.costmodel.base.names import shortened
from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.base.units import format_seconds, format_tokens
from magicdec.costmodel.planning.requests import Requests
from magicdec.costmodel.planning.search import Candidate, best_of_each, why_not
from magicdec.costmodel.plans.plan import Plan, PredictedRound, PredictedServing, render_plan
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload

from ..files.writing import write_text
from ..render.sentences import verdict
from ..render.tables import text_table, wrapped
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
        requests: The requests to serve: lengths and prefill.
        runner_up: The best candidate of another kind for the same batch size.
        speedup_map: Best strategies over batch size and context, if asked for; its table is in the plan.
        max_tpot_s: The limit that was to be held. [s]
        gpu_price: Price of a GPU, if given. [dollars per hour]
    """

    plan: Plan
    ranked: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    requests: Requests
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
                "predicted_end_to_end_speedup": self._end_to_end(c)[1],
                "predicted_end_to_end_speedup_low": self._end_to_end(c)[0],
                "predicted_end_to_end_speedup_high": self._end_to_end(c)[2],
                "cost_per_million_tokens": known(self._cost(c)),
                "memory_bytes": c.memory_bytes,
                "why_not": why_not(c, self.ranked[0], self.max_tpot_s),
            }
            for c in self.shown
        ]

    def _end_to_end(self, c: Candidate) -> tuple[float | None, float | None, float | None]:
        return (None, None, None) if np.isnan(c.speedup) else self.requests.speedup(c)

    def to_dict(self) -> dict[str, object]:
        return dict(to_document(self.plan))

    def document(self) -> dict[str, object]:
        """The plan, and the candidates with the reason why each was not chosen."""
        return {**self.to_dict(), "candidates": [dict(row) for row in self.rows()]}

    def __str__(self) -> str:
        served = self.plan.serving
        lines = [
            wrapped(verdict(self.ranked[0], self.runner_up, served) + self._unknown()),
            "",
            wrapped(self._point(), "  "),
            self._table(),
        ]
        if served is not None:
            lines += ["", *(wrapped(line, "  ") for line in self._served(served))]
        if self.speedup_map is not None:
            lines += ["", self.speedup_map.text()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.plan.notes)])

    def _unknown(self) -> str:
        """From which acceptance rate drafts pay whose acceptance is not known, if nothing else speculates."""
        if self.plan.strategy.gamma:
            return ""
        unknown = [c for c in self.shown if np.isnan(c.speedup) and c.fits_in_memory]
        least = [(c.strategy.short_text, c.at(c.evaluation.round.minimum_acceptance_rate())) for c in unknown]
        pays = [f"{name} from {rate:.2f}" for name, rate in least if rate == rate]
        return f" Drafts whose acceptance rate is not known would pay: {', '.join(pays)}." if pays else ""

    def _point(self) -> str:
        """What was planned for, in words."""
        where, w = self.plan.hardware, self.plan.workload
        layout = f", {where.num_gpus // where.tensor_parallel} replicas of {where.tensor_parallel}"
        spread = layout if where.tensor_parallel < where.num_gpus else ""
        gpus = f"{where.num_gpus} x " if where.num_gpus > 1 else ""
        lengths = f"context {format_tokens(w.context_len)}, output {format_tokens(w.output_len)}"
        return f"{self.plan.target.name} on {gpus}{where.name}{spread}, batch {w.batch_size}, {lengths}:"

    def _served(self, served: PredictedServing) -> list[str]:
        """Whole requests, and what they cost."""
        workload, cost = self.plan.workload, self.plan.cost
        fast, slow = served.predicted_throughput_tokens_per_s, served.predicted_plain_throughput_tokens_per_s
        request, plain = format_seconds(served.predicted_request_s), format_seconds(served.predicted_plain_request_s)
        queue = f"{format_seconds(served.queue_s)} of queueing in it" if served.queue_s else "no queueing"
        cached = f", {served.cached_share:.0%} of the prompt cached" if served.cached_share else ""
        assumed = " (assumed)" if served.output_len_assumed else ""
        lines = [
            f"TTFT {format_seconds(served.predicted_ttft_s)} ({queue}{cached})",
            f"a request of {workload.output_len} output tokens{assumed} takes {request}; without speculation {plain}",
            f"end-to-end throughput: {fast:,.0f} against {slow:,.0f} tokens/s ({fast / slow:.2f}x); "
            f"prefill takes {served.prefill_share:.0%} of the time",
        ]
        if cost is not None:
            lines.append(
                f"cost end to end: ${cost.per_million_tokens:.3f} per million tokens (without speculation "
                f"${cost.plain_per_million_tokens:.3f}); ${cost.per_million_input_tokens:.3f} per million input tokens, "
                f"${cost.per_million_output_tokens:.3f} per million output tokens"
            )
        if self.plan.strategy.gamma and self.plan.hardware.num_gpus > 1:
            lines.append(f"the same load takes {1 - slow / fast:.0%} fewer GPUs")
        return lines

    def _table(self) -> str:
        """The best of every kind, and why each is not the one to use; ranked by the low end of the decoding speedup."""
        has_price, best = self.gpu_price is not None, self.ranked[0]
        batches = len({c.batch_size for c in self.shown}) > 1
        header = ["draft, best first", "γ", *(["batch"] if batches else []), "TPOT", "decode", "low", "e2e", "low"]
        header += [*(["$/M"] if has_price else []), "GB"]
        rows = [
            [
                f"{number} {shortened(c.strategy.short_text, 27)}",
                str(c.strategy.gamma or "-"),
                *([str(c.batch_size)] if batches else []),
                *self._speeds(c),
                f"{c.memory_bytes / 1e9:.1f}",
            ]
            for number, c in enumerate(self.shown, start=1)
        ]
        reasons = [f"{number}: {why_not(c, best, self.max_tpot_s)}" for number, c in enumerate(self.shown, start=1)]
        return "\n".join([text_table(header, rows), *(wrapped(reason, "   ") for reason in reasons)])

    def _speeds(self, c: Candidate) -> Sequence[str]:
        has_price = self.gpu_price is not None
        if np.isnan(c.speedup):
            return ["?"] * (6 if has_price else 5)
        low, middle, _ = self.requests.speedup(c)
        cost = [f"{self._cost(c):.2f}"] if has_price else []
        return [
            format_seconds(c.tpot_s),
            f"{c.speedup:.2f}x",
            f"{c.speedup_low:.2f}",
            f"{middle:.2f}x",
            f"{low:.2f}",
            *cost,
        ]

    def _cost(self, c: Candidate) -> float:
        """Dollars per million tokens end to end, prompts and outputs counted alike; nan without a price. [dollars]"""
        if self.gpu_price is None or np.isnan(c.tpot_s):
            return float("nan")
        return self.requests.cost(c.batch_size, c.tpot_s, self.gpu_price).per_million_tokens
