"""Which drafter works next, and how many tokens it drafts: always the same, or as a policy table says of the rows at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy

from .drafters import Drafter


class Steer(Protocol):
    """Asked before every round, and told of every prompt that takes a row later on."""

    def pick(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        """Drafter and gamma for so many running rows with this mean context; no drafter and 0 for a plain step."""
        ...

    def reset(self, row: int, kv_budget: int | None) -> None:
        """Another prompt has taken a row."""
        ...

    def keep(self, rows_B: Tensor) -> None:
        """Only these rows go on, in this order."""
        ...


@dataclass(frozen=True)
class Always:
    """One drafter and one gamma throughout."""

    drafter: Drafter | None = None
    gamma: int = 0

    def pick(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        return self.drafter, self.gamma

    def reset(self, row: int, kv_budget: int | None) -> None:
        if self.drafter is not None:
            self.drafter.reset(row, kv_budget)

    def keep(self, rows_B: Tensor) -> None:
        if self.drafter is not None:
            self.drafter.keep(rows_B)


PLAIN = Always()


class Steering:
    """A policy table at work: drafters are made when first needed, and catch up by themselves when they are needed again.

    Args:
        table: What to do at which batch size and context.
        make: Makes the drafter of a strategy for the batch that is being steered.

    Attributes:
        strategy: What was picked last.
    """

    def __init__(self, table: PolicyTable, make: Callable[[Strategy], Drafter | None]):
        self.table, self.make = table, make
        self.strategy: Strategy | None = None
        self._drafters: dict[Strategy, Drafter | None] = {NO_SPECULATION: None}

    def pick(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        self.strategy = next_strategy(self.table, self.strategy, active, context_len)
        # Strategies that differ in gamma alone share a drafter.
        kind = replace(self.strategy, gamma=1) if self.strategy.gamma else self.strategy
        if kind not in self._drafters:
            self._drafters[kind] = self.make(kind)
        return self._drafters[kind], self.strategy.gamma

    def reset(self, row: int, kv_budget: int | None) -> None:
        for drafter in self._drafters.values():
            if drafter is not None:
                drafter.reset(row, kv_budget)

    def keep(self, rows_B: Tensor) -> None:
        for drafter in self._drafters.values():
            if drafter is not None:
                drafter.keep(rows_B)


def next_strategy(table: PolicyTable, current: Strategy | None, active: int, context_len: float) -> Strategy:
    """The table's strategy, or the current one while batch and context lie within the hysteresis of where it holds.

    The table knows no gain of a strategy but where it is the best one, so its share of hysteresis is taken along the axes.
    """
    low, high = 1 - table.hysteresis, 1 + table.hysteresis
    near = [table.at(round(active * a), context_len * c) for a in (low, 1, high) for c in (low, 1, high)]
    return current if current is not None and current in near else table.at(active, context_len)
