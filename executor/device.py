"""What the host does with a device: send to it and time it, without waiting for it.

Bookkeeping (lengths, positions, known tokens) lives on the host; keys, values and what models compute live on the device. The
host waits once a round, when it fetches what was accepted.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

Mark = float | torch.cuda.Event


def send(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; one that is there already as it is."""
    return x.to(device, non_blocking=True)


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
