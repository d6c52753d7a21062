"""Helpers to decode with tiny models: what the tests of the decoding loop share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.draft_policy import AUTOREGRESSIVE, DraftPolicy
from magicdec.executor.drafting.factory import make_policy
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import make_batch
from magicdec.executor.model.transformer import Transformer


def strategy_of(kind: str, policy: str, gamma: int, kv_budget: int = 8, kv_dtype: str = "int4") -> Strategy:
    """The strategy of a runnable pair, with what the pair needs and nothing else."""
    if kind == "none":
        return NO_SPECULATION
    compressed = kv_dtype if (kind, policy) == ("self", "full") else None
    return Strategy(kind, policy, None if policy == "full" else kv_budget, gamma, "small" if kind == "model" else None, compressed)


def requests_of(prompts: Sequence[Sequence[int]]) -> list[Request]:
    return [Request(str(row), list(prompt)) for row, prompt in enumerate(prompts)]


def decode_all(batch: Batch, policy: DraftPolicy = AUTOREGRESSIVE) -> RoundLog:
    return RoundLog(list(decode(batch, policy)))


def decode_one_batch(
    target: Transformer, draft: Transformer | None, requests: Sequence[Request], strategy: Strategy, settings: GenerationSettings
) -> RoundLog:
    """All requests in one batch that keeps its rows to the end; its cache is new."""
    batch = make_batch(target, requests, strategy, settings)
    batch.prefill()
    return decode_all(batch, make_policy(strategy, batch, draft))


class StubDrafter:
    """A drafter without state; subclasses draft."""

    query_hook = None

    def reset(self, row: int, kv_budget: int | None) -> None:
        pass

    def compact(self, rows_B: torch.Tensor) -> None:
        pass

    def observe(self, lengths_B: torch.Tensor, new_lengths_B: torch.Tensor) -> None:
        pass
