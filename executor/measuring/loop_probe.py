"""Time the rounds of the decoding loop for a small model with random weights: steps, verifications, drafting, copying.

What a pass takes in the loop is more than what it takes alone: the verification pass leaves the caches cold for the draft, and
between passes there is bookkeeping. So each part is timed where it runs. Nothing here sees a prediction.

Shapes: B batch, S slots.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class LoopShapes:
    """Which rounds to time: every batch size at every context, autoregressive and with every gamma.

    Attributes:
        batch_sizes: Sequences.
        context_lens: Cached tokens of each sequence. [tokens]
        kv_budgets: Budget of the draft at each of these contexts. [tokens]
        gammas: Draft tokens per round. [tokens]
        rounds: How many of each kind to time; averages are kept.
    """

    batch_sizes: tuple[int, ...]
    context_lens: tuple[int, ...]
    kv_budgets: tuple[int, ...]
    gammas: tuple[int, ...]
    rounds: int = 5

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
        return (self.rounds + 2) * (len(self.gammas) + 1)


@dataclass(frozen=True)
class RoundTimes:
    """Average times of the rounds of one kind.

    Attributes:
        batch_size: Sequences.
        context_len: Cached tokens of each sequence. [tokens]
        kv_budget: Cached tokens that a draft step reads. [tokens]
        gamma: Draft tokens; 0 for autoregressive rounds. [tokens]
        draft_s, verify_s: Drafting, and the target's pass. [s]
        rest_s: The round beside these two. [s]
        copy_s: What drafting takes longer in a round that selects all entries anew. [s]
    """

    batch_size: int
    context_len: int
    kv_budget: int
    gamma: int
    draft_s: float
    verify_s: float
    rest_s: float
    copy_s: float

    @property
    def round_s(self) -> float:
        """The whole round. [s]"""
        return self.draft_s + self.verify_s + self.rest_s


@dataclass(frozen=True)
class LoopTimes:
    """What rounds of the loop took.

    Attributes:
        rounds: Average times, by kind of round.
    """

    rounds: tuple[RoundTimes, ...]

    @property
    def round_overhead_s(self) -> float:
        """What a speculative round takes beyond drafting and verification; median over the kinds of rounds. [s]"""
        return statistics.median(one.rest_s for one in self.rounds if one.gamma)

    def copy_bytes_per_s(self, kv_bytes_per_token: float) -> float:
        """Rate of selecting KV entries anew; infinite if no difference is seen. [bytes/s]"""
        speculative = [one for one in self.rounds if one.gamma]
        copied_s = sum(one.copy_s for one in speculative)
        copied = sum(one.batch_size * one.kv_budget for one in speculative) * kv_bytes_per_token
        return copied / copied_s if copied_s > 0 else math.inf


def average(looks: Sequence[LoopTimes]) -> LoopTimes:
    """Mean times of the same rounds, measured several times."""
    times = ("draft_s", "verify_s", "rest_s", "copy_s")
    return LoopTimes(
        tuple(
            replace(same[0], **{name: statistics.fmean(getattr(one, name) for one in same) for name in times})
            for same in zip(*(look.rounds for look in looks), strict=True)
        )
    )


class LoopProbe:
    """Times rounds of a model; keeps its KV cache between calls.

    Args:
        model: Any weights will do.
        shapes: The shapes that calls may ask for, at most.
        mean: Average over rounds: the median to ignore interruptions, the mean to count them.

    Raises:
        InputError: Out of memory.
    """

    def __init__(self, model: Transformer, shapes: LoopShapes, mean: Callable[[Sequence[float]], float] = statistics.median):
        self.model, self._mean = model, mean
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
        found = []
        for batch_size in shapes.batch_sizes:
            for context_len, kv_budget in zip(shapes.context_lens, shapes.kv_budgets, strict=True):
                batch = self._batch(batch_size, context_len, shapes)
                for gamma in (0, *shapes.gammas):
                    policy = self._drafting(batch, kv_budget, gamma) if gamma else AUTOREGRESSIVE
                    first, *rounds = _rounds(batch, policy, shapes.rounds + 1)
                    draft_s, verify_s = self._mean([one.draft_s for one in rounds]), self._mean([one.verify_s for one in rounds])
                    rest_s = self._mean([one.round_s - one.draft_s - one.verify_s for one in rounds])
                    copy_s = first.draft_s - draft_s if gamma else 0.0
                    found.append(RoundTimes(batch_size, context_len, kv_budget, gamma, draft_s, verify_s, rest_s, copy_s))
                    progress()
        return LoopTimes(tuple(found))

    def _batch(self, batch_size: int, context_len: int, shapes: LoopShapes) -> Batch:
        """Rows that hold `context_len` cached tokens without having read a prompt."""
        requests = [Request(str(row), [0] * context_len) for row in range(batch_size)]
        batch = Batch(self.model, requests, GenerationSettings(shapes.new_tokens), gamma=max(shapes.gammas))
        batch.cache = self.cache.first_rows(batch_size)
        batch.request_indices = list(range(batch_size))
        batch.waiting.clear()
        batch.rewind()
        return batch

    def _drafting(self, batch: Batch, kv_budget: int, gamma: int) -> DraftPolicy:
        """Speculation whose first round also selects the entries that the draft reads."""
        drafter = make_drafter(Strategy("self", "streaming_llm", kv_budget, gamma), batch, None)
        assert isinstance(drafter, ModelDrafter)
        reset_all(drafter, batch)
        drafter.view.prepare(batch.tokens_BS, batch.lengths_B - 1)  # first writes to new memory, which are slower
        list(_rounds(batch, AUTOREGRESSIVE, 1))  # has read the whole cache, as a verification pass has
        reset_all(drafter, batch)
        return FixedPolicy(drafter, gamma)


def _rounds(batch: Batch, policy: DraftPolicy, rounds: int) -> Iterator[RoundRecord]:
    """Rounds in which each row emits one token, whatever is accepted, so that copies do not outgrow their budgets."""
    for _ in range(rounds):
        batch.remaining_B.fill_(1)
        yield from decode(batch, policy)
