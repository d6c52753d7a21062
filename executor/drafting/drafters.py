"""Drafters: propose the next few tokens from the committed ones. One protocol, so that one loop serves all of them.

Shapes: B batch, S slots, T query tokens, G draft tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.model_runner import ModelRunner
from ..engine.prefill import prefill
from ..engine.sampling import Sampler
from ..kv.attention import QueryHook
from ..model.transformer import Transformer
from .kv_views import KvView

LONGEST_NGRAM = 3

Proposal = tuple[Tensor, Tensor | None]  # draft_BG, and the draft_probs_BGV they were drawn from; None if they are certain


class Drafter(Protocol):
    """Proposes draft tokens for all rows of a batch."""

    @property
    def query_hook(self) -> QueryHook | None:
        """Receives the queries of the verification pass; None if the drafter does not need them."""
        ...

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Another request was admitted into the row, and the target has prefilled it.

        Args:
            row: Row of the batch.
            kv_budget: The request's own budget; None for the strategy's. [tokens]
        """
        ...

    def compact(self, rows_B: Tensor) -> None:
        """The batch was compacted to these rows."""
        ...

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        """Draft the tokens that follow the committed ones.

        Args:
            tokens_BS: Tokens of each row, on the host.
            lengths_B: Committed tokens of each row, on the host. [tokens]
            gamma: Tokens to draft per row.
            sampler: Chooses tokens from logits.

        Returns:
            draft_BG on any device, and the distributions they were drawn from, or None.
        """
        ...

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        """Verification is over: the committed tokens of the rows grew from `lengths_B` to `new_lengths_B`."""
        ...


class NgramDrafter:
    """Proposes the continuation of the most recent earlier occurrence of the last few tokens. No model is involved.

    Longer matches are preferred. A continuation that reaches the end of the text wraps around to its own start. Without a
    match, the last token is repeated.

    Source:
        Prompt lookup decoding (Saxena, 2023; github.com/apoorvumang/prompt-lookup-decoding).
    """

    query_hook = None

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Nothing to do: the drafter keeps no state."""

    def compact(self, rows_B: Tensor) -> None:
        """Nothing to do: the drafter keeps no state."""

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        """Same as in `Drafter`."""
        tokens_BS = tokens_BS[:, : int(lengths_B.max())]
        slots_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        earlier_BS = slots_S < lengths_B[:, None] - 1
        end_B = lengths_B - 2  # last token of the match; without a match this repeats the row's last token
        matches_BS = earlier_BS
        for n in range(LONGEST_NGRAM):
            last_B1 = tokens_BS.gather(1, (lengths_B - 1 - n).clamp(min=0)[:, None])
            # Compare the token n places before each slot with the token n places before the end; short rows have none.
            shifted_BS = F.pad(tokens_BS, (n, 0), value=-1)[:, : tokens_BS.shape[1]]
            matches_BS = matches_BS & (shifted_BS == last_B1) & (lengths_B > n)[:, None]
            found_B = torch.where(matches_BS, slots_S, -1).amax(1)
            end_B = torch.where(found_B >= 0, found_B, end_B)
        period_B = lengths_B - 1 - end_B
        steps_G = torch.arange(gamma, device=tokens_BS.device)
        return tokens_BS.gather(1, end_B[:, None] + 1 + steps_G % period_B[:, None]), None

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        """Nothing to do: the drafter keeps no state."""


class ModelDrafter:
    """Drafts token by token with a model: the target itself over a cheaper view of its KV cache, or a smaller model.

    Args:
        model: The drafting model.
        view: What it reads of its KV cache.
        shares_cache: The cache is the target's, and verification fills it; otherwise the drafter fills its own.
        kv_budget: Budget of requests that set none themselves; None to read everything. [tokens]
        vocab_size: Size of the target's vocabulary.
    """

    def __init__(self, model: Transformer, view: KvView, *, shares_cache: bool, kv_budget: int | None, vocab_size: int):
        self.model, self.view, self.cache, self.shares_cache = model, view, view.cache, shares_cache
        self.kv_budget = kv_budget or view.cache.capacity
        self.cached_B = torch.zeros_like(view.budgets_B)  # leading tokens whose entries are in the drafter's own cache
        self.runner = ModelRunner(model, vocab_size)

    @property
    def query_hook(self) -> QueryHook | None:
        """Same as in `Drafter`."""
        return self.view.query_hook if self.shares_cache else None

    @torch.inference_mode()
    def reset(self, row: int, kv_budget: int | None) -> None:
        """Same as in `Drafter`."""
        self.cached_B[row] = 0
        self.view.reset(row, kv_budget or self.kv_budget)

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `Drafter`."""
        self.cached_B = self.cached_B[rows_B]
        self.view.compact(rows_B)
        self.runner.drop_graphs()
        if not self.shares_cache:
            self.cache.compact(rows_B)

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        """Same as in `Drafter`."""
        # A drafter with its own cache has not yet read the last draft token of the round before: it reads two tokens. A row
        # with one token reads that token and then an ignored one, so that no row depends on the length of another.
        lag = 1 if self.shares_cache else 2
        first_B = (lengths_B - lag).clamp(min=0)
        if not self.shares_cache:
            self._catch_up(tokens_BS, first_B)
        self.view.prepare(tokens_BS, lengths_B - 1)
        last_B = lengths_B - 1 - first_B
        positions_BT = first_B[:, None] + torch.arange(lag)
        input_BT = tokens_BS.gather(1, positions_BT)
        proposed: list[tuple[Tensor, Tensor | None]] = []
        for step in range(gamma):
            # Tokens beyond the model's last position are never emitted.
            clamped_BT = positions_BT.clamp(max=self.model.config.max_context_len - 1)
            forward = self.runner(self._own_ids(input_BT), clamped_BT, self.view.attend(positions_BT), last_B)
            positions_BT = (lengths_B + step)[:, None]
            proposed.append(sampler.propose(forward, positions_BT[:, 0]))
            input_BT = proposed[-1][0][:, None]
        self.cached_B = lengths_B + gamma - 1
        draft_BG = torch.stack([tokens_B for tokens_B, _ in proposed], 1)
        probs = [probs_BV for _, probs_BV in proposed if probs_BV is not None]
        return draft_BG, torch.stack(probs, 1) if probs else None

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        """Same as in `Drafter`."""
        # Each row's last token is the target's own: the drafter has not read it, or has read another one in its place.
        self.cached_B = torch.minimum(self.cached_B, new_lengths_B - 1)
        self.view.observe(new_lengths_B - 1)

    def _catch_up(self, tokens_BS: Tensor, wanted_B: Tensor) -> None:
        """Prefill new prompts, and tokens that were committed while another drafter was selected."""
        for row in (self.cached_B < wanted_B).nonzero()[:, 0].tolist():
            first, stop = int(self.cached_B[row]), int(wanted_B[row])
            prefill(self.model, self.cache, row, self._own_ids(tokens_BS[row, first:stop]), first)

    def _own_ids(self, tokens: Tensor) -> Tensor:
        """Clamp ids to the drafter's vocabulary: the two vocabularies differ by padding only."""
        return tokens.clamp(max=self.model.config.vocab_size - 1)
