"""A policy table: which strategy to use at which batch size and context, for engines that may switch while running."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import pydantic

from .strategy import NO_SPECULATION, Strategy


class PolicyTable(pydantic.BaseModel):
    """The strategy of every cell of a grid over batch size and context length.

    A cell reaches from just above the axis value before it up to its own, so its own value is the most it is good for; beyond
    the last value the last cell holds.

    Attributes:
        batch_sizes: Rising upper bounds of the rows. [sequences]
        context_lens: Rising upper bounds of the columns. [tokens]
        strategies: The distinct strategies in use.
        choice: Index into `strategies`, by row and column.
        predicted_speedup: Of the chosen strategy at the cell's own batch size and context, by row and column. [ratio]
        hysteresis: A running engine keeps the strategy it has until another is better by this share. [0-1]
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

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
                raise ValueError(f"{name} that rise")
        for name, table in (("choice", self.choice), ("predicted_speedup", self.predicted_speedup)):
            if [len(row) for row in table] != [len(self.context_lens)] * len(self.batch_sizes):
                raise ValueError(f"a row of {name} for each of batch_sizes, with an entry for each of context_lens")
        if max(max(row) for row in self.choice) >= len(self.strategies):
            raise ValueError(f"choices below the number of strategies ({len(self.strategies)})")
        return self

    def at(self, batch_size: float, context_len: float) -> Strategy:
        """The strategy for a batch size and a context length."""
        row = min(bisect_left(self.batch_sizes, batch_size), len(self.batch_sizes) - 1)
        column = min(bisect_left(self.context_lens, context_len), len(self.context_lens) - 1)
        return self.strategies[self.choice[row][column]]

    def column(self, context_len: float) -> list[tuple[int, int, Strategy]]:
        """(least batch size, most batch size, strategy) at one context length, equal neighbours merged."""
        merged: list[tuple[int, int, Strategy]] = []
        for low, high in pairwise([0, *self.batch_sizes]):
            strategy = self.at(high, context_len)
            if merged and merged[-1][2] == strategy:
                merged[-1] = (merged[-1][0], high, strategy)
            else:
                merged.append((low + 1, high, strategy))
        return merged

    @property
    def speculates(self) -> bool:
        """Any cell drafts at all."""
        return any(self.strategies[index] != NO_SPECULATION for row in self.choice for index in row)
