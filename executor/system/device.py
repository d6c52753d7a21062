"""What the host does with a device: make room on it, send to it and time it, without waiting for it.

Bookkeeping (lengths, positions, known tokens) lives on the host; keys, values and what models compute live on the device. The
host waits once a round, when it fetches what was accepted.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import time
from collections.abc import Sequence

import torch
from torch import Tensor

Mark = float | torch.cuda.Event


def send(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; one that is there already as it is."""
    return x.to(device, non_blocking=True)


def in_large_pages(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on a Linux CPU in large pages if it has any: there is less to look up in reading them from end to end."""
    memory = torch.empty(shape, device=device, dtype=dtype)
    if device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (memory.data_ptr() + memory.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(whole, 0)), mmap.MADV_HUGEPAGE)  # a wish: may fail
    return memory.zero_()


class Scratch:
    """Memory that is kept from step to step: fresh pages cost more than what is done in them."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self._held = torch.empty(0, device=device, dtype=dtype)

    def __call__(self, *shape: int) -> Tensor:
        """A part of it in this shape; what was there before is anybody's."""
        count = math.prod(shape)
        if self._held.numel() < count:
            self._held = self._held.new_empty(count + count // 4)
        return self._held[:count].view(shape)


def wait(device: torch.device) -> None:
    """Until the device has done all that was sent to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Mark:
    """A moment in what the device does."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Mark, second: Mark) -> float:
    """Time between two moments, of which the device must have passed the second. [s]"""
    if isinstance(first, float) or isinstance(second, float):
        assert isinstance(first, float)
        assert isinstance(second, float)
        return second - first
    return first.elapsed_time(second) / 1e3
