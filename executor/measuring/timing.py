"""Synchronised timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ..system.device import wait

CPU = torch.device("cpu")


def median_time_s(action: Callable[[], object], *, repeats: int, warm_up: int = 1, device: torch.device = CPU) -> float:
    """Median time of an action. [s]

    Args:
        action: What to time.
        repeats: Timed calls.
        warm_up: Untimed calls before them.
        device: Synchronised before each look at the clock.
    """
    times = []
    for repeat in range(warm_up + repeats):
        wait(device)
        started = time.perf_counter()
        action()
        wait(device)
        if repeat >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)
