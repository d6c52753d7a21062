"""Draft policies: which drafter runs in the next round, and how many tokens it drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy

from .drafters import Drafter


class DraftPolicy(Protocol):
    """Chooses a drafter before each round, and passes changes of the batch on to its drafters."""

    def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        """(drafter, gamma) for `active` running sequences at this mean context; (None, 0) for an autoregressive step."""
        ...

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Another request was admitted into the row."""
        ...

    def compact(self, rows_B: Tensor) -> None:
        """The batch was compacted to these rows."""
        ...


@dataclass(frozen=True)
class FixedPolicy:
    """The same drafter and gamma in every round.

    Attributes:
        drafter: The drafter; None for autoregressive decoding.
        gamma: Draft tokens per round. [tokens]
    """

    drafter: Drafter | None = None
    gamma: int = 0

    def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        """Same as in `DraftPolicy`."""
        return self.drafter, self.gamma

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Same as in `DraftPolicy`."""
        if self.drafter is not None:
            self.drafter.reset(row, kv_budget)

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `DraftPolicy`."""
        if self.drafter is not None:
            self.drafter.compact(rows_B)


AUTOREGRESSIVE = FixedPolicy()


class TablePolicy:
    """Looks up the strategy of each round in a policy table.

    A drafter is made when it is first needed. One that was idle for some rounds catches up by itself.

    Args:
        table: Strategy by batch size and context.
        make: Makes the drafter of a strategy.

    Attributes:
        strategy: The strategy selected last.
    """

    def __init__(self, table: PolicyTable, make: Callable[[Strategy], Drafter | None]):
        self.table, self.make = table, make
        self.strategy: Strategy | None = None
        self._drafters: dict[Strategy, Drafter | None] = {NO_SPECULATION: None}

    def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        """Same as in `DraftPolicy`."""
        self.strategy = next_strategy(self.table, self.strategy, active, context_len)
        # Strategies that differ only in gamma share a drafter.
        key = replace(self.strategy, gamma=1) if self.strategy.gamma else self.strategy
        if key not in self._drafters:
            self._drafters[key] = self.make(key)
        return self._drafters[key], self.strategy.gamma

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Same as in `DraftPolicy`."""
        for drafter in self._drafters.values():
            if drafter is not None:
                drafter.reset(row, kv_budget)

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `DraftPolicy`."""
        for drafter in self._drafters.values():
            if drafter is not None:
                drafter.compact(rows_B)


def next_strategy(table: PolicyTable, current: Strategy | None, active: int, context_len: float) -> Strategy:
    """The table's strategy, or the current one if it is chosen anywhere within the hysteresis around this point.

    The table holds the gain of the best strategy of a cell only, so the hysteresis cannot compare gains: it is applied to
    batch size and context instead.

    Args:
        table: The policy table.
        current: Strategy of the round before; None in the first round.
        active: Running sequences.
        context_len: Their mean context. [tokens]
    """
    low, high = 1 - table.hysteresis, 1 + table.hysteresis
    nearby = [table.at(round(active * a), context_len * c) for a in (low, 1, high) for c in (low, 1, high)]
    return current if current is not None and current in nearby else table.at(active, context_len)
