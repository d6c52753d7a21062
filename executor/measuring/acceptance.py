"""Measure the acceptance of self drafts: decode real text speculatively with each draft and count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from magicdec.costmodel.plans.strategy import CompressedDtype, KvPolicy, Strategy

from ..decode_loop import decode
from ..drafting.factory import make_policy
from ..engine.batch import Batch
from ..engine.request import Request
from ..engine.round_log import RoundLog
from ..engine.settings import GenerationSettings
from ..model.transformer import Transformer


@dataclass(frozen=True)
class AcceptanceGrid:
    """What to measure: one self draft at several budgets and contexts.

    Attributes:
        kv_budgets: Budgets; at each context only those below it are measured. Ignored with KV policy `full`. [tokens]
        context_lens: Prompt lengths. [tokens]
        rows: Sequences decoded together.
        gamma: Draft tokens per round. [tokens]
        max_new_tokens: New tokens per sequence. [tokens]
        kv_policy, kv_dtype: Which KV entries the draft reads, and in which type.
    """

    kv_budgets: Sequence[int]
    context_lens: Sequence[int]
    rows: int
    gamma: int
    max_new_tokens: int
    kv_policy: KvPolicy = "streaming_llm"
    kv_dtype: CompressedDtype | None = None

    def strategies(self, context_len: int) -> list[Strategy]:
        """The strategies to measure at a context."""
        full = self.kv_policy == "full"
        budgets = [None] if full else [budget for budget in self.kv_budgets if budget < context_len]
        return [Strategy("self", self.kv_policy, budget, self.gamma, None, self.kv_dtype) for budget in budgets]

    @property
    def num_points(self) -> int:
        """Number of points that `measure_acceptance` yields."""
        return sum(len(self.strategies(context_len)) for context_len in self.context_lens)


@dataclass(frozen=True)
class AcceptancePoint:
    """Acceptance of a draft with one budget at one context.

    Attributes:
        kv_budget: Entries that the draft read; None for all. [tokens]
        context_len: Tokens of each prompt. [tokens]
        acceptance_rate: Accepted share of the draft tokens whose predecessors were accepted. [0-1]
        standard_error: Of that rate, with draft tokens taken as independent. [0-1]
    """

    kv_budget: int | None
    context_len: int
    acceptance_rate: float
    standard_error: float


def measure_acceptance(model: Transformer, tokens: Sequence[int], grid: AcceptanceGrid) -> Iterator[AcceptancePoint]:
    """Measure acceptance where the model continues real text greedily.

    Args:
        model: The target, which also drafts.
        tokens: The text, at least as long as the longest context; prompts start at evenly spaced places in it.
        grid: What to measure.

    Yields:
        One point per context and budget.

    Raises:
        InputError: Out of memory, or infinite or NaN logits.
    """
    for context_len in grid.context_lens:
        requests = evenly_spaced(tokens, grid.rows, context_len)
        strategies = grid.strategies(context_len)
        rates = acceptance_rates(model, requests, strategies, grid.max_new_tokens)
        for strategy, (rate, error) in zip(strategies, rates, strict=True):
            yield AcceptancePoint(strategy.kv_budget, context_len, rate, error)


def evenly_spaced(tokens: Sequence[int], rows: int, context_len: int) -> list[Request]:
    """Requests of equal length that start at evenly spaced places in a text."""
    stride = (len(tokens) - context_len) // max(rows - 1, 1)
    return [Request(str(row), list(tokens[row * stride : row * stride + context_len])) for row in range(rows)]


def acceptance_rates(
    model: Transformer, requests: Sequence[Request], strategies: Sequence[Strategy], max_new_tokens: int
) -> Iterator[tuple[float, float]]:
    """Acceptance rate of each self draft on the same requests, and its standard error. [0-1]

    The requests are prefilled once for all strategies.

    Raises:
        InputError: Out of memory, or infinite or NaN logits.
    """
    gamma = max((strategy.gamma for strategy in strategies), default=0)
    batch = Batch(model, requests, GenerationSettings(max_new_tokens), gamma=gamma)
    if strategies:
        batch.prefill()
    for strategy in strategies:
        batch.rewind()
        log = RoundLog(list(decode(batch, make_policy(strategy, batch, None))))
        rate, drafted = log.acceptance_rate or 0.0, sum(log.drafted_by_position)
        yield rate, math.sqrt(rate * (1 - rate) / drafted)
