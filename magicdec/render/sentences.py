"""Sentences that sum a prediction up."""

from __future__ import annotations

import numpy as np

from magicdec.costmodel.base.units import format_seconds
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.search import Candidate
from magicdec.costmodel.plans.plan import PredictedServing

from ..inputs.scenario import Scenario

BOUND_WORDS = {
    "compute": "arithmetic",
    "weights": "weight reads",
    "kv": "KV-cache reads",
    "communication": "communication between GPUs",
    "overhead": "launch overhead",
}

TITLES = {"mtp": "MTP", "eagle3": "EAGLE-3", "ngram": "N-gram"}  # names of draft kinds at the start of a sentence


def speedup_words(low: float, middle: float, high: float) -> str:
    """A speedup with its interval: `1.69x (1.60x to 1.78x)`."""
    return f"{middle:.2f}x ({low:.2f}x to {high:.2f}x)"


def verdict(best: Candidate, runner_up: Candidate | None = None, served: PredictedServing | None = None) -> str:
    """The sentence a planner needs: whether to speculate, what it gains, and why.

    Args:
        best: The strategy in question; of a plan, the one it chose.
        runner_up: The best strategy of another kind, if there is one.
        served: Whole requests with that strategy; the speedup from end to end is stated beside that of decoding.
    """
    why = _why(best)
    speedup = f"{best.speedup:.2f}x faster decode (likely {best.speedup_low:.2f}x to {best.speedup_high:.2f}x)"
    if np.isnan(best.speedup):
        return f"The acceptance rate of {best.strategy} is not known here: {_break_even(best)}; {why}."
    if not best.fits_in_memory:
        return f"It does not fit in memory. Use more GPUs, a smaller batch or a shorter context. If it fitted: {best.speedup:.2f}x."
    if best.strategy.draft_kind == "none":
        if runner_up is None:
            return f"TPOT {format_seconds(best.tpot_s)} without speculation: {why}."
        other = f"the best draft, {runner_up.strategy}, would decode at {runner_up.speedup:.2f}x"
        gain = "slower" if runner_up.speedup < 1 else f"perhaps only {runner_up.speedup_low:.2f}x"
        return f"Do not speculate: {other}, {gain}. {_sentence(why)}."
    if best.speedup_low > 1:
        return f"Speculate: {speedup}{_whole(served)}. {_sentence(str(best.strategy))}; {why}."
    if best.speedup_high < 1:
        return f"Do not speculate: {best.speedup:.2f}x decode (likely up to {best.speedup_high:.2f}x) with {best.strategy}; {why}."
    interval = speedup_words(best.speedup_low, best.speedup, best.speedup_high)
    return f"Within the uncertainty, do not speculate: decode {interval} with {best.strategy}; {why}."


def prediction_notes(
    scenario: Scenario, point: Candidate, longest: int, context_len: int, draft: TransformerConfig | None
) -> list[str]:
    """What a reader must know to judge the numbers.

    Args:
        scenario: Model and machine.
        point: The prediction.
        longest: Tokens that the longest sequence has at its end. [tokens]
        context_len: Tokens in the KV cache when decoding starts. [tokens]
        draft: The draft model, if there is one.
    """
    hardware, target = scenario.deployment.hardware, scenario.deployment.target
    found = [scenario.deployment.provenance, *(f"{target.name}: {note}" for note in target.notes)]
    estimate = point.evaluation.acceptance
    if estimate is not None:
        found.append(estimate.note)
        if not estimate.curve.covers(point.strategy.kv_budget or context_len, context_len):
            found.append(
                "that acceptance rate is extrapolated: budget or context is more than a factor of two from what was measured"
            )
        if estimate.exceeded_by(point.strategy.gamma):
            found.append(f"beyond {estimate.curve.longest} draft tokens acceptance is extrapolated")
    if not point.fits_in_memory:
        found.append(f"does not fit in the memory of one GPU ({hardware.peak.memory_bytes / 1e9:.0f} GB)")
    if longest > target.max_context_len:
        found.append(f"{target.name} supports {target.max_context_len:,} tokens; the workload needs {longest:,}")
    if draft is not None and longest > draft.max_context_len:
        found.append(f"{draft.name} supports {draft.max_context_len:,} tokens: it cannot draft at {longest:,}")
    return found


def _whole(served: PredictedServing | None) -> str:
    if served is None or served.predicted_speedup is None:
        return ""
    interval = f"{served.predicted_speedup_low:.2f}x to {served.predicted_speedup_high:.2f}x"
    because = f" because prefill takes {served.prefill_share:.0%} of the time"
    return f"; end to end {served.predicted_speedup:.2f}x ({interval}){because}"


def _sentence(words: str) -> str:
    first, _, rest = words.partition(" ")
    return f"{TITLES.get(first, words[0].upper() + first[1:])} {rest}" if rest else words[0].upper() + words[1:]


def _why(best: Candidate) -> str:
    parts = best.breakdown["target"]
    share = parts[best.bound] / sum(parts.values())
    return f"bottleneck: {BOUND_WORDS[best.bound]}, {share:.0%} of a step"


def _break_even(best: Candidate) -> str:
    least = best.at(best.evaluation.round.minimum_acceptance_rate())
    return "it never pays" if np.isnan(least) else f"it pays from an acceptance rate of {least:.2f}"
