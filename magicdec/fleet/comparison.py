"""Rows of a comparison: machines, engines, models and drafts that serve the same requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.planning.search import Candidate
from magicdec.costmodel.plans.workload import Workload

from ..render.tables import text_table, wrapped
from ..results.base import Result, Row
from ..results.plan import PlanResult

MUCH = 0.3  # share of a step on communication above which fewer GPUs should share a replica
Curve = tuple[str, list[tuple[float, float]], list[tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Compared:
    """One combination.

    Attributes:
        model, hardware, engine: As the user named them; no engine for that of the machine's profile.
        num_gpus, tensor_parallel: GPUs in all, and those that share one replica.
        result: The plan at the cheapest batch size within the limits; None if there is none.
        problem: Why there is none.
    """

    model: str
    hardware: str
    num_gpus: int
    tensor_parallel: int
    engine: str | None
    result: PlanResult | None
    problem: str

    @property
    def basis(self) -> str:
        """What the prediction rests on: `calibrated`, `assumed` engine overheads on measured kernels, or `datasheet`."""
        return "" if self.result is None else _basis(self.result.requests.deployment.hardware)

    @property
    def machine(self) -> str:
        """The machine in words."""
        return f"{self.num_gpus} x {self.hardware}" if self.num_gpus > 1 else self.hardware

    @property
    def communication_share(self) -> float:
        """Share of a decoding step that GPUs spend on communication. [0-1]"""
        if self.result is None:
            return 0.0
        parts = self.result.plan.prediction.breakdown.get("target", {})
        return parts.get("communication", 0.0) / sum(parts.values()) if parts else 0.0

    def gpus_for(self, requests_per_s: float) -> int | None:
        """GPUs that a load takes, in whole replicas; None if nothing is served. [1/s]"""
        if self.result is None:
            return None
        replica = _rate(self.result) / self.result.plan.workload.output_len / (self.num_gpus // self.tensor_parallel)
        return math.ceil(requests_per_s / replica) * self.tensor_parallel


def _basis(hardware: HardwareProfile) -> str:
    if hardware.calibration.fit_of("engine") is not None:
        return "calibrated"
    return "assumed" if hardware.calibrated else "datasheet"


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Result):
    """Combinations that serve the same requests, cheapest first.

    Attributes:
        compared: All combinations, in the order in which they were asked for.
        workload: The requests.
        max_tpot_s: Limit on the time per output token. [s]
        requests_per_s: Load that the rows count GPUs for. [1/s]
    """

    compared: tuple[Compared, ...]
    workload: Workload
    max_tpot_s: float | None = None
    requests_per_s: float | None = None

    @property
    def ranked(self) -> list[Compared]:
        """Cheapest first; without prices, the highest end-to-end rate of a GPU first. Those that cannot serve are last."""
        return sorted(self.compared, key=_merit)

    @property
    def headline(self) -> str:
        best = self.ranked[0]
        assert best.result is not None
        w = self.workload
        lengths = f"{w.context_len:,} tokens in, {w.output_len:,} out"
        cost = best.result.plan.cost
        what = (
            f"${cost.per_million_tokens:.3f} per million tokens"
            if cost
            else f"{_rate(best.result):,.0f} output tokens/s end to end"
        )
        return f"{lengths}: {_label(best, self._varies())} is {'cheapest' if cost else 'best per GPU'}, {what}"

    def rows(self) -> list[Row]:
        load = self.requests_per_s
        return [{**_row(row), **({"gpus_for_load": row.gpus_for(load)} if load else {})} for row in self.ranked]

    def to_dict(self) -> dict[str, object]:
        w = self.workload
        return {
            "context_len": w.context_len,
            "output_len": w.output_len,
            "max_tpot_s": self.max_tpot_s,
            "rows": [dict(row) for row in self.rows()],
        }

    def curves(self) -> list[Curve]:
        """(label, points with, points without speculation) of each: TPOT and output rate by batch size. [s, tokens/s]"""
        varies = self._varies()
        return [(_label(row, varies), *_points(row.result.candidates)) for row in self.ranked if row.result is not None]

    def _varies(self) -> tuple[str, ...]:
        return tuple(
            name for name in ("model", "tensor_parallel", "engine") if len({getattr(row, name) for row in self.compared}) > 1
        )

    def __str__(self) -> str:
        varies, served = self._varies(), [row for row in self.ranked if row.result is not None]
        names = ["TP" if name == "tensor_parallel" else name for name in varies]
        header = ["machine", *names, "draft", "γ", "batch", "TPOT", "decode", "low", "e2e", "low"]
        lines = [wrapped(self.headline), "", text_table(header, [_speeds(row, varies) for row in served])]
        priced = any(row.result and row.result.plan.cost for row in served)
        costs = ["$/h", "$/M in", "$/M out", "$/M e2e", "without"] if priced else []
        load = self.requests_per_s
        header = ["machine", *names, "TTFT", "tokens/s", *costs, *(["GPUs"] if load else []), "basis"]
        lines += ["", text_table(header, [_costs(row, varies, load) for row in served])]
        if load:
            lines.append(f"GPUs: whole replicas for {load:g} requests/s")
        for row in served:
            if row.communication_share > MUCH:
                share = f"communication takes {row.communication_share:.0%} of a step"
                lines.append(wrapped(f"{row.machine} at TP {row.tensor_parallel}: {share}; more replicas may serve more", "  "))
        lines += [wrapped(f"{row.machine}: {row.problem}", "  ") for row in self.ranked if row.result is None]
        return "\n".join(lines)


def _rate(result: PlanResult) -> float:
    assert result.plan.serving is not None
    return result.plan.serving.predicted_throughput_tokens_per_s


def _merit(row: Compared) -> tuple[bool, float]:
    if row.result is None:
        return True, 0.0
    cost = row.result.plan.cost
    return False, cost.per_million_tokens if cost else -_rate(row.result) / row.num_gpus


def _label(row: Compared, varies: Sequence[str]) -> str:
    words = [("TP " if name == "tensor_parallel" else "") + str(getattr(row, name) or "-") for name in varies]
    return ", ".join([row.machine, *words])


def _row(row: Compared) -> Row:
    head: Row = {
        "model": row.model,
        "hardware": row.hardware,
        "num_gpus": row.num_gpus,
        "tensor_parallel": row.tensor_parallel,
        "engine": row.engine,
        "basis": row.basis or None,
        "problem": row.problem or None,
    }
    if row.result is None:
        return head
    plan, served, cost = row.result.plan, row.result.plan.serving, row.result.plan.cost
    assert served is not None
    price = cost.gpu_price * row.num_gpus if cost else None
    return {
        **head,
        "strategy": str(plan.strategy),
        "batch_size": plan.workload.batch_size,
        "predicted_ttft_s": served.predicted_ttft_s,
        "predicted_tpot_s": plan.prediction.predicted_speculative_tpot_s,
        "predicted_speedup": plan.prediction.predicted_speedup,
        "predicted_speedup_low": plan.prediction.predicted_speedup_low,
        "predicted_speedup_high": plan.prediction.predicted_speedup_high,
        "predicted_end_to_end_speedup": served.predicted_speedup,
        "predicted_end_to_end_speedup_low": served.predicted_speedup_low,
        "predicted_end_to_end_speedup_high": served.predicted_speedup_high,
        "predicted_throughput_tokens_per_s": served.predicted_throughput_tokens_per_s,
        "prefill_share": served.prefill_share,
        "price_per_hour": price,
        "cost_per_million_input_tokens": cost.per_million_input_tokens if cost else None,
        "cost_per_million_output_tokens": cost.per_million_output_tokens if cost else None,
        "cost_per_million_tokens": cost.per_million_tokens if cost else None,
        "plain_cost_per_million_tokens": cost.plain_per_million_tokens if cost else None,
        "communication_share": row.communication_share,
        "memory_bytes": plan.prediction.predicted_memory_bytes,
    }


def _speeds(row: Compared, varies: Sequence[str]) -> list[str]:
    assert row.result is not None
    plan, served = row.result.plan, row.result.plan.serving
    assert served is not None
    return [
        row.machine,
        *(str(getattr(row, name) or "-") for name in varies),
        plan.strategy.short_text,
        str(plan.strategy.gamma or "-"),
        str(plan.workload.batch_size),
        format_seconds(plan.prediction.predicted_speculative_tpot_s),
        f"{plan.prediction.predicted_speedup:.2f}x",
        f"{plan.prediction.predicted_speedup_low:.2f}",
        f"{served.predicted_speedup:.2f}x",
        f"{served.predicted_speedup_low:.2f}",
    ]


def _costs(row: Compared, varies: Sequence[str], load: float | None) -> list[str]:
    assert row.result is not None
    cost, served = row.result.plan.cost, row.result.plan.serving
    assert served is not None
    costs = []
    if cost is not None:
        costs = [
            f"{cost.gpu_price * row.num_gpus:.2f}",
            f"{cost.per_million_input_tokens:.3f}",
            f"{cost.per_million_output_tokens:.3f}",
            f"{cost.per_million_tokens:.3f}",
            f"{cost.plain_per_million_tokens:.3f}",
        ]
    return [
        row.machine,
        *(str(getattr(row, name) or "-") for name in varies),
        format_seconds(served.predicted_ttft_s),
        f"{_rate(row.result):,.0f}",
        *costs,
        *([str(row.gpus_for(load))] if load else []),
        row.basis,
    ]


def _points(candidates: Sequence[Candidate]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The best candidate with speculation and the one without, at every batch size that fits."""
    fast: dict[int, Candidate] = {}
    slow: dict[int, Candidate] = {}
    for c in candidates:
        if not c.fits_in_memory or np.isnan(c.speedup):
            continue
        group = fast if c.strategy.gamma else slow
        if c.batch_size not in group or c.speedup_low > group[c.batch_size].speedup_low:
            group[c.batch_size] = c
    with_draft, without = ([(group[b].tpot_s, group[b].throughput_tokens_per_s) for b in sorted(group)] for group in (fast, slow))
    return with_draft, without
