"""KV views used while drafting: full, compacted, quantised or query-aware (the last in query_aware_views.py).

All have one interface; the drafter does not know which one it uses. `committed_B` counts the entries of accepted tokens; the
entry of the last token is written by the next pass. A view notices by itself when it has missed a row's progress, and then
rebuilds its state for that row. Bookkeeping is on the host, copies of KV entries are on the model's device.

Shapes: B batch, T query tokens, N query heads, S slots, L layers, K KV heads, H head dim, C selected, W observed queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from magicdec.costmodel.plans.strategy import COPY_SLACK, CompressedDtype

from ..engine.prefill import prefill
from ..kv.attention import QueryHook, SlotAttention
from ..kv.cache import KvCache
from ..kv.quantised_cache import QuantisedKv
from ..kv.selection import OBSERVED_QUERIES, snapkv_slots, streaming_llm_slots
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device


class KvView(ABC):
    """What a drafting model reads of a KV cache.

    Args:
        model: The drafting model.
        cache: Its exact keys and values; for a self draft the target's cache.
        budgets_B: Entries to read of each row; set by `reset`, ignored by views that read everything. [tokens]

    Attributes:
        committed_B: Committed entries of each row that the view is up to date with; -1 if none. [tokens]
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor):
        self.model, self.cache, self.budgets_B = model, cache, budgets_B
        self.committed_B = torch.full_like(budgets_B, -1)

    @property
    def query_hook(self) -> QueryHook | None:
        """Receives the queries of the pass that fills the cache; None if the view does not need them."""
        return None

    def reset(self, row: int, kv_budget: int) -> None:
        """Another request was admitted into the row."""
        self.committed_B[row] = -1
        self.budgets_B[row] = kv_budget

    def compact(self, rows_B: Tensor) -> None:
        """The batch was compacted to these rows."""
        self.committed_B, self.budgets_B = self.committed_B[rows_B], self.budgets_B[rows_B]

    def prepare(self, tokens_BS: Tensor, committed_B: Tensor) -> None:
        """Bring the view up to date before a round drafts; rows whose progress it missed are rebuilt.

        Args:
            tokens_BS: Tokens of each row, on the host.
            committed_B: Committed entries of each row. [tokens]
        """
        stale_B = self.committed_B != committed_B
        if bool(stale_B.any()):
            for row in stale_B.nonzero()[:, 0].tolist():
                self._rebuild(row, tokens_BS[row], int(committed_B[row]))
            self.committed_B = committed_B.clone()

    def observe(self, committed_B: Tensor) -> None:
        """A round is over: entries before `committed_B` are exact now."""
        self._extend(committed_B)
        self.committed_B = committed_B.clone()

    @abstractmethod
    def attend(self, positions_BT: Tensor) -> Attend:
        """Attention of a draft step for new tokens at these positions (on the host)."""

    def _rebuild(self, row: int, tokens_S: Tensor, committed: int) -> None:  # noqa: B027 (nothing to do unless overridden)
        """Build the state of a row from its committed entries."""

    def _extend(self, committed_B: Tensor) -> None:  # noqa: B027
        """Add the entries that were committed since `self.committed_B`."""

    def _new_slots(self, committed_B: Tensor) -> Tensor:
        """Slots from `self.committed_B` on: as many in each row as the row with most new entries has."""
        steps_T = torch.arange(int((committed_B - self.committed_B).max()))
        return self.committed_B[:, None] + steps_T


class FullKvView(KvView):
    """All entries, read from the cache itself. The draft's own entries are written behind them."""

    def attend(self, positions_BT: Tensor) -> Attend:
        """Same as in `KvView`."""
        return SlotAttention(self.cache, positions_BT, self.model.config.sliding_window)


class CompactedKvView(KvView):
    """A contiguous copy of selected entries; this class selects as StreamingLLM does.

    The copy grows by the committed tokens of each round and is selected anew when it outgrows the budget. The draft's own
    entries are written behind it.

    Args:
        model, cache, budgets_B: As for `KvView`.
        max_budget: Largest budget of all requests. [tokens]
        gamma: Most draft tokens per round. [tokens]
        fills_cache: Draft passes also write to `cache`, because it is the drafter's own.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, *, max_budget: int, gamma: int, fills_cache: bool):
        super().__init__(model, cache, budgets_B)
        self.fills_cache = fills_cache
        slots = min(max_budget, cache.capacity) + 2 * gamma + 4
        self.copy = KvCache(model.config, len(budgets_B), slots, model.device, model.dtype)
        self.copied_B = torch.zeros_like(budgets_B)  # committed entries in the copy

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `KvView`."""
        super().compact(rows_B)
        self.copy.compact(rows_B)
        self.copied_B = self.copied_B[rows_B]

    def prepare(self, tokens_BS: Tensor, committed_B: Tensor) -> None:
        """Same as in `KvView`; rows that outgrew their budget are selected anew."""
        super().prepare(tokens_BS, committed_B)
        outgrown_B = self.copied_B > self._ceilings_B
        if bool(outgrown_B.any()):
            for row in outgrown_B.nonzero()[:, 0].tolist():
                self._select(row, int(committed_B[row]))

    def attend(self, positions_BT: Tensor) -> Attend:
        """Same as in `KvView`."""
        # Recent entries are adjacent in the copy as in the cache, so a sliding window has the same length in both.
        slots_BT = positions_BT + (self.copied_B - self.committed_B)[:, None]
        own_cache = self.cache if self.fills_cache else None
        query_hook = self.query_hook if self.fills_cache else None
        return SlotAttention(self.copy, slots_BT, self.model.config.sliding_window, own_cache, positions_BT, query_hook)

    @property
    def _ceilings_B(self) -> Tensor:
        return self.budgets_B.clamp(max=self.cache.capacity)

    def _rebuild(self, row: int, tokens_S: Tensor, committed: int) -> None:
        self._select(row, committed)

    def _extend(self, committed_B: Tensor) -> None:
        slots_BT = self._new_slots(committed_B)
        self.cache.copy_to(self.copy, slots_BT, slots_BT + (self.copied_B - self.committed_B)[:, None])
        self.copied_B = self.copied_B + (committed_B - self.committed_B)

    def _select(self, row: int, committed: int) -> None:
        """Copy a new selection of a row's entries; one in `COPY_SLACK` is left free for new tokens."""
        ceiling = int(self._ceilings_B[row])
        self.copied_B[row] = self._copy_selected(
            row, committed, ceiling if committed <= ceiling else ceiling - ceiling // COPY_SLACK
        )

    def _copy_selected(self, row: int, committed: int, kv_budget: int) -> int:
        """Copy at most `kv_budget` entries of a row, and return their number."""
        slots_C = streaming_llm_slots(committed, kv_budget, self.cache.device)
        self.cache.copy_row_to(self.copy, row, slots_C)
        return len(slots_C)


class SnapKvView(CompactedKvView):
    """The copy holds the entries that the latest queries attended to most, selected per layer and KV head.

    The queries come from the pass that fills the cache; for a self draft that is verification. They are kept in a ring buffer
    indexed by position, long enough that queries of rejected tokens never overwrite one that is still needed.

    Args:
        model, cache, budgets_B, max_budget, gamma, fills_cache: As for `CompactedKvView`.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, *, max_budget: int, gamma: int, fills_cache: bool):
        super().__init__(model, cache, budgets_B, max_budget=max_budget, gamma=gamma, fills_cache=fills_cache)
        config, ring = model.config, OBSERVED_QUERIES + gamma + 2
        shape = (config.num_layers, len(budgets_B), config.num_heads, ring, config.head_dim)
        self.queries_LBNWH = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self._rows_B1 = torch.arange(len(budgets_B), device=model.device)[:, None]

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `KvView`."""
        super().compact(rows_B)
        self.queries_LBNWH, self._rows_B1 = self.queries_LBNWH[:, rows_B], self._rows_B1[: len(rows_B)]

    @property
    def query_hook(self) -> QueryHook:
        """Same as in `KvView`."""
        return self._store_queries

    def _store_queries(self, layer: int, q_BNTH: Tensor, positions_BT: Tensor) -> None:
        ring_BT = positions_BT % self.queries_LBNWH.shape[3]
        self.queries_LBNWH[layer][self._rows_B1, :, ring_BT] = q_BNTH.transpose(1, 2)

    def _rebuild(self, row: int, tokens_S: Tensor, committed: int) -> None:
        """Read the last tokens of the row again to get their queries; this does not change the cache."""
        first = max(committed - OBSERVED_QUERIES, 0)

        def store_row(layer: int, q_BNTH: Tensor, positions_BT: Tensor) -> None:
            self.queries_LBNWH[layer, row][:, positions_BT[0] % self.queries_LBNWH.shape[3]] = q_BNTH[0]

        if committed > 0:
            prefill(self.model, self.cache, row, self._own_ids(tokens_S[first:committed]), first, store_row)
        self._select(row, committed)

    def _own_ids(self, tokens_S: Tensor) -> Tensor:
        return tokens_S.clamp(max=self.model.config.vocab_size - 1)

    def _copy_selected(self, row: int, committed: int, kv_budget: int) -> int:
        window = self.model.config.sliding_window
        first = max(committed + 1 - window, 0) if window is not None else 0
        positions_W = torch.arange(committed - OBSERVED_QUERIES, committed, device=self.cache.device)
        q_LNWH = self.queries_LBNWH[:, row, :, positions_W % self.queries_LBNWH.shape[3]]
        k_LKSH = self.cache.k_LBKSH[:, row, :, :committed]
        selected = [snapkv_slots(q_NWH, positions_W, k_KSH, kv_budget, first) for q_NWH, k_KSH in zip(q_LNWH, k_LKSH, strict=True)]
        slots_LKC = torch.stack(selected)
        self.cache.copy_heads_to(self.copy, row, slots_LKC)
        return slots_LKC.shape[2]


class QuantisedKvView(KvView):
    """All entries, from a quantised copy. The draft's own entries are added to it and replaced by exact ones once verified.

    Args:
        model, cache, budgets_B: As for `KvView`.
        kv_dtype: Type of the copy.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, kv_dtype: CompressedDtype):
        super().__init__(model, cache, budgets_B)
        self.copy = QuantisedKv(model.config, len(budgets_B), cache.capacity, model.device, model.dtype, kv_dtype)

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `KvView`."""
        super().compact(rows_B)
        self.copy.compact(rows_B)

    def attend(self, positions_BT: Tensor) -> Attend:
        """Same as in `KvView`."""
        return SlotAttention(self.copy, positions_BT, self.model.config.sliding_window)

    def _rebuild(self, row: int, tokens_S: Tensor, committed: int) -> None:
        self.copy.write_row(row, self.cache.k_LBKSH[:, row, :, :committed], self.cache.v_LBKSH[:, row, :, :committed])

    def _extend(self, committed_B: Tensor) -> None:
        slots_BT = to_device(self._new_slots(committed_B), self.cache.device)
        slots_BKT = slots_BT[:, None].expand(-1, self.cache.k_LBKSH.shape[2], -1)
        for layer in range(self.model.config.num_layers):
            self.copy.write(layer, slots_BT, *self.cache.gather(layer, slots_BKT))
