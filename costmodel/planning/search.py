"""Which strategy wins for a workload: every candidate evaluated as arrays, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.errors import InputError, Problem, bad
from ..base.units import format_bytes, format_seconds
from ..passes.roofline import BOUNDS
from ..plans.strategy import NO_SPECULATION, Strategy
from ..plans.workload import RequestTrace, Workload
from ..speculation.acceptance import AcceptanceCurve
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation, evaluate_grid

GAMMAS = tuple(range(1, 11))
KV_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One strategy for one workload, priced.

    Attributes:
        strategy: What is done.
        batch_size: Sequences it is done for.
        evaluation: Everything predicted, arrays of the candidate's family.
        index: Where in those arrays this candidate is.
    """

    strategy: Strategy
    batch_size: int
    evaluation: Evaluation
    index: tuple[int, ...]

    def at(self, values: object) -> float:
        """This candidate's entry of an array of its family."""
        return float(np.broadcast_to(np.asarray(values), self.evaluation.round.speedup.shape)[self.index])

    @property
    def speedup(self) -> float:
        return self.at(self.evaluation.round.speedup)

    @property
    def speedup_low(self) -> float:
        return self.at(self.evaluation.speedup_low)

    @property
    def speedup_high(self) -> float:
        return self.at(self.evaluation.speedup_high)

    @property
    def tpot_s(self) -> float:
        return self.at(self.evaluation.round.speculative_tpot_s)

    @property
    def throughput_tokens_per_s(self) -> float:
        return self.batch_size / self.tpot_s

    @property
    def fits_in_memory(self) -> bool:
        return bool(self.at(self.evaluation.fits_in_memory))

    @property
    def memory_bytes(self) -> float:
        return self.at(self.evaluation.memory.total_bytes)

    @property
    def acceptance_rate(self) -> float:
        return self.at(self.evaluation.acceptance_rate)

    @property
    def bound(self) -> str:
        """What the plain decoding step spends most on."""
        parts = self.breakdown["target"]
        return max(BOUNDS, key=lambda name: parts[name])

    @property
    def steps(self) -> dict[str, float]:
        """Step times and yield of a round, by their names in the output."""
        r = self.evaluation.round
        return {
            "predicted_target_step_s": self.at(r.target_step_s),
            "predicted_verify_step_s": self.at(r.verify_step_s),
            "predicted_draft_step_s": self.at(r.draft_step_s),
            "predicted_gamma_draft_step_s": self.at(r.gamma_draft_step_s),
            "predicted_round_overhead_s": self.at(r.overhead_s),
            "predicted_mean_acceptance_length": self.at(r.mean_acceptance_length),
            "predicted_speculative_tpot_s": self.tpot_s,
        }

    @property
    def step_intervals(self) -> dict[str, tuple[float, float]]:
        """Low and high of each step time, from the residuals of the profile. [s]"""
        spread = 1 + self.evaluation.error
        return {name: (value / spread, value * spread) for name, value in self.steps.items() if name.endswith("step_s")}

    @property
    def breakdown(self) -> dict[str, dict[str, float]]:
        """Each pass by what it spends its time on. [s]"""
        passes = {"target": self.evaluation.target, "draft": self.evaluation.draft, "verify": self.evaluation.verify}
        if self.strategy.draft_kind == "none":
            passes = {"target": self.evaluation.target}
        return {name: {bound: self.at(part) for bound, part in step.parts.items()} for name, step in passes.items()}


def candidates(
    deployment: Deployment,
    drafts: Sequence[Draft],
    workload: Workload,
    *,
    trace: RequestTrace | None = None,
    batch_sizes: Sequence[int] = (),
    gammas: Sequence[int] = GAMMAS,
    kv_budgets: Sequence[int] = KV_BUDGETS,
    curves: tuple[AcceptanceCurve, ...] = (),
    acceptance_rate: float | None = None,
    acceptance_by_position: Sequence[float] | None = None,
) -> list[Candidate]:
    """Every strategy for a workload, plain decoding included, whether it fits or not and whether its acceptance is known or not.

    Args:
        deployment: Model and machine.
        drafts: Draft kinds and KV policies to consider.
        workload: What is asked; its batch size unless `batch_sizes` are given.
        trace: Mixed lengths instead of the workload's.
        batch_sizes: Batch sizes to consider. [sequences]
        gammas: Draft tokens per round to consider. [tokens]
        kv_budgets: KV budgets to consider for sparse policies; those beyond the context are left out. [tokens]
        curves: Where acceptance is looked up.
        acceptance_rate, acceptance_by_position: Given instead.
    """
    batches = np.array(list(batch_sizes) or [workload.batch_size])
    where: dict[str, Any] = {"context_len": workload.mean_context_len, "max_context_len": workload.max_context_len}
    if trace is not None:
        longest = float(trace.weights @ (np.array(trace.prompt_lens) + trace.output_lens))  # paged memory holds what is there
        where = {"context_len": trace.context_lens, "context_weights": trace.weights, "max_context_len": longest}
    plain = evaluate_grid(deployment, Draft(), batch_size=batches, **where)
    found = [Candidate(NO_SPECULATION, int(b), plain, (i,)) for i, b in enumerate(batches)]
    for draft in drafts:
        budgets = [k for k in kv_budgets if k < workload.context_len] or [min(kv_budgets)] if draft.sparse else [np.inf]
        priced = evaluate_grid(
            deployment,
            draft,
            batch_size=batches[:, None, None],
            gamma=np.array(gammas)[:, None],
            kv_budget=np.array(budgets, np.float64),
            acceptance_rate=acceptance_rate,
            acceptance_by_position=acceptance_by_position,
            curves=curves,
            **where,
        )
        found += [
            Candidate(draft.strategy(int(gamma), float(budget)), int(batch), priced, (i, j, k))
            for i, batch in enumerate(batches)
            for j, gamma in enumerate(gammas)
            for k, budget in enumerate(budgets)
        ]
    return found


def rank(found: Sequence[Candidate], *, objective: str = "latency", max_tpot_s: float | None = None) -> list[Candidate]:
    """Candidates of known acceptance that fit in memory and hold the latency limit, best first.

    Candidates are ordered by the lower end of what is predicted, so that a borrowed acceptance does not outrank a
    measured one lightly; speculation whose interval reaches below 1 ranks behind plain decoding.

    Args:
        found: What to choose from.
        objective: `latency`, seconds per token; `throughput`, tokens per second over all sequences, which also is the least cost.
        max_tpot_s: Most seconds per output token. [s]

    Raises:
        InputError: Nothing fits, or nothing is fast enough.
    """
    fitting = [candidate for candidate in found if candidate.fits_in_memory and not np.isnan(candidate.speedup)]
    if not fitting:
        least = min(candidate.memory_bytes for candidate in found)
        expected = "a batch and context that fit (more GPUs, a smaller batch or a shorter context)"
        raise bad("memory of one GPU", "", expected, f"at least {format_bytes(least)} needed")
    fast = [candidate for candidate in fitting if max_tpot_s is None or candidate.tpot_s <= max_tpot_s]
    if not fast:
        best = min(candidate.tpot_s for candidate in fitting)
        expected = f"at least {format_seconds(best)} per token, the fastest that is possible here"
        raise InputError(Problem("--max-tpot", "", expected, format_seconds(max_tpot_s or 0)))

    def merit(candidate: Candidate) -> tuple[float, ...]:
        tokens_per_s = candidate.throughput_tokens_per_s if objective in ("throughput", "cost") else 1 / candidate.tpot_s
        return (not is_safe(candidate), -tokens_per_s * candidate.speedup_low / candidate.speedup)

    return sorted(fast, key=merit)


def is_safe(candidate: Candidate) -> bool:
    """Plain decoding, or speculation whose whole interval is a gain."""
    return candidate.strategy.draft_kind == "none" or candidate.speedup_low > 1


def best_of_each(found: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of every kind of draft, in order."""
    first: dict[tuple[str | None, ...], Candidate] = {}
    for candidate in found:
        first.setdefault(candidate.strategy.family, candidate)
    return list(first.values())


def why_not(candidate: Candidate, best: Candidate, max_tpot_s: float | None = None) -> str:
    """Why a candidate is not the one to use, in a few words; empty for the best itself."""
    r = candidate.evaluation.round
    if candidate is best:
        return ""
    if not candidate.fits_in_memory:
        return f"does not fit: {format_bytes(candidate.memory_bytes)} a GPU"
    if np.isnan(candidate.speedup):
        least = candidate.at(r.minimum_acceptance_rate())
        return "never pays, whatever is accepted" if np.isnan(least) else f"acceptance unknown; pays from {least:.2f}"
    if max_tpot_s is not None and candidate.tpot_s > max_tpot_s:
        return f"over {format_seconds(max_tpot_s)} per token"
    if candidate.strategy.draft_kind == "none":
        return "slower than speculation"
    if not is_safe(candidate) and candidate.speedup > 1:
        return f"no sure gain: as little as {candidate.speedup_low:.2f}x"
    cost, length = candidate.at(r.draft_cost), candidate.at(r.mean_acceptance_length)
    return f"a draft step costs {cost:.2f} of the target's, {length:.2f} tokens a round"
