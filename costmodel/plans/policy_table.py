"""Policy table: the strategy for every batch size and context length, for engines that switch while running."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from ..base.errors import InputError, Problem
from ..base.limits import MAX_SEQUENCES, MAX_TOKENS
from ..base.records import STRICT, Limits
from .strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class PolicyTable:
    """Strategies on a grid over batch size and context length.

    The axis values are inclusive upper bounds of the cells. Beyond the last bound, the last cell applies.

    Attributes:
        batch_sizes: Upper bounds of the rows, ascending. [sequences]
        context_lens: Upper bounds of the columns, ascending. [tokens]
        strategies: The distinct strategies of the table.
        choice: Index into `strategies`, by row and column.
        predicted_speedup: Speedup at the cell's upper bounds, by row and column. [ratio]
        hysteresis: An engine switches only to a strategy that is better by this share. [0-1]
    """

    batch_sizes: Annotated[list[Annotated[int, Limits(gt=0, le=MAX_SEQUENCES)]], Limits(min_length=1)]
    context_lens: Annotated[list[Annotated[int, Limits(gt=0, le=MAX_TOKENS)]], Limits(min_length=1)]
    strategies: Annotated[list[Strategy], Limits(min_length=1)]
    choice: list[list[Annotated[int, Limits(ge=0)]]]
    predicted_speedup: list[list[Annotated[float, Limits(gt=0.0)]]]
    hysteresis: Annotated[float, Limits(ge=0.0, lt=1.0)] = 0.05

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        problems = [Problem("policy", "", expected, found) for expected, found in self._mistakes()]
        if problems:
            raise InputError(*problems)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield (expected, found) of every axis and table that does not fit the others."""
        for name, axis in (("batch_sizes", self.batch_sizes), ("context_lens", self.context_lens)):
            if any(a >= b for a, b in pairwise(axis)):
                yield f"{name} in ascending order", f"{axis}"
        for name, table in (("choice", self.choice), ("predicted_speedup", self.predicted_speedup)):
            lengths = [len(row) for row in table]
            if lengths != [len(self.context_lens)] * len(self.batch_sizes):
                yield f"one row of {name} per batch size, with one entry per context length", f"rows with {lengths} entries"
        last = max((index for row in self.choice for index in row), default=0)
        if last >= len(self.strategies):
            yield f"indices below the number of strategies ({len(self.strategies)}) in choice", f"{last}"

    def at(self, batch_size: float, context_len: float) -> Strategy:
        """Return the strategy for a batch size and a context length. [sequences, tokens]"""
        row = min(bisect_left(self.batch_sizes, batch_size), len(self.batch_sizes) - 1)
        column = min(bisect_left(self.context_lens, context_len), len(self.context_lens) - 1)
        return self.strategies[self.choice[row][column]]

    def column(self, context_len: float) -> list[tuple[int, int, Strategy]]:
        """Return (smallest batch size, largest batch size, strategy) ranges at one context length, merging equal neighbours."""
        merged: list[tuple[int, int, Strategy]] = []
        for low, high in pairwise([0, *self.batch_sizes]):
            strategy = self.at(high, context_len)
            if merged and merged[-1][2] == strategy:
                merged[-1] = (merged[-1][0], high, strategy)
            else:
                merged.append((low + 1, high, strategy))
        return merged
