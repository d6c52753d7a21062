"""How often a self draft is accepted where a model continues real text: measured by decoding speculatively with each draft."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from magicdec.costmodel.plans.strategy import CompressedDtype, KvPolicy, Strategy

from ..decode_loop import decode
from ..drafting.policy import Always
from ..engine.batch import Batch, Progress, Prompt
from ..generate import make_drafter
from ..model.transformer import Transformer


@dataclass(frozen=True)
class MeasuredPoint:
    """Acceptance of a draft with one budget at one context.

    Attributes:
        kv_budget: Entries the draft read; None for all of them. [tokens]
        context_len: Tokens of each prompt. [tokens]
        acceptance_rate: Accepted over reached draft tokens. [0-1]
        standard_error: Of that rate, draft tokens taken as independent. [0-1]
    """

    kv_budget: int | None
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
    kv_policy: KvPolicy = "streaming_llm",
    kv_dtype: CompressedDtype | None = None,
    progress: Progress = lambda point: None,
) -> list[MeasuredPoint]:
    """Acceptance of self drafts where the model continues real text greedily.

    Args:
        model: The target, which drafts too.
        tokens: The text, longer than the longest context; rows start at places spread evenly over it.
        kv_budgets: Budgets to measure; those not below a context are left out there. Unused with `full`. [tokens]
        context_lens: Prompt lengths. [tokens]
        rows: Sequences decoded together.
        gamma: Draft tokens per round. [tokens]
        max_new_tokens: New tokens per row. [tokens]
        kv_policy, kv_dtype: What the draft reads.
        progress: Called after each point.
    """
    points = []
    for context_len in context_lens:
        stride = (len(tokens) - context_len) // max(rows - 1, 1)
        prompts = [Prompt(str(row), list(tokens[row * stride : row * stride + context_len])) for row in range(rows)]
        budgets = [None] if kv_policy == "full" else [budget for budget in kv_budgets if budget < context_len]
        strategies = [Strategy("self", kv_policy, budget, gamma, None, kv_dtype) for budget in budgets]
        rates = acceptance_rates(model, prompts, strategies, max_new_tokens)
        for budget, (rate, error) in zip(budgets, rates, strict=True):
            points.append(MeasuredPoint(budget, context_len, rate, error))
            progress(1)
        progress(0 if kv_policy == "full" else len(kv_budgets) - len(budgets))
    return points


def acceptance_rates(
    model: Transformer, prompts: Sequence[Prompt], strategies: Sequence[Strategy], max_new_tokens: int
) -> Iterator[tuple[float, float]]:
    """Acceptance rate of each self draft on the same prompts, which are read once, and its standard error. [0-1]"""
    batch = Batch(model, prompts, max_new_tokens=max_new_tokens, gamma=max((s.gamma for s in strategies), default=0))
    if strategies:
        batch.prefill()
    for strategy in strategies:
        batch.rewind()
        trace = decode(batch, steer=Always(make_drafter(strategy, batch, None), strategy.gamma))
        rate, reached = trace.acceptance_rate or 0.0, sum(trace.drafted_by_position)
        yield rate, math.sqrt(rate * (1 - rate) / reached)
