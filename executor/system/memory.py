"""Memory left on a device, and the error for a batch that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magicdec.costmodel.base.errors import InputError, bad

from .machine import available_memory_bytes


def available_bytes(device: torch.device) -> float:
    """Memory that can still be allocated: of the GPU, or of the machine and the container this process may run in. [bytes]"""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # held by torch's allocator
        return float(torch.cuda.mem_get_info(device)[0] + reusable)
    return available_memory_bytes()


def too_large(batch_size: int, bytes_per_row: float, device: torch.device, *, held_bytes: float = 0.0) -> InputError:
    """Make the error for a batch that does not fit; it names the largest batch that would.

    Args:
        batch_size: Requested sequences.
        bytes_per_row: KV cache of one sequence. [bytes]
        device: Where the KV cache would be.
        held_bytes: Part of it that is allocated already. [bytes]
    """
    free = available_bytes(device) + held_bytes
    most = min(int(free // bytes_per_row), batch_size - 1)
    fits = f"a batch of at most {most}" if most >= 1 else "shorter prompts or fewer new tokens: not even one sequence fits"
    found = f"{batch_size} sequences of {bytes_per_row / 1e9:.2g} GB with {free / 1e9:.1f} GB free on {device.type}"
    return bad("memory", "", f"{fits} (workload.batch_size of the plan)", found)


@contextmanager
def explain_out_of_memory(
    batch_size: int, bytes_per_row: float, device: torch.device, *, held_bytes: float = 0.0
) -> Iterator[None]:
    """Translate out-of-memory errors into an `InputError` that names the largest batch that fits.

    Args:
        batch_size, bytes_per_row, device, held_bytes: As in `too_large`.

    Raises:
        InputError: The code inside ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise too_large(batch_size, bytes_per_row, device, held_bytes=held_bytes) from None
        raise
