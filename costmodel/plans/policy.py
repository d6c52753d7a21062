"""Policy table: the strategy for every batch size and context length, for engines that switch while running."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import pydantic

from ..base.validation import StrictModel
from .strategy import Strategy


class PolicyTable(StrictModel):
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

    batch_sizes: list[pydantic.PositiveInt] = pydantic.Field(min_length=1)
    context_lens: list[pydantic.PositiveInt] = pydantic.Field(min_length=1)
    strategies: list[Strategy] = pydantic.Field(min_length=1)
    choice: list[list[pydantic.NonNegativeInt]]
    predicted_speedup: list[list[pydantic.PositiveFloat]]
    hysteresis: float = pydantic.Field(0.05, ge=0.0, lt=1.0)

    @pydantic.model_validator(mode="after")
    def _shapes_agree(self) -> PolicyTable:
        for name, axis in (("batch_sizes", self.batch_sizes), ("context_lens", self.context_lens)):
            if any(a >= b for a, b in pairwise(axis)):
                raise ValueError(f"{name} in ascending order")
        for name, table in (("choice", self.choice), ("predicted_speedup", self.predicted_speedup)):
            if [len(row) for row in table] != [len(self.context_lens)] * len(self.batch_sizes):
                raise ValueError(f"one row of {name} per batch size, with one entry per context length")
        if max(max(row) for row in self.choice) >= len(self.strategies):
            raise ValueError(f"indices below the number of strategies ({len(self.strategies)}) in choice")
        return self

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
