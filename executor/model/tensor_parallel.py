"""Tensor parallelism: processes started by torchrun that each hold a shard of every layer and compute one model together.

Each process runs a narrower model: its shard of the query heads, the KV heads and the MLP's width, and the whole embeddings,
norms and LM head. Only the outputs of attention and MLP are partial sums. They are summed over all processes (all-reduce), so
everything that follows, sampled tokens included, is the same in each process.
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
    """This process's place among those that share a model.

    Attributes:
        rank: Index of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank0(self) -> bool:
        """True for the process that reads prompts, writes files and prints."""
        return self.rank == 0

    def shard(self, config: TransformerConfig) -> TransformerConfig:
        """The narrower model that one process holds. KV heads are replicated where there are fewer of them than processes.

        Raises:
            InputError: The number of heads or the MLP's width is not divisible by the number of processes.
        """
        kv_heads = config.num_kv_heads
        rules = [
            ("num_attention_heads", config.num_heads, config.num_heads % self.size == 0),
            ("num_key_value_heads", kv_heads, kv_heads % self.size == 0 or self.size % kv_heads == 0),
            ("intermediate_size", config.d_ff, config.d_ff % self.size == 0),
        ]
        problems = [
            Problem(config.name, key, f"a number that {self.size} processes can share evenly", str(found))
            for key, found, divides in rules
            if not divides
        ]
        if problems:
            raise InputError(*problems)
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=max(kv_heads // self.size, 1),
            d_ff=config.d_ff // self.size,
        )

    def shard_slices(self, whole: torch.Size, own: torch.Size) -> tuple[slice, ...]:
        """Slices that cut this process's shard out of a parameter.

        Args:
            whole: Shape of the parameter in the whole model.
            own: Its shape in this process, smaller in at most one dimension.
        """
        return tuple(
            slice(start := self.rank * (large // small) // self.size * small, start + small)
            for large, small in zip(whole, own, strict=True)
        )

    def sum(self, partial: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(partial)
        return partial

    def broadcast(self, value: T) -> T:
        """Broadcast rank 0's value; the argument is ignored elsewhere."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun started; without torchrun, yield `SINGLE_PROCESS`.

    Args:
        device: "cuda" connects GPUs by NCCL, anything else processes by gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    # Parts of torch import this module on first use. Imported while a process group exists, it keeps the group as a default
    # argument: gloo's threads then outlive the group, and can abort the process at interpreter exit.
    import torch.distributed.nn.functional

    on_gpus = device == "cuda" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
