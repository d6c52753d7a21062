"""Records of a decoding run: one `RoundRecord` per iteration of the loop, and a `RoundLog` with statistics over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """A finished request.

    Attributes:
        request_index: Position of the request in the list that was given to the batch.
        tokens: The new tokens, a stop token included.
        decode_s: Time from the request's first round to its last token; prefill is not included. [s]
    """

    request_index: int
    tokens: list[int]
    decode_s: float


@dataclass(frozen=True)
class RoundRecord:
    """One round: a draft, a verification pass and the tokens they yield. Autoregressive steps are rounds with gamma 0.

    Attributes:
        draft_s, verify_s: Time of the draft and of the target's pass. [s]
        round_s: Time of the whole round, bookkeeping included. [s]
        emitted: New tokens, all rows together. [tokens]
        active: Rows that were running. [sequences]
        gamma: Draft tokens per row. [tokens]
        context_len: Mean context of the running rows. [tokens]
        rows_by_accepted: Running rows that accepted exactly 0, 1, ..., gamma draft tokens.
        completions: Requests that finished in this round.
    """

    draft_s: float
    verify_s: float
    round_s: float
    emitted: int
    active: int
    gamma: int
    context_len: float
    rows_by_accepted: tuple[int, ...]
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True)
class RoundLog:
    """All rounds of one or several decoding runs, in order."""

    rounds: Sequence[RoundRecord]

    @property
    def draft_s(self) -> list[float]:
        """Draft time of each round. [s]"""
        return [one.draft_s for one in self.rounds]

    @property
    def verify_s(self) -> list[float]:
        """Time of the target's pass of each round. [s]"""
        return [one.verify_s for one in self.rounds]

    @property
    def round_s(self) -> list[float]:
        """Time of each round. [s]"""
        return [one.round_s for one in self.rounds]

    @property
    def emitted(self) -> list[int]:
        """New tokens of each round. [tokens]"""
        return [one.emitted for one in self.rounds]

    @property
    def active_rows(self) -> list[int]:
        """Running rows of each round. [sequences]"""
        return [one.active for one in self.rounds]

    @property
    def completions(self) -> list[Completion]:
        """Finished requests by request index, of a run over a single batch."""
        return sorted((done for one in self.rounds for done in one.completions), key=lambda done: done.request_index)

    @property
    def outputs(self) -> list[list[int]]:
        """New tokens of each request by request index, of a run over a single batch."""
        return [completion.tokens for completion in self.completions]

    @property
    def drafted_by_position(self) -> list[int]:
        """How often each draft position was reached, that is, all draft tokens before it were accepted."""
        return self._rows_by_position(0)

    @property
    def accepted_by_position(self) -> list[int]:
        """How often the draft token at each position was accepted."""
        return self._rows_by_position(1)

    def _rows_by_position(self, extra: int) -> list[int]:
        """For each draft position, how often a row accepted at least `position + extra` draft tokens."""
        counts = [0] * max((one.gamma for one in self.rounds), default=0)
        for one in self.rounds:
            for position in range(one.gamma):
                counts[position] += sum(one.rows_by_accepted[position + extra :])
        return counts

    @property
    def decode_s(self) -> float:
        """Sum over the rounds. [s]"""
        return sum(self.round_s)

    @property
    def tpot_s(self) -> float:
        """Seconds per output token: mean over the requests, each up to its own last token. [s]"""
        completions = self.completions
        return sum(done.decode_s / len(done.tokens) for done in completions) / len(completions)

    @property
    def throughput_tokens_per_s(self) -> float:
        """Throughput of all rows together, over the rounds in which all of them run. [tokens/s]"""
        full = [one for one in self.rounds if one.active == self.rounds[0].active]
        return sum(one.emitted for one in full) / sum(one.round_s for one in full)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification and running row, bonus token included; what a limit or a stop cut off does not count. [tokens]"""
        return sum(self.emitted) / sum(self.active_rows)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted share of the draft tokens whose predecessors were all accepted; None if nothing was drafted. [0-1]"""
        drafted = sum(self.drafted_by_position)
        return sum(self.accepted_by_position) / drafted if drafted else None


def merge(logs: Iterable[RoundLog]) -> RoundLog:
    """One log of several runs, one after the other."""
    return RoundLog([one for log in logs for one in log.rounds])
