"""Predicted step times, speedup and memory: of one point, or of a grid of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.base.units import format_bytes, format_seconds, format_tokens
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.forward import Array
from magicdec.costmodel.passes.roofline import BOUNDS
from magicdec.costmodel.planning.requests import predicted_serving, requests_of
from magicdec.costmodel.planning.search import Candidate
from magicdec.costmodel.plans.plan import PredictedServing
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation
from magicdec.costmodel.speculation.rounds import Round

from ..inputs.scenario import Scenario
from ..render.sentences import prediction_notes, verdict
from ..render.tables import text_table, wrapped
from .base import Result, Row, known


@dataclass(frozen=True, repr=False, eq=False)
class Prediction(Result):
    """What speculative decoding takes and gains; a single point is a grid without axes.

    Attributes:
        scenario: Model and machine.
        draft: What drafts.
        batch_size, context_len, kv_budget: Arguments of the grid, which broadcast to `shape`. [sequences, tokens, tokens]
        evaluation: Everything predicted, as arrays that broadcast to `shape`.
        output_len: New tokens of a request whose prompt is the context; None leaves whole requests out. [tokens]
    """

    scenario: Scenario
    draft: Draft
    batch_size: Array
    context_len: Array
    kv_budget: Array
    evaluation: Evaluation
    output_len: int | None = None

    @property
    def round(self) -> Round:
        """A round of speculative decoding: step times, tokens per round, speedup, as arrays."""
        return self.evaluation.round

    @property
    def speedup(self) -> Array:
        """Autoregressive TPOT / speculative TPOT. [ratio]"""
        return self.round.speedup

    @property
    def speedup_low(self) -> Array:
        """Lower end of the interval on the speedup. [ratio]"""
        return self.evaluation.speedup_low

    @property
    def speedup_high(self) -> Array:
        """Upper end of the interval on the speedup. [ratio]"""
        return self.evaluation.speedup_high

    @property
    def gamma(self) -> Array:
        """Draft tokens per round; the best where none was given. [tokens]"""
        return self.round.gamma

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the grid; empty for a single point."""
        return self.round.speedup.shape

    @cached_property
    def points(self) -> tuple[Candidate, ...]:
        """Every point of the grid, in C order."""
        batches, gammas, budgets = (np.broadcast_to(axis, self.shape) for axis in (self.batch_size, self.gamma, self.kv_budget))
        return tuple(
            Candidate(
                self.draft.strategy(int(gammas[index]), float(budgets[index])) if self.draft.drafts else NO_SPECULATION,
                int(batches[index]),
                self.evaluation,
                index,
            )
            for index in np.ndindex(self.shape)
        )

    @property
    def contexts(self) -> list[int]:
        """Context of every point, in C order. [tokens]"""
        return [int(length) for length in np.broadcast_to(self.context_len, self.shape).ravel()]

    @property
    def headline(self) -> str:
        if self.shape:
            return f"{self.scenario}, {self.draft.kind} draft: a grid of {' x '.join(map(str, self.shape))} points"
        point = self.points[0]
        gain = "speedup unknown" if np.isnan(point.speedup) else f"{point.speedup:.2f}x"
        return f"{self.scenario}, batch {point.batch_size}, context {format_tokens(self.contexts[0])}: {point.strategy}, {gain}"

    def rows(self) -> list[Row]:
        return [
            {
                "batch_size": point.batch_size,
                "context_len": context_len,
                "strategy": str(point.strategy),
                "gamma": point.strategy.gamma,
                "kv_budget": point.strategy.kv_budget,
                **{name: known(value) for name, value in point.steps.items()},
                "predicted_speedup": known(point.speedup),
                "predicted_speedup_low": known(point.speedup_low),
                "predicted_speedup_high": known(point.speedup_high),
                "acceptance_rate": known(point.acceptance_rate),
                "bound": point.bound,
                "memory_bytes": point.memory_bytes,
                "fits_in_memory": point.fits_in_memory,
            }
            for point, context_len in zip(self.points, self.contexts, strict=True)
        ]

    def served(self, point: Candidate, context_len: int) -> PredictedServing | None:
        """Whole requests of a point; None without an output length, or if the acceptance is unknown."""
        if self.output_len is None or np.isnan(point.speedup):
            return None
        workload = Workload(point.batch_size, context_len, self.output_len)
        return predicted_serving(requests_of(self.scenario.deployment, workload, None), point)

    def to_dict(self) -> dict[str, object]:
        """One point as the document that `predict --json` prints; a grid as its shape and such a document for every point."""
        documents = [
            _document(self.scenario, point, context_len, self.draft.model)
            | {"serving": to_document(served) if (served := self.served(point, context_len)) else None}
            for point, context_len in zip(self.points, self.contexts, strict=True)
        ]
        return {"shape": list(self.shape), "points": documents} if self.shape else documents[0]

    def __str__(self) -> str:
        if self.shape:
            header = ["batch", "context", "strategy", "TPOT", "speedup"]
            cells = [
                [
                    str(point.batch_size),
                    format_tokens(context_len),
                    str(point.strategy),
                    _or_unknown(point.tpot_s, format_seconds(point.tpot_s) if point.tpot_s == point.tpot_s else ""),
                    _or_unknown(point.speedup, f"{point.speedup:.2f}x"),
                ]
                for point, context_len in zip(self.points, self.contexts, strict=True)
            ]
            return f"{self.headline}\n\n{text_table(header, cells)}"
        served = self.served(self.points[0], self.contexts[0])
        return _point_text(self.scenario, self.points[0], self.contexts[0], self.draft.model, served)


def _document(scenario: Scenario, point: Candidate, context_len: int, draft: TransformerConfig | None) -> dict[str, object]:
    """One point, as `predict --json` prints it."""
    memory, where = point.evaluation.memory, scenario.deployment
    drafts = point.strategy.draft_kind != "none"
    return {
        "predicted_speedup": known(point.speedup),
        "predicted_speedup_low": known(point.speedup_low),
        "predicted_speedup_high": known(point.speedup_high),
        **{name: known(value) for name, value in point.steps.items()},
        "predicted_step_intervals": {name: list(ends) for name, ends in point.step_intervals.items()},
        "predicted_ttft_s": float(where.ttft_s(context_len)),
        "throughput_tokens_per_s": known(point.throughput_tokens_per_s),
        "acceptance_rate": known(point.acceptance_rate),
        "minimum_useful_acceptance_rate": known(_break_even(point)) if drafts else None,
        "bound": point.bound,
        "breakdown": point.breakdown,
        "fits_in_memory": point.fits_in_memory,
        "memory_bytes": point.memory_bytes,
        "memory_breakdown": {name: point.at(getattr(memory, name)) for name in memory.__dataclass_fields__},
        "strategy": asdict(point.strategy),
        "workload": {"batch_size": point.batch_size, "context_len": context_len},
        "model": where.target.name,
        "hardware": where.hardware.name,
        "num_gpus": where.num_gpus,
        "tensor_parallel": where.tensor_parallel,
        "calibrated": where.hardware.calibrated,
        "notes": prediction_notes(scenario, point, context_len + 1, context_len, draft),
    }


def _break_even(point: Candidate) -> float:
    return point.at(point.evaluation.round.minimum_acceptance_rate())


def _point_text(
    scenario: Scenario, point: Candidate, context_len: int, draft: TransformerConfig | None, served: PredictedServing | None
) -> str:
    """One point for people: breakdown, round, memory, notes, verdict."""
    head = f"{scenario}, batch {point.batch_size}, context {format_tokens(context_len)}: {point.strategy}"
    rows = [
        [name, *(format_seconds(parts[bound]) for bound in BOUNDS), format_seconds(sum(parts.values()))]
        for name, parts in point.breakdown.items()
    ]
    lines = [head, "", text_table(["one step of", *BOUNDS, "total"], rows), "", _line("bottleneck", point.bound)]
    steps = point.steps
    if point.strategy.draft_kind != "none":
        rate, length, least = point.acceptance_rate, steps["predicted_mean_acceptance_length"], _break_even(point)
        given = "" if np.isnan(rate) else f" at acceptance rate {rate:.2f}"
        lines += [
            _line("tokens per round", _or_unknown(length, f"{length:.2f}") + given),
            _line("break-even", "no acceptance rate pays" if np.isnan(least) else f"acceptance rate {least:.2f}"),
        ]
    tpot, rate_words = point.tpot_s, f"{point.throughput_tokens_per_s:,.0f} tokens/s"
    speculative = "unknown" if np.isnan(tpot) else format_seconds(tpot)
    lines += [
        _line("TPOT", f"{speculative} (autoregressive {format_seconds(steps['predicted_target_step_s'])})"),
        _line("throughput", _or_unknown(tpot, rate_words)),
        _line("TTFT", f"{format_seconds(float(scenario.deployment.ttft_s(context_len)))} (no queueing)"),
        _line("end to end", _whole(served)),
        _line("memory per GPU", format_bytes(point.memory_bytes) + ("" if point.fits_in_memory else ", DOES NOT FIT")),
        *(f"note: {note}" for note in prediction_notes(scenario, point, context_len + 1, context_len, draft)),
    ]
    return "\n".join([wrapped(verdict(point, served=served)), "", *lines])


def _line(name: str, words: str) -> str:
    return f"{name:<17} {words}"


def _whole(served: PredictedServing | None) -> str:
    if served is None or served.predicted_speedup is None:
        return "not predicted: it needs an output length"
    interval = f"({served.predicted_speedup_low:.2f}x to {served.predicted_speedup_high:.2f}x)"
    return f"{served.predicted_speedup:.2f}x {interval}, {served.predicted_throughput_tokens_per_s:,.0f} tokens/s"


def _or_unknown(value: float, words: str) -> str:
    return "unknown" if np.isnan(value) else words
