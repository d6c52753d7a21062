"""Time the rounds of the decoding loop for a small model with random weights: steps, verifications, drafting, copying.

What a pass takes in the loop is more than what it takes alone: the verification pass leaves the caches cold for the draft, and
between passes there is bookkeeping. So each part is timed where it runs. Nothing here sees a prediction.

Shapes: B batch, S slots.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from magicdec.costmodel.plans.strategy import Strategy

from ..decode_loop import decode
from ..drafting.draft_policy import AUTOREGRESSIVE, DraftPolicy, FixedPolicy
from ..drafting.drafters import ModelDrafter
from ..drafting.factory import make_drafter, reset_all
from ..engine.batch import Batch
from ..engine.request import Request
from ..engine.round_log import RoundRecord
from ..engine.settings import GenerationSettings
from ..kv.cache import KvCache
from ..model.transformer import Transformer

ROUNDS = 5  # timed of each kind; medians are kept


@dataclass(frozen=True)
class LoopShapes:
    """Which rounds to time: every batch size at every context, autoregressive and with every gamma.

    Attributes:
        batch_sizes: Sequences.
        context_lens: Cached tokens of each sequence. [tokens]
        kv_budgets: Budget of the draft at each of these contexts. [tokens]
        gammas: Draft tokens per round, at least two of them. [tokens]
    """

    batch_sizes: tuple[int, ...]
    context_lens: tuple[int, ...]
    kv_budgets: tuple[int, ...]
    gammas: tuple[int, ...]

    @property
    def points(self) -> int:
        """How many kinds of rounds there are."""
        return len(self.batch_sizes) * len(self.context_lens) * (1 + len(self.gammas))

    @property
    def slots(self) -> int:
        """Slots that a KV cache for all of them needs, per sequence. [tokens]"""
        return max(self.context_lens) + self.new_tokens + max(self.gammas) + 2

    @property
    def new_tokens(self) -> int:
        """Tokens that each sequence of a batch emits. [tokens]"""
        return (ROUNDS + 1) * (len(self.gammas) + 1)


@dataclass(frozen=True)
class MeasuredPass:
    """Time of one pass of the probed model.

    Attributes:
        batch_size: Sequences.
        query_len, context_len: New and cached tokens of each sequence. [tokens]
        measured_s: Median time; of a draft step, without what the first of a round takes longer. [s]
        kv_budget: Cached tokens that a draft step reads; None for all. [tokens]
    """

    batch_size: int
    query_len: int
    context_len: int
    measured_s: float
    kv_budget: int | None = None


@dataclass(frozen=True)
class LoopTimes:
    """What rounds of the loop took.

    Attributes:
        passes: Autoregressive rounds, verification passes and draft steps.
        round_overhead_s: What a round takes beyond its passes and draft steps, one entry per batch size and context. [s]
        copy_bytes_per_s: Rate of selecting KV entries anew, likewise. [bytes/s]
    """

    passes: tuple[MeasuredPass, ...]
    round_overhead_s: tuple[float, ...]
    copy_bytes_per_s: tuple[float, ...]


class LoopProbe:
    """Times rounds of a model; keeps its KV cache between calls.

    Args:
        model: Any weights will do.
        shapes: The shapes that calls may ask for, at most.

    Raises:
        InputError: Out of memory.
    """

    def __init__(self, model: Transformer, shapes: LoopShapes):
        self.model = model
        self.cache = KvCache(model.config, max(shapes.batch_sizes), shapes.slots, model.device, model.dtype)
        for entries_LBKSH in (self.cache.k_LBKSH, self.cache.v_LBKSH):
            entries_LBKSH.copy_(torch.randn(entries_LBKSH.shape[-2:]).to(model.dtype))  # any finite values

    @torch.inference_mode()
    def measure(self, shapes: LoopShapes, progress: Callable[[], object] = lambda: None) -> LoopTimes:
        """Time rounds of all these shapes.

        Args:
            shapes: What to time.
            progress: Called `shapes.points` times.
        """
        passes: list[MeasuredPass] = []
        overheads: list[float] = []
        copy_rates: list[float] = []
        for batch_size in shapes.batch_sizes:
            for context_len, kv_budget in zip(shapes.context_lens, shapes.kv_budgets, strict=True):
                batch = self._batch(batch_size, context_len, shapes)
                plain = list(_rounds(batch, AUTOREGRESSIVE))[1:]
                passes.append(MeasuredPass(batch_size, 1, context_len, statistics.median(one.round_s for one in plain)))
                progress()
                drafting_s, rest_s = [], []
                for gamma in shapes.gammas:
                    first, rounds = self._speculative(batch, kv_budget, gamma)
                    verify_s = statistics.median(one.verify_s for one in rounds)
                    passes.append(MeasuredPass(batch_size, gamma + 1, context_len, verify_s))
                    drafting_s.append(statistics.median(one.draft_s for one in rounds))
                    rest_s += [one.round_s - one.draft_s - one.verify_s for one in rounds]
                    progress()
                    if first.draft_s > drafting_s[-1]:
                        copied = batch_size * kv_budget * self.model.config.kv_bytes_per_token
                        copy_rates.append(copied / (first.draft_s - drafting_s[-1]))
                step_s, start_s = _line(shapes.gammas, drafting_s)
                passes.append(MeasuredPass(batch_size, 1, context_len, step_s, kv_budget))
                overheads.append(start_s + statistics.median(rest_s))
        return LoopTimes(tuple(passes), tuple(overheads), tuple(copy_rates))

    def _batch(self, batch_size: int, context_len: int, shapes: LoopShapes) -> Batch:
        """Rows that hold `context_len` cached tokens without having read a prompt."""
        requests = [Request(str(row), [0] * context_len) for row in range(batch_size)]
        batch = Batch(self.model, requests, GenerationSettings(shapes.new_tokens), gamma=max(shapes.gammas))
        batch.cache = self.cache.first_rows(batch_size)
        batch.request_indices = list(range(batch_size))
        batch.waiting.clear()
        batch.rewind()
        return batch

    def _speculative(self, batch: Batch, kv_budget: int, gamma: int) -> tuple[RoundRecord, list[RoundRecord]]:
        """The first round, which also selects the entries that the draft reads, and the rounds after it."""
        drafter = make_drafter(Strategy("self", "streaming_llm", kv_budget, gamma), batch, None)
        assert isinstance(drafter, ModelDrafter)
        reset_all(drafter, batch)
        drafter.view.prepare(batch.tokens_BS, batch.lengths_B - 1)  # first writes to new memory, which are slower
        reset_all(drafter, batch)
        first, *rounds = _rounds(batch, FixedPolicy(drafter, gamma))
        return first, rounds


def _rounds(batch: Batch, policy: DraftPolicy) -> Iterator[RoundRecord]:
    """Rounds in which each row emits one token, whatever is accepted, so that copies do not outgrow their budgets."""
    for _ in range(ROUNDS + 1):
        batch.remaining_B.fill_(1)
        yield from decode(batch, policy)


def _line(gammas: Sequence[int], drafting_s: Sequence[float]) -> tuple[float, float]:
    """(time of a draft step, extra time of a round's first one) that explain the drafting of rounds with these gammas. [s]"""
    step_s, start_s = np.polynomial.Polynomial.fit(gammas, drafting_s, 1, domain=(-1, 1)).convert().coef[::-1]
    if start_s >= 0 and step_s > 0:
        return float(step_s), float(start_s)
    return max(drafting_s) / max(gammas), 0.0
