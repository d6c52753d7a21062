"""Workloads: a batch of equal sequences. Requests of mixed lengths are in `trace.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import InputError, Problem
from ..base.limits import MAX_SEQUENCES, MAX_TOKENS
from ..base.records import STRICT


@dataclass(frozen=True)
class Workload:
    """A batch of equal sequences.

    Attributes:
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache when decoding starts, per sequence. [tokens]
        output_len: Output tokens per sequence. [tokens]
    """

    batch_size: int
    context_len: int
    output_len: int = 128

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        problems = [
            Problem("workload", key, f"a positive whole number of at most {most:,}", repr(value))
            for key, value in vars(self).items()
            for most in (MAX_SEQUENCES if key == "batch_size" else MAX_TOKENS,)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most
        ]
        if problems:
            raise InputError(*problems)

    @property
    def mean_context_len(self) -> float:
        """Context halfway through the output. Step costs are linear in context, so this gives the mean cost. [tokens]"""
        return self.context_len + self.output_len / 2

    @property
    def max_context_len(self) -> int:
        """Context after the last output token, which must fit in memory. [tokens]"""
        return self.context_len + self.output_len
