"""Tensor parallelism: processes that hold a part of every layer each, started by torchrun, and compute one model together.

Each process runs a narrower model: its share of the query and KV heads and of the MLP's width, over the whole of the
embeddings, norms and LM head. Only the outputs of attention and MLP are partial sums; they are added up over all
processes, so everything after them, choices included, is the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, Problem
from magicdec.costmodel.models.transformer import TransformerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One of several processes that share models.

    Attributes:
        rank: Which of them this is.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """The one that reads prompts, writes and prints."""
        return self.rank == 0

    def share(self, config: TransformerConfig) -> TransformerConfig:
        """The narrower model that one process holds. KV heads that are fewer than the processes are held by several.

        Raises:
            InputError: Heads or the MLP's width do not divide evenly.
        """
        kv_heads = config.num_kv_heads
        rules = [
            ("num_attention_heads", config.num_heads, config.num_heads % self.size == 0),
            ("num_key_value_heads", kv_heads, kv_heads % self.size == 0 or self.size % kv_heads == 0),
            ("intermediate_size", config.d_ff, config.d_ff % self.size == 0),
        ]
        problems = [
            Problem(config.name, key, f"a number that {self.size} processes can share evenly", str(found))
            for key, found, even in rules
            if not even
        ]
        if problems:
            raise InputError(*problems)
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=max(kv_heads // self.size, 1),
            d_ff=config.d_ff // self.size,
        )

    def part(self, whole: torch.Size, own: torch.Size) -> tuple[slice, ...]:
        """Where this process's part of a parameter lies: in the one dimension, if any, in which it is narrower."""
        return tuple(
            slice(first := self.rank * (large // small) // self.size * small, first + small)
            for large, small in zip(whole, own, strict=True)
        )

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(partial)
        return partial

    def agree(self, value: T) -> T:
        """What the first process has for a value, which others may pass as they like."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, connected meanwhile; this process alone if it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    # Imported while processes are connected, as much of torch does on first use, this module would keep the connection as the
    # default of its arguments: gloo's threads would outlive it, and abort the process if they want the interpreter at its end.
    import torch.distributed.nn.functional

    on_gpus = device == "cuda" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
