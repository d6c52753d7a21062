"""What a decoding run did, round by round.

Shapes: B batch, G draft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor


@dataclass
class Trace:
    """What a decoding run did, round by round; a plain step is a round without a draft.

    Attributes:
        draft_s, verify_s, round_s: Time of each round's draft, of the target's pass, and of all of it. [s]
        emitted: Tokens each round emitted, over all rows.
        active_rows: Rows that were still running in it.
        drafted_by_position, accepted_by_position: How often draft position i was reached, every one before it accepted,
            and how often it was accepted then.
        row_finish_s: How long each prompt took to its last token, from when its row began to decode. [s]
        row_tokens: Tokens each prompt got.
        gammas: Draft tokens per row of each round. [tokens]
        contexts: Mean of the tokens that running rows knew in each round. [tokens]
    """

    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    round_s: list[float] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    active_rows: list[int] = field(default_factory=list)
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    row_finish_s: list[float] = field(default_factory=list)
    row_tokens: list[int] = field(default_factory=list)
    gammas: list[int] = field(default_factory=list)
    contexts: list[float] = field(default_factory=list)

    def add_round(
        self, *, draft_s: float, verify_s: float, round_s: float, emitted: int, active: int, gamma: int, context: float
    ) -> None:
        """Note a round's times [s] and tokens."""
        self.gammas.append(gamma)
        self.contexts.append(context)
        self.draft_s.append(draft_s)
        self.verify_s.append(verify_s)
        self.round_s.append(round_s)
        self.emitted.append(emitted)
        self.active_rows.append(active)

    def count(self, accepted_B: Tensor, active_B: Tensor, gamma: int) -> None:
        """Note how far the running rows accepted a round's draft."""
        if gamma == 0:
            return
        steps_G = torch.arange(gamma, device=accepted_B.device)
        reached = ((accepted_B[:, None] >= steps_G) & active_B[:, None]).sum(0).tolist()
        accepted = ((accepted_B[:, None] > steps_G) & active_B[:, None]).sum(0).tolist()
        self.drafted_by_position = _added(self.drafted_by_position, reached)
        self.accepted_by_position = _added(self.accepted_by_position, accepted)

    @property
    def decode_s(self) -> float:
        """All rounds together. [s]"""
        return sum(self.round_s)

    @property
    def tpot_s(self) -> float:
        """Seconds per output token, averaged over the prompts, each up to its own last token. [s]"""
        return sum(s / n for s, n in zip(self.row_finish_s, self.row_tokens, strict=True)) / len(self.row_tokens)

    @property
    def throughput_tokens_per_s(self) -> float:
        """All rows together, while all of them run. [tokens/s]"""
        full = [i for i, active in enumerate(self.active_rows) if active == self.active_rows[0]]
        return sum(self.emitted[i] for i in full) / sum(self.round_s[i] for i in full)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification and row, bonus token included. [tokens]"""
        rounds = self.drafted_by_position[0] if self.drafted_by_position else 0
        return 1.0 + sum(self.accepted_by_position) / rounds if rounds else 1.0

    @property
    def acceptance_rate(self) -> float | None:
        """Of draft tokens whose predecessors were all accepted, the accepted share; None if nothing was drafted. [0-1]"""
        reached = sum(self.drafted_by_position)
        return sum(self.accepted_by_position) / reached if reached else None


def merge(traces: Sequence[Trace]) -> Trace:
    """One trace of several batches run one after the other."""
    merged = Trace()
    for trace in traces:
        for name, values in vars(merged).items():
            seen = getattr(trace, name)
            values[:] = _added(values, seen) if name.endswith("_by_position") else [*values, *seen]
    return merged


def _added(some: Sequence[int], others: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip_longest(some, others, fillvalue=0)]
