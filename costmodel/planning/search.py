"""Search for the best strategy of one workload: evaluate all candidates as arrays, then rank them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..base.errors import bad
from ..base.units import format_bytes, format_seconds
from ..passes.forward import Array
from ..passes.roofline import BOUNDS, Bound
from ..plans.strategy import NO_SPECULATION, Strategy
from ..plans.trace import RequestTrace
from ..plans.workload import Workload
from ..speculation.acceptance import AcceptanceCurve, measured_gammas
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation, evaluate_grid

TIE = 0.02  # relative difference of speedups that predictions cannot tell apart
GAMMAS = tuple(range(1, 11))
KV_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One strategy for one batch size, with its predictions.

    Attributes:
        strategy: The strategy.
        batch_size: Sequences over all replicas.
        evaluation: Predictions of all candidates with the same draft.
        index: Position of this candidate in the arrays of `evaluation`.
    """

    strategy: Strategy
    batch_size: int
    evaluation: Evaluation
    index: tuple[int, ...]

    def at(self, values: object) -> float:
        """Return this candidate's entry of an array of `evaluation`."""
        array, shape = np.asarray(values), self.evaluation.round.speedup.shape
        return float((array if array.shape == shape else np.broadcast_to(array, shape))[self.index])

    @property
    def speedup(self) -> float:
        """Speedup over autoregressive decoding. [ratio]"""
        return self.at(self.evaluation.round.speedup)

    @property
    def speedup_low(self) -> float:
        """Lower end of the speedup interval. [ratio]"""
        return self.at(self.evaluation.speedup_low)

    @property
    def speedup_high(self) -> float:
        """Upper end of the speedup interval. [ratio]"""
        return self.at(self.evaluation.speedup_high)

    @property
    def tpot_s(self) -> float:
        """Time per output token of a sequence. [s]"""
        return self.at(self.evaluation.round.speculative_tpot_s)

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output rate of the full batch, prefill excluded. [tokens/s]"""
        return self.batch_size / self.tpot_s

    @property
    def fits_in_memory(self) -> bool:
        """Whether the batch fits in the memory of each GPU."""
        return bool(self.at(self.evaluation.fits_in_memory))

    @property
    def memory_bytes(self) -> float:
        """Memory of one GPU. [bytes]"""
        return self.at(self.evaluation.memory.total_bytes)

    @property
    def acceptance_rate(self) -> float:
        """Acceptance rate; NaN if unknown. [0-1]"""
        return self.at(self.evaluation.acceptance_rate)

    @property
    def bound(self) -> Bound:
        """Largest part of an autoregressive step, one of `roofline.BOUNDS`."""
        parts = self.breakdown["target"]
        return max(BOUNDS, key=lambda name: parts[name])

    @property
    def steps(self) -> dict[str, float]:
        """Step times [s] and tokens per round, by their keys in plans and JSON output."""
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
        """Interval of each step time, from the residuals of the profile. [s]"""
        spread = 1 + self.evaluation.error
        return {name: (value / spread, value * spread) for name, value in self.steps.items() if name.endswith("step_s")}

    @property
    def breakdown(self) -> dict[str, dict[str, float]]:
        """Time of each pass by part. [s]"""
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
    exact_output: bool = False,
) -> list[Candidate]:
    """Evaluate every strategy for a workload, including no speculation, memory misfits and unknown acceptance.

    Args:
        deployment: Model and hardware.
        drafts: Draft kinds and KV policies to consider.
        workload: The workload.
        trace: Request lengths to use instead of the workload's.
        batch_sizes: Batch sizes to consider; the workload's if empty. [sequences]
        gammas: Draft lengths to consider; of those that `curves` were measured with, if any is. [tokens]
        kv_budgets: KV budgets to consider for sparse policies; those longer than the context are skipped. [tokens]
        curves: Measured acceptance.
        acceptance_rate, acceptance_by_position: Known acceptance, instead of `curves`. [0-1]
        exact_output: Every request ends after exactly the workload's output length, so that its last round is cut off.

    Raises:
        InputError: A value is out of range, or a draft model has a different vocabulary.
    """
    batches = np.array(list(batch_sizes) or [workload.batch_size])
    context_len: ArrayLike = workload.mean_context_len
    context_weights: Array | None = None
    max_context_len: float = workload.max_context_len
    if trace is not None:
        context_len, context_weights = trace.groups()
        # A paged KV cache holds the mean of the final lengths, not the maximum.
        max_context_len = float(trace.weights @ trace.max_context_lens)
    autoregressive = evaluate_grid(
        deployment,
        Draft(),
        batch_size=batches,
        context_len=context_len,
        context_weights=context_weights,
        max_context_len=max_context_len,
    )
    found = [Candidate(NO_SPECULATION, int(b), autoregressive, (i,)) for i, b in enumerate(batches)]
    for draft in drafts:
        lengths = tuple(gammas)
        if acceptance_rate is None and acceptance_by_position is None:
            lengths = measured_gammas(curves, deployment.target.name, draft, deployment.task, gammas)
        budgets = [k for k in kv_budgets if k < workload.context_len] or [min(kv_budgets)] if draft.sparse else [np.inf]
        evaluation = evaluate_grid(
            deployment,
            draft,
            batch_size=batches[:, None, None],
            gamma=np.array(lengths)[:, None],
            kv_budget=np.array(budgets, np.float64),
            acceptance_rate=acceptance_rate,
            acceptance_by_position=acceptance_by_position,
            curves=curves,
            output_len=workload.output_len if exact_output else None,
            context_len=context_len,
            context_weights=context_weights,
            max_context_len=max_context_len,
        )
        found += [
            Candidate(draft.strategy(int(gamma), float(budget)), int(batch), evaluation, (i, j, k))
            for i, batch in enumerate(batches)
            for j, gamma in enumerate(lengths)
            for k, budget in enumerate(budgets)
        ]
    return found


def rank(
    found: Sequence[Candidate], *, objective: str = "latency", max_tpot_s: float | None = None, cautious: bool = True
) -> list[Candidate]:
    """Sort candidates, best first; drop those that do not fit, miss the latency limit, or have unknown acceptance.

    Candidates are compared by the lower end of their interval, so that assumed acceptance rarely outranks measured
    acceptance. Speculation with an interval that reaches below 1 ranks after no speculation.

    Args:
        found: The candidates.
        objective: `latency`: time per output token. `throughput` or `cost`: output rate over all sequences; the cheapest token
            is the one at the highest rate.
        max_tpot_s: Limit on the time per output token. [s]
        cautious: Compare by the lower ends of intervals; otherwise by what is expected.

    Raises:
        InputError: No candidate fits in memory, or none meets the latency limit.
    """
    fitting = [candidate for candidate in found if candidate.fits_in_memory and not np.isnan(candidate.speedup)]
    if not fitting:
        least = min(candidate.memory_bytes for candidate in found)
        expected = "a workload that fits (use more GPUs, a smaller batch or a shorter context)"
        raise bad("memory of one GPU", "", expected, f"at least {format_bytes(least)} required")
    fast = [candidate for candidate in fitting if max_tpot_s is None or candidate.tpot_s <= max_tpot_s]
    if not fast:
        best = min(candidate.tpot_s for candidate in fitting)
        ratio = f"{best / max_tpot_s:.2f} times the limit" if max_tpot_s else ""
        expected = f"at least {format_seconds(best)} per output token, the fastest candidate ({ratio})"
        raise bad("max_tpot_s", "", expected, format_seconds(max_tpot_s or 0))

    def merit(candidate: Candidate) -> tuple[float, ...]:
        tokens_per_s = candidate.throughput_tokens_per_s if objective in ("throughput", "cost") else 1 / candidate.tpot_s
        if not cautious:
            return (-tokens_per_s,)
        return (not is_safe(candidate), -tokens_per_s * candidate.speedup_low / candidate.speedup)

    return sorted(fast, key=merit)


def is_safe(candidate: Candidate) -> bool:
    """True for no speculation, and for speculation with a speedup interval above 1."""
    return candidate.strategy.draft_kind == "none" or candidate.speedup_low > 1


def best_of_each(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate of every draft family, in order."""
    first: dict[tuple[str | None, ...], Candidate] = {}
    for candidate in found:
        first.setdefault(candidate.strategy.family, candidate)
    return list(first.values())


def why_not(candidate: Candidate, best: Candidate, max_tpot_s: float | None = None) -> str:
    """Explain why a candidate was not chosen, in a few words.

    Args:
        candidate: The candidate.
        best: The chosen candidate.
        max_tpot_s: Limit on the time per output token. [s]
    """
    r = candidate.evaluation.round
    if candidate is best:
        return "chosen"
    if not candidate.fits_in_memory:
        return f"does not fit: {format_bytes(candidate.memory_bytes)} per GPU"
    if np.isnan(candidate.speedup):
        least = candidate.at(r.minimum_acceptance_rate())
        return "slower at any acceptance rate" if np.isnan(least) else f"acceptance rate unknown, must be at least {least:.2f}"
    if max_tpot_s is not None and candidate.tpot_s > max_tpot_s:
        return f"TPOT {format_seconds(candidate.tpot_s)}, above {format_seconds(max_tpot_s)}"
    if candidate.strategy.draft_kind == "none":
        return "slower"
    if not is_safe(candidate) and candidate.speedup > 1:
        return f"uncertain: perhaps only {candidate.speedup_low:.2f}x"
    if candidate.batch_size != best.batch_size:
        return f"fewer tokens/s at batch {candidate.batch_size}"
    if abs(candidate.speedup_low / best.speedup_low - 1) < TIE:
        return f"tie: within {TIE:.0%} of the chosen one"
    return "less certain: its low end is lower" if candidate.speedup >= best.speedup else "slower"
