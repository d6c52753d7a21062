"""How much memory is left, and what to say when a batch does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from magicdec.costmodel.base.errors import InputError, bad

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> float:
    """Memory that can still be allocated: of the GPU, or of the machine and the container it may run in. [bytes]"""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, to be given out again
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    found = [_container_bytes()]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass
    return min(found)


def _container_bytes() -> float:
    """What a container's limit leaves; files that the kernel merely keeps in memory do not count as used."""
    try:
        most, used = (float((CGROUP / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        return most - used + float(counts.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or one without a limit
        return float("inf")


def too_large(batch_size: int, bytes_per_row: float, device: torch.device, *, held_bytes: float = 0.0) -> InputError:
    """The error for a batch that does not fit, with the largest that would.

    Args:
        batch_size: Rows there were to be.
        bytes_per_row: KV cache of one. [bytes]
        held_bytes: What of them was allocated already. [bytes]
    """
    free = available_bytes(device) + held_bytes
    most = min(int(free // bytes_per_row), batch_size - 1)
    fits = f"a batch of at most {most}" if most >= 1 else "shorter prompts or fewer new tokens: not even one row fits"
    found = f"{batch_size} rows of {bytes_per_row / 1e9:.2g} GB with {free / 1e9:.1f} GB free on {device.type}"
    return bad("memory", "", f"{fits} (workload.batch_size of the plan)", found)


@contextmanager
def explained(batch_size: int, bytes_per_row: float, device: torch.device, *, held_bytes: float = 0.0) -> Iterator[None]:
    """Running out of memory inside is bad input: `too_large` says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise too_large(batch_size, bytes_per_row, device, held_bytes=held_bytes) from None
        raise
