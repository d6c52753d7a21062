"""Who proposes tokens: each drafter looks at the tokens known so far and proposes the next few. One Protocol, one loop.

Shapes: B batch, S slots, T query tokens, G draft tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.model_runner import Passes
from ..engine.prefill import prefill
from ..engine.sampling import Sampler
from ..kv.attention import Watch
from ..kv.cache import KvCache
from ..model.transformer import Transformer
from .kv_views import Reading

LONGEST_NGRAM = 3

Proposal = tuple[Tensor, Tensor | None]  # draft_BG, and draft_probs_BGV that they were drawn from; None if they were certain


class Drafter(Protocol):
    """Proposes draft tokens for every row of a batch.

    Attributes:
        watch: Wants to see the queries of verification; None if not.
    """

    @property
    def watch(self) -> Watch | None: ...

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Another prompt has taken a row, with a KV budget of its own or the strategy's; the target has read it."""
        ...

    def keep(self, rows_B: Tensor) -> None:
        """Only these rows go on, in this order."""
        ...

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        """Draft tokens after the known ones, of which row b has `lengths_B[b]`; these are on the host, those wherever."""
        ...

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        """Verification is over: the rows have grown from `lengths_B` to `new_lengths_B` tokens."""
        ...


class NgramDrafter:
    """What followed the most recent earlier occurrence of the last few tokens: no model at all.

    Longer matches are preferred. A continuation that runs into the present goes round, as a text that repeats itself does;
    where nothing matches, the last token is repeated.

    Source:
        Prompt lookup decoding (Saxena, 2023; github.com/apoorvumang/prompt-lookup-decoding).
    """

    watch = None

    def reset(self, row: int, kv_budget: int | None) -> None:
        pass

    def keep(self, rows_B: Tensor) -> None:
        pass

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        tokens_BS = tokens_BS[:, : int(lengths_B.max())]
        places_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        earlier_BS = places_S < lengths_B[:, None] - 1
        end_B = lengths_B - 2  # where the occurrence ends; this one makes the last token repeat itself
        same_BS = earlier_BS
        for n in range(LONGEST_NGRAM):
            last_B1 = tokens_BS.gather(1, (lengths_B - 1 - n).clamp(min=0)[:, None])
            # Token n of an occurrence that ends at a place is the one n places before it; short rows have none.
            shifted_BS = F.pad(tokens_BS, (n, 0), value=-1)[:, : tokens_BS.shape[1]]
            same_BS = same_BS & (shifted_BS == last_B1) & (lengths_B > n)[:, None]
            found_B = torch.where(same_BS, places_S, -1).amax(1)
            end_B = torch.where(found_B >= 0, found_B, end_B)
        period_B = lengths_B - 1 - end_B
        steps_G = torch.arange(gamma, device=tokens_BS.device)
        return tokens_BS.gather(1, end_B[:, None] + 1 + steps_G % period_B[:, None]), None

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        pass


class ModelDrafter:
    """A model that drafts token by token: the target itself, reading less, or a smaller model over a cache of its own.

    Args:
        model: What drafts.
        cache: Its keys and values: the target's own cache for a self draft.
        reading: What of them it reads.
        shared: The cache is the target's, which fills it in verification; else the drafter does.
        kv_budget: The strategy's, for prompts without one of their own; None where all is read. [tokens]
        vocab_size: Ids the target knows.
    """

    def __init__(
        self, model: Transformer, cache: KvCache, reading: Reading, *, shared: bool, kv_budget: int | None, vocab_size: int
    ):
        self.model, self.cache, self.reading, self.shared = model, cache, reading, shared
        self.kv_budget = kv_budget or cache.capacity
        self.read_B = torch.zeros_like(reading.budgets_B)  # leading tokens whose entries are in its own cache
        self.passes = Passes(model, vocab_size)

    @property
    def watch(self) -> Watch | None:
        return self.reading.watch if self.shared else None

    @torch.inference_mode()
    def reset(self, row: int, kv_budget: int | None) -> None:
        self.read_B[row] = 0
        self.reading.reset(row, kv_budget or self.kv_budget)

    def keep(self, rows_B: Tensor) -> None:
        self.read_B = self.read_B[rows_B]
        self.reading.keep(rows_B)
        self.passes.forget()
        if not self.shared:
            self.cache.keep(rows_B)

    def draft(self, tokens_BS: Tensor, lengths_B: Tensor, gamma: int, sampler: Sampler) -> Proposal:
        # A drafter with a cache of its own has not read the last draft token of the round before: it reads two tokens. A row
        # of one token reads it first and then something that is not looked at, so that no row depends on another's length.
        lag = 1 if self.shared else 2
        first_B = (lengths_B - lag).clamp(min=0)
        if not self.shared:
            self._catch_up(tokens_BS, first_B)
        self.reading.prepare(tokens_BS, lengths_B - 1)
        last_B = lengths_B - 1 - first_B
        positions_BT = first_B[:, None] + torch.arange(lag)
        input_BT = tokens_BS.gather(1, positions_BT)
        proposed: list[tuple[Tensor, Tensor | None]] = []
        for step in range(gamma):
            known_BT = positions_BT.clamp(max=self.model.config.max_context_len - 1)  # what lies beyond is never emitted
            answer = self.passes(self._own_ids(input_BT), known_BT, self.reading.attend(positions_BT), last_B)
            positions_BT = (lengths_B + step)[:, None]
            proposed.append(sampler.propose(answer, positions_BT[:, 0]))
            input_BT = proposed[-1][0][:, None]
        self.read_B = lengths_B + gamma - 1
        tokens, probs = zip(*proposed, strict=True)
        return torch.stack(tokens, 1), None if probs[0] is None else torch.stack(probs, 1)

    def observe(self, lengths_B: Tensor, new_lengths_B: Tensor) -> None:
        # The last token of each row is the target's own: what the draft fed there, if anything, was another.
        self.read_B = torch.minimum(self.read_B, new_lengths_B - 1)
        self.reading.observe(new_lengths_B - 1)

    def _catch_up(self, tokens_BS: Tensor, wanted_B: Tensor) -> None:
        """Read what was said while another drafter was at work, and new prompts."""
        for row in (self.read_B < wanted_B).nonzero()[:, 0].tolist():
            first, stop = int(self.read_B[row]), int(wanted_B[row])
            prefill(self.model, self.cache, row, self._own_ids(tokens_BS[row, first:stop]), first)

    def _own_ids(self, tokens: Tensor) -> Tensor:
        """Two models' vocabularies differ by padding, whose ids are no tokens."""
        return tokens.clamp(max=self.model.config.vocab_size - 1)
