"""Who proposes tokens: each drafter looks at the tokens known so far and proposes the next few. One Protocol, one loop.

Shapes: B batch, S slots, T query tokens, G draft tokens.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from executor.attention import PrefillAttention, SlotAttention
from executor.kv_cache import KvCache
from executor.kv_selection import streaming_llm_slots
from executor.transformer import Transformer

PREFILL_CHUNK = 4096


class Drafter(Protocol):
    """Proposes draft tokens for every row of a batch."""

    def prefill(self, row: int, tokens_S: Tensor) -> None:
        """Take in a row's prompt; the target has read it already."""
        ...

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int) -> Tensor:
        """draft_BG after the known tokens, of which row b has `lengths_B[b]`."""
        ...

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        """Verification is over: the rows have grown from `lengths_B` to `new_lengths_B` tokens."""
        ...


@torch.inference_mode()
def prefill(model: Transformer, cache: KvCache, row: int, tokens_S: Tensor) -> Tensor:
    """Read a prompt into a row of the cache, in chunks; the logits after its last token, of shape [V]."""
    x_BTD = torch.empty(0)
    for start in range(0, len(tokens_S), PREFILL_CHUNK):
        chunk_BT = tokens_S[None, start : start + PREFILL_CHUNK]
        positions_BT = torch.arange(start, start + chunk_BT.shape[1], device=chunk_BT.device)[None]
        x_BTD = model(chunk_BT, positions_BT, PrefillAttention(cache, row, start, model.config.sliding_window))
    return model.logits(x_BTD[:, -1])[0]


class ModelDrafter:
    """A model that drafts greedily: the target itself over part of its KV cache, or a smaller model over its own.

    With a budget it reads a compact copy of the chosen entries. The copy grows by the tokens of each round, exact ones
    once they are verified, and is chosen anew when it would outgrow the budget.

    Args:
        model: What drafts.
        cache: Its keys and values: the target's own cache for a self draft.
        shared: The cache is the target's, which fills it in verification; else the drafter does.
        kv_budget: Entries it reads at most beside the tokens of the round; None for all. [tokens]
        gamma: Most draft tokens per round. [tokens]
        vocab_size: Ids the target knows; the drafter's own by default.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KvCache,
        *,
        shared: bool,
        kv_budget: int | None,
        gamma: int,
        vocab_size: int | None = None,
    ):
        self.model, self.cache, self.shared, self.kv_budget = model, cache, shared, kv_budget
        self.vocab_size = vocab_size or model.config.vocab_size
        self.copy: KvCache | None = None
        if kv_budget is not None:
            batch_size, slots = cache.k_LBKSH.shape[1], min(kv_budget, cache.capacity) + 2 * gamma + 4
            self.copy = KvCache(model.config, batch_size, slots, model.device, model.dtype)
            self.copied_B = torch.full((batch_size,), -1, device=model.device)  # entries before the last known token

    @torch.inference_mode()
    def prefill(self, row: int, tokens_S: Tensor) -> None:
        if not self.shared:
            prefill(self.model, self.cache, row, tokens_S.clamp(max=self.model.config.vocab_size - 1))
        if self.copy is not None:
            self.copied_B[row] = -1

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int) -> Tensor:
        # A drafter with a cache of its own has not read the last draft token of the round before: it reads two tokens.
        lag = 1 if self.shared or int(lengths_B.min()) < 2 else 2
        if self.copy is not None and bool((self.copied_B < 0).any() or (self.copied_B > self._ceiling).any()):
            self._choose(lengths_B - 1)
        rows_B1 = torch.arange(len(lengths_B), device=lengths_B.device)[:, None]
        positions_BT = lengths_B[:, None] + torch.arange(-lag, 0, device=lengths_B.device)
        input_BT = tokens_BS[rows_B1, positions_BT]
        starts_B = positions_BT[:, 0] if self.copy is None else self.copied_B - (lag - 1)
        vocabulary = self.model.config.vocab_size  # two models' differ by padding, whose ids are no tokens
        draft_BG = torch.empty((len(lengths_B), gamma), dtype=tokens_BS.dtype, device=tokens_BS.device)
        for i in range(gamma):
            known_BT = positions_BT.clamp(max=self.model.config.max_context_len - 1)  # what lies beyond is never emitted
            x_BTD = self.model(input_BT.clamp(max=vocabulary - 1), known_BT, self._attend(starts_B, positions_BT))
            draft_BG[:, i] = self.model.logits(x_BTD[:, -1])[:, : self.vocab_size].argmax(-1)
            starts_B = starts_B + input_BT.shape[1]
            input_BT, positions_BT = draft_BG[:, i : i + 1], positions_BT[:, -1:] + 1
        return draft_BG

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        if self.copy is None:
            return
        grown_B = new_lengths_B - lengths_B
        steps_T = torch.arange(int(grown_B.max()), device=lengths_B.device)
        self.cache.copy_to(self.copy, (lengths_B - 1)[:, None] + steps_T, self.copied_B[:, None] + steps_T)
        self.copied_B = self.copied_B + grown_B

    @property
    def _ceiling(self) -> int:
        assert self.kv_budget is not None
        return min(self.kv_budget, self.cache.capacity)

    def _attend(self, starts_B: Tensor, positions_BT: Tensor) -> SlotAttention:
        length, window = positions_BT.shape[1], self.model.config.sliding_window
        if self.copy is None:
            return SlotAttention(self.cache, starts_B, length, window)
        # Recent entries are neighbours in the copy as in the cache, so a window reaches as far in either.
        return SlotAttention(self.copy, starts_B, length, window, None if self.shared else self.cache, positions_BT)

    def _choose(self, known_B: Tensor) -> None:
        """Copy the chosen entries anew, leaving room for a sixteenth of the budget to grow into."""
        assert self.copy is not None
        room = self._ceiling // 16
        for row, known in enumerate(known_B.tolist()):
            budget = self._ceiling if known <= self._ceiling else self._ceiling - room
            slots_C = streaming_llm_slots(known, budget, known_B.device)
            self.cache.copy_row_to(self.copy, row, slots_C)
            self.copied_B[row] = len(slots_C)
