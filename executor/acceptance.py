"""How often a sparse self draft is accepted on real text: measured by decoding speculatively, budget by budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.strategy import Strategy
from executor.decode import Batch, Progress, decode
from executor.run import make_drafter
from executor.transformer import Transformer


@dataclass(frozen=True)
class MeasuredPoint:
    """Acceptance of a draft with one budget at one context.

    Attributes:
        kv_budget, context_len: Where it was measured. [tokens]
        acceptance_rate: Accepted over reached draft tokens. [0-1]
        standard_error: Of that rate, draft tokens taken as independent. [0-1]
    """

    kv_budget: int
    context_len: int
    acceptance_rate: float
    standard_error: float


def measure_acceptance(
    model: Transformer,
    tokens: Sequence[int],
    *,
    kv_budgets: Sequence[int],
    context_lens: Sequence[int],
    rows: int,
    gamma: int,
    max_new_tokens: int,
    progress: Progress = lambda point: None,
) -> list[MeasuredPoint]:
    """Acceptance of StreamingLLM self drafts where the model continues real text greedily.

    Args:
        model: The target, which drafts too.
        tokens: The text, longer than the longest context; rows start at places spread evenly over it.
        kv_budgets: Budgets to measure; those not below a context are left out there. [tokens]
        context_lens: Prompt lengths. [tokens]
        rows: Sequences decoded together.
        gamma: Draft tokens per round. [tokens]
        max_new_tokens: New tokens per row. [tokens]
        progress: Called after each point.
    """
    points = []
    for context_len in context_lens:
        stride = (len(tokens) - context_len) // max(rows - 1, 1)
        prompts = [list(tokens[row * stride : row * stride + context_len]) for row in range(rows)]
        batch = Batch(model, prompts, max_new_tokens=max_new_tokens, gamma=gamma)
        batch.prefill()
        for kv_budget in kv_budgets:
            if kv_budget < context_len:
                batch.rewind()
                drafter = make_drafter(Strategy("self", "streaming_llm", kv_budget, gamma), batch, None)
                trace = decode(batch, drafter=drafter, gamma=gamma)
                rate, reached = trace.acceptance_rate or 0.0, sum(trace.drafted_by_position)
                points.append(MeasuredPoint(kv_budget, context_len, rate, math.sqrt(rate * (1 - rate) / reached)))
            progress(1)
    return points
