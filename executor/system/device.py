"""Host-side helpers for a device: allocate, copy to it and time it without waiting for it.

Bookkeeping (lengths, positions, accepted tokens) stays on the host; keys, values and activations stay on the device. The host
waits once per round, when it fetches the accepted tokens.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import time
from collections.abc import Sequence

import torch
from torch import Tensor

Timestamp = float | torch.cuda.Event  # [s], or an event on the current CUDA stream


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy to `device` without blocking; no-op if already there."""
    return x.to(device, non_blocking=True)


def zeros_in_huge_pages(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on a CPU backed by transparent huge pages where Linux has them (fewer TLB misses)."""
    memory = torch.empty(shape, device=device, dtype=dtype)
    if device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (memory.data_ptr() + memory.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        # Only advice: if the kernel refuses, pages stay small.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(size, 0)), mmap.MADV_HUGEPAGE)
    return memory.zero_()


class Workspace:
    """Memory for temporary results that is kept from step to step: faulting in new pages costs more than computing in them.

    Args:
        device, dtype: Of its tensors.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self._held = torch.empty(0, device=device, dtype=dtype)

    def __call__(self, *shape: int) -> Tensor:
        """Uninitialised view of the given shape. It shares its memory with all earlier ones."""
        count = math.prod(shape)
        if self._held.numel() < count:
            self._held = self._held.new_empty(count + count // 4)
        return self._held[:count].view(shape)


def wait(device: torch.device) -> None:
    """Block until the device has finished everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def record_time(device: torch.device) -> Timestamp:
    """Record the time at which the device reaches this point."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def elapsed_s(first: Timestamp, second: Timestamp) -> float:
    """Time between two recorded points of one device, which must have passed the second. [s]"""
    if isinstance(first, float) or isinstance(second, float):
        assert isinstance(first, float)
        assert isinstance(second, float)
        return second - first
    milliseconds: float = first.elapsed_time(second)
    return milliseconds / 1e3
