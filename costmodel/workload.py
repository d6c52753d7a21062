"""What is asked of a server: how many sequences, how long, how many new tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pydantic

from costmodel.errors import InputError, Problem


@dataclass(frozen=True)
class Workload:
    """A homogeneous batch.

    Attributes:
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache when decoding starts, per sequence. [tokens]
        output_len: New tokens per sequence. [tokens]
    """

    batch_size: int
    context_len: int
    output_len: int = 128

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        problems = [
            Problem("workload", key, "a positive whole number", repr(value))
            for key, value in vars(self).items()
            if not (isinstance(value, int) and value >= 1)
        ]
        if problems:
            raise InputError(*problems)

    @property
    def mean_context_len(self) -> float:
        """Context halfway through the output: what a step costs on average, costs being linear in context. [tokens]"""
        return self.context_len + self.output_len / 2

    @property
    def max_context_len(self) -> int:
        """Context after the last token: what memory must hold. [tokens]"""
        return self.context_len + self.output_len
