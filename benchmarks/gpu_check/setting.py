"""What all stages share: where they run, how long they may take, how they time and where their results go."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from magicdec.executor.measuring.timing import median_time_s

Value = str | int | float | bool | None
TARGET_S = 0.02  # of the calls that one replay of a CUDA graph times
COLD_BYTES = 256 * 2**20  # data that is cycled through is larger than the L2 caches of today


@dataclass(frozen=True)
class Setting:
    """Where a stage runs.

    Attributes:
        folder: Results go here.
        rehearse: Small shapes, on a CPU.
        limit_s: The stage begins nothing new after this time. [s]
        started_s: When it started, by the monotonic clock. [s]
    """

    folder: Path
    rehearse: bool
    limit_s: float
    started_s: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        """A GPU, or the CPU of a rehearsal."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and KV cache."""
        return torch.float32 if self.rehearse else torch.bfloat16

    @property
    def time_is_up(self) -> bool:
        """Whether to begin nothing new."""
        return time.monotonic() - self.started_s > self.limit_s

    @property
    def memory_bytes(self) -> int:
        """Memory that tensors may take together. [bytes]"""
        return 2**30 if self.rehearse else int(0.9 * torch.cuda.mem_get_info()[0])

    def write(self, stage: str, row: Mapping[str, Value]) -> None:
        """Add a row to the results of a stage, on disk at once."""
        with (self.folder / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(stage, " ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def device_time_s(actions: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Time that the device takes for one of several like actions, which are run in turn so that caches stay cold. [s]

    On a GPU the actions are captured in a CUDA graph, so that the time to launch them does not count.
    """
    if device.type == "cpu":
        return median_time_s(lambda: [action() for action in actions], repeats=2, warm_up=1) / len(actions)
    for action in actions[:2]:
        action()
    torch.cuda.synchronize()
    once_s = median_time_s(lambda: [action() for action in actions], repeats=1, warm_up=0, device=device)
    turns = max(1, min(round(TARGET_S / once_s), 50))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(turns):
            for action in actions:
                action()
    graph.replay()
    times = []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times) / (turns * len(actions))
