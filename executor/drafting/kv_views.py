"""What part of a KV cache a drafting model reads: all of it, a compact copy of chosen entries, a copy in fewer bits, or
entries chosen at every step (chosen_readings.py). Each is a value with one interface; the drafter does not know which it has.

"Known" entries belong to tokens that are final and precede the last one, whose own entry the next pass makes. A reading
notices by itself when it has not been told of a row's progress, and then starts that row afresh. What is known of which row
is on the host, as positions are; copies are on the model's device.

Shapes: B batch, T query tokens, N query heads, S slots, L layers, K KV heads, H head dim, C chosen, W observed queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..engine.prefill import prefill
from ..kv.attention import SlotAttention, Watch
from ..kv.cache import KvCache
from ..kv.quantised_cache import QuantisedKv
from ..kv.selection import OBSERVED, snapkv_slots, streaming_llm_slots
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device


class Reading(ABC):
    """What of a cache a draft reads.

    Args:
        model: What drafts.
        cache: Its exact keys and values: the target's own for a self draft.
        budgets_B: Entries to read of each row, to be set when a prompt takes it; unused where all are read. [tokens]

    Attributes:
        known_B: Known entries of each row that the reading is up to date with; -1 for none. [tokens]
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor):
        self.model, self.cache, self.budgets_B = model, cache, budgets_B
        self.known_B = torch.full_like(budgets_B, -1)

    @property
    def watch(self) -> Watch | None:
        """Told of the queries of the pass that fills the cache; None if it need not be."""
        return None

    def reset(self, row: int, kv_budget: int) -> None:
        """Another prompt has taken a row."""
        self.known_B[row] = -1
        self.budgets_B[row] = kv_budget

    def keep(self, rows_B: Tensor) -> None:
        """Only these rows go on, in this order."""
        self.known_B, self.budgets_B = self.known_B[rows_B], self.budgets_B[rows_B]

    def prepare(self, tokens_BS: Tensor, known_B: Tensor) -> None:
        """A round's draft begins: whatever was not told of is caught up with."""
        stale_B = self.known_B != known_B
        if bool(stale_B.any()):
            for row in stale_B.nonzero()[:, 0].tolist():
                self._begin(row, tokens_BS[row], int(known_B[row]))
            self.known_B = known_B.clone()

    def observe(self, known_B: Tensor) -> None:
        """A round is over and its tokens are final: entries up to `known_B` are exact now."""
        self._extend(known_B)
        self.known_B = known_B.clone()

    @abstractmethod
    def attend(self, positions_BT: Tensor) -> Attend:
        """Attention of a draft step over what is read, for new tokens at these positions."""

    def _begin(self, row: int, tokens_S: Tensor, known: int) -> None:  # noqa: B027 (nothing to do unless overridden)
        """Take in a row of which nothing is known yet."""

    def _extend(self, known_B: Tensor) -> None:  # noqa: B027
        """Take in what has become final since `self.known_B`."""

    def _new_slots(self, known_B: Tensor) -> Tensor:
        """Slots from what was known on, so many in every row that all new ones are among them."""
        steps_T = torch.arange(int((known_B - self.known_B).max()))
        return self.known_B[:, None] + steps_T


class FullReading(Reading):
    """Every entry, from the cache itself, to which the draft's own are added."""

    def attend(self, positions_BT: Tensor) -> Attend:
        return SlotAttention(self.cache, positions_BT, self.model.config.sliding_window)


class CopyReading(Reading):
    """A compact copy of chosen entries that lie side by side: StreamingLLM's, and SnapKV's below.

    The copy grows by the tokens of each round, exact ones once they are verified, and is chosen anew when it would outgrow
    the budget. The draft's own entries follow those of the copy.

    Args:
        max_budget: The largest of all budgets. [tokens]
        gamma: Most draft tokens per round. [tokens]
        fill_cache: The draft's passes fill the cache too: it is the draft's own.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, *, max_budget: int, gamma: int, fill_cache: bool):
        super().__init__(model, cache, budgets_B)
        self.fill_cache = fill_cache
        slots = min(max_budget, cache.capacity) + 2 * gamma + 4
        self.copy = KvCache(model.config, len(budgets_B), slots, model.device, model.dtype)
        self.copied_B = torch.zeros_like(budgets_B)  # entries of the copy, before the last known token

    def keep(self, rows_B: Tensor) -> None:
        super().keep(rows_B)
        self.copy.keep(rows_B)
        self.copied_B = self.copied_B[rows_B]

    def prepare(self, tokens_BS: Tensor, known_B: Tensor) -> None:
        super().prepare(tokens_BS, known_B)
        outgrown_B = self.copied_B > self._ceilings_B
        if bool(outgrown_B.any()):
            for row in outgrown_B.nonzero()[:, 0].tolist():
                self._choose(row, int(known_B[row]))

    def attend(self, positions_BT: Tensor) -> Attend:
        # Recent entries are neighbours in the copy as in the cache, so a window reaches as far in either.
        slots_BT = positions_BT + (self.copied_B - self.known_B)[:, None]
        own = self.cache if self.fill_cache else None
        watch = self.watch if self.fill_cache else None
        window = self.model.config.sliding_window
        return SlotAttention(self.copy, slots_BT, window, own, positions_BT, watch)

    @property
    def _ceilings_B(self) -> Tensor:
        return self.budgets_B.clamp(max=self.cache.capacity)

    def _begin(self, row: int, tokens_S: Tensor, known: int) -> None:
        self._choose(row, known)

    def _extend(self, known_B: Tensor) -> None:
        slots_BT = self._new_slots(known_B)
        self.cache.copy_to(self.copy, slots_BT, slots_BT + (self.copied_B - self.known_B)[:, None])
        self.copied_B = self.copied_B + (known_B - self.known_B)

    def _choose(self, row: int, known: int) -> None:
        """Copy the chosen entries of a row anew, leaving room for a sixteenth of the budget to grow into."""
        ceiling = int(self._ceilings_B[row])
        self.copied_B[row] = self._copy_chosen(row, known, ceiling if known <= ceiling else ceiling - ceiling // 16)

    def _copy_chosen(self, row: int, known: int, kv_budget: int) -> int:
        """Copy at most `kv_budget` of a row's entries; how many they are."""
        slots_C = streaming_llm_slots(known, kv_budget, self.cache.device)
        self.cache.copy_row_to(self.copy, row, slots_C)
        return len(slots_C)


class SnapKvReading(CopyReading):
    """The copy holds what the latest queries attended to most, by layer and KV head.

    The queries are those of the pass that fills the cache: verification for a self draft. They are kept in a ring, a place
    for each position, long enough that those of rejected tokens never displace one that is looked at.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, *, gamma: int, **how: int):
        super().__init__(model, cache, budgets_B, gamma=gamma, **how)
        shape = (model.config.num_layers, len(budgets_B), model.config.num_heads, OBSERVED + gamma + 2, model.config.head_dim)
        self.queries_LBNWH = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self._rows_B1 = torch.arange(len(budgets_B), device=model.device)[:, None]

    def keep(self, rows_B: Tensor) -> None:
        super().keep(rows_B)
        self.queries_LBNWH, self._rows_B1 = self.queries_LBNWH[:, rows_B], self._rows_B1[: len(rows_B)]

    @property
    def watch(self) -> Watch:
        return self._note

    def _note(self, layer: int, q_BNTH: Tensor, positions_BT: Tensor) -> None:
        ring_BT = positions_BT % self.queries_LBNWH.shape[3]
        self.queries_LBNWH[layer][self._rows_B1, :, ring_BT] = q_BNTH.transpose(1, 2)

    def _begin(self, row: int, tokens_S: Tensor, known: int) -> None:
        """The queries of a row's last tokens were not seen: they are read again, which changes nothing in the cache."""
        first = max(known - OBSERVED, 0)

        def note(layer: int, q_BNTH: Tensor, positions_BT: Tensor) -> None:
            self.queries_LBNWH[layer, row][:, positions_BT[0] % self.queries_LBNWH.shape[3]] = q_BNTH[0]

        if known > 0:
            prefill(self.model, self.cache, row, self._own_ids(tokens_S[first:known]), first, note)
        self._choose(row, known)

    def _own_ids(self, tokens_S: Tensor) -> Tensor:
        return tokens_S.clamp(max=self.model.config.vocab_size - 1)

    def _copy_chosen(self, row: int, known: int, kv_budget: int) -> int:
        window = self.model.config.sliding_window
        first = max(known + 1 - window, 0) if window is not None else 0
        positions_W = torch.arange(known - OBSERVED, known, device=self.cache.device)
        q_LNWH = self.queries_LBNWH[:, row, :, positions_W % self.queries_LBNWH.shape[3]]
        k_LKSH = self.cache.k_LBKSH[:, row, :, :known]
        chosen = [snapkv_slots(q_NWH, positions_W, k_KSH, kv_budget, first) for q_NWH, k_KSH in zip(q_LNWH, k_LKSH, strict=True)]
        slots_LKC = torch.stack(chosen)
        self.cache.copy_heads_to(self.copy, row, slots_LKC)
        return slots_LKC.shape[2]


class QuantisedReading(Reading):
    """Every entry, from a copy in fewer bits, to which the draft's own are added; exact ones replace them when verified."""

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor, kv_dtype: str):
        super().__init__(model, cache, budgets_B)
        self.copy = QuantisedKv(model.config, len(budgets_B), cache.capacity, model.device, model.dtype, kv_dtype)

    def keep(self, rows_B: Tensor) -> None:
        super().keep(rows_B)
        self.copy.keep(rows_B)

    def attend(self, positions_BT: Tensor) -> Attend:
        return SlotAttention(self.copy, positions_BT, self.model.config.sliding_window)

    def _begin(self, row: int, tokens_S: Tensor, known: int) -> None:
        self.copy.write_row(row, self.cache.k_LBKSH[:, row, :, :known], self.cache.v_LBKSH[:, row, :, :known])

    def _extend(self, known_B: Tensor) -> None:
        slots_BT = to_device(self._new_slots(known_B), self.cache.device)
        slots_BKT = slots_BT[:, None].expand(-1, self.cache.k_LBKSH.shape[2], -1)
        for layer in range(self.model.config.num_layers):
            self.copy.write(layer, slots_BT, *self.cache.gather(layer, slots_BKT))
