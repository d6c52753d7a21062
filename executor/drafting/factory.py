"""Make the drafters and draft policies that strategies and policy tables describe."""

from __future__ import annotations

import torch

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import Strategy

from ..engine.batch import Batch
from ..kv.cache import KvCache
from ..model.transformer import Transformer
from .draft_policy import DraftPolicy, FixedPolicy, TablePolicy
from .drafters import Drafter, ModelDrafter, NgramDrafter
from .kv_views import CompactedKvView, FullKvView, KvView, QuantisedKvView, SnapKvView
from .query_aware_views import QuestView, TopKView


def make_policy(strategy: Strategy | PolicyTable, batch: Batch, draft: Transformer | None) -> DraftPolicy:
    """The draft policy of a strategy or a policy table.

    Args:
        strategy: What to draft with.
        batch: The batch it will run on, prefilled.
        draft: The draft model, if one is named.

    Raises:
        InputError: The draft model's context is too short, or its cache does not fit into memory.
    """
    if isinstance(strategy, PolicyTable):
        return TablePolicy(strategy, lambda selected: make_drafter(selected, batch, draft))
    return FixedPolicy(make_drafter(strategy, batch, draft), strategy.gamma)


def make_drafter(strategy: Strategy, batch: Batch, draft: Transformer | None) -> Drafter | None:
    """The drafter of a strategy for the requests that the batch holds now; None for autoregressive decoding.

    Args:
        strategy: What to draft with.
        batch: The batch it will run on, prefilled.
        draft: The draft model, if the strategy names one.

    Raises:
        InputError: The draft model's context is too short, or its cache does not fit into memory.
    """
    if strategy.draft_kind == "none":
        return None
    if strategy.draft_kind == "ngram":
        return NgramDrafter()
    shares_cache = strategy.draft_kind == "self"
    model, cache = (batch.model, batch.cache) if shares_cache else _draft_model_and_cache(draft, batch)
    drafter = ModelDrafter(
        model,
        _make_view(strategy, model, cache, batch),
        shares_cache=shares_cache,
        kv_budget=strategy.kv_budget,
        vocab_size=batch.model.config.vocab_size,
    )
    reset_all(drafter, batch)
    return drafter


def reset_all(drafter: Drafter, batch: Batch) -> None:
    """Reset a drafter to the prompts of the batch."""
    for row, request in enumerate(batch.row_requests()):
        drafter.reset(row, request.kv_budget)


def _draft_model_and_cache(draft: Transformer | None, batch: Batch) -> tuple[Transformer, KvCache]:
    """The draft model, and a cache with as many rows and slots as the target's."""
    assert draft is not None
    needed = max(len(request.tokens) + limit for request, limit in zip(batch.requests, batch.limits, strict=True))
    if draft.config.max_context_len < needed:
        raise bad("draft model", "max_position_embeddings", f"at least {needed} positions", draft.config.max_context_len)
    with batch.memory_explained():
        return draft, KvCache(draft.config, len(batch), batch.cache.capacity, draft.device, draft.dtype)


def _make_view(strategy: Strategy, model: Transformer, cache: KvCache, batch: Batch) -> KvView:
    """The KV entries that the draft reads, by the strategy's KV policy."""
    budgets_B = torch.zeros(len(batch), dtype=torch.long)
    if strategy.kv_dtype is not None:
        return QuantisedKvView(model, cache, budgets_B, strategy.kv_dtype)
    match strategy.kv_policy:
        case "full":
            return FullKvView(model, cache, budgets_B)
        case "streaming_llm" | "snapkv":
            compacted = CompactedKvView if strategy.kv_policy == "streaming_llm" else SnapKvView
            max_budget = max(request.kv_budget or strategy.kv_budget or 0 for request in batch.requests)
            fills_cache = strategy.draft_kind == "model"
            return compacted(model, cache, budgets_B, max_budget=max_budget, gamma=batch.gamma, fills_cache=fills_cache)
        case "topk":
            return TopKView(model, cache, budgets_B)
        case "quest":
            return QuestView(model, cache, budgets_B)
        case _:
            raise bad("plan", "strategy.kv_policy", "a KV policy that the executor has a view for", strategy.kv_policy)
