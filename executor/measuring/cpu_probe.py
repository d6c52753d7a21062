"""Measure this machine: peak rates, and rounds of the decoding loop of a small model with random weights.

The cost model is fitted to these measurements, so nothing here sees a prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels.cpu_bindings import linear, usable
from ..model.dtypes import HALF_DTYPES
from ..model.transformer import Transformer
from ..system.machine import last_level_cache_bytes, memory_bytes, processor_name
from .loop_probe import LoopProbe, LoopShapes, LoopTimes
from .timing import median_time_s

MEMORY_CHANGE = 0.15  # relative change of the read bandwidth that makes earlier measurements obsolete
SHAPES = LoopShapes(batch_sizes=(1, 4, 16), context_lens=(512, 2048, 4096), kv_budgets=(128, 256, 512), gammas=(1, 3, 6, 9))


@dataclass(frozen=True)
class Probe:
    """Measurements of a machine.

    Attributes:
        description: Name of the device, for people.
        flop_per_s: Best rate of a large matrix product, by type. [FLOP/s]
        memory_bandwidth_bytes_per_s: Rate of reading memory that is far larger than the caches. [bytes/s]
        memory_bytes: Memory of the machine. [bytes]
        cores: Threads that torch uses.
        cache_bytes: Last-level cache. [bytes]
        times: Rounds of the decoding loop.
    """

    description: str
    flop_per_s: dict[str, float]
    memory_bandwidth_bytes_per_s: float
    memory_bytes: float
    cores: int
    cache_bytes: float
    times: LoopTimes


def random_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A model with random weights, which is enough for timing."""
    model = Transformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.02, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
    return model


@torch.inference_mode()
def probe_cpu(config: TransformerConfig, progress: Callable[[], object] = lambda: None) -> Probe:
    """Measure this machine's CPU with a model of the given shape. Takes 5 to 15 seconds on 2 cores.

    Args:
        config: Shape of the probed model.
        progress: Called after each of `num_measurements()` measurements.

    Raises:
        InputError: Out of memory.
    """
    model = random_model(config)
    times = LoopProbe(model, SHAPES).measure(SHAPES, progress)
    flop_per_s = product_rates()
    progress()
    bandwidth = read_rate()
    progress()
    return Probe(
        description=f"{processor_name()}, {torch.get_num_threads()} threads",
        flop_per_s=flop_per_s,
        memory_bandwidth_bytes_per_s=bandwidth,
        memory_bytes=memory_bytes(),
        cores=torch.get_num_threads(),
        cache_bytes=last_level_cache_bytes(),
        times=times,
    )


def num_measurements() -> int:
    """How often `probe_cpu` reports progress."""
    return SHAPES.points + 2


def product_rates(size: int = 2048) -> dict[str, float]:
    """Rate of a large matrix product by type of its weights, by torch or the C kernels, whichever is faster. [FLOP/s]

    16-bit weights are measured only where the C kernels multiply them, so planning knows from the profile that they do.
    """
    a = torch.randn(size, size)
    ways: dict[str, list[Callable[[], object]]] = {"float32": [lambda: a @ a]}
    for dtype in ("float32", *HALF_DTYPES):
        weight = a.to(getattr(torch, dtype))
        if usable(weight):
            ways.setdefault(dtype, []).append(partial(linear, a, weight))
    return {dtype: 2 * size**3 / min(median_time_s(way, repeats=5) for way in found) for dtype, found in ways.items()}


def read_rate(elements: int = 128 * 2**20) -> float:
    """Rate of reading memory that is far larger than the caches. [bytes/s]"""
    memory = torch.ones(elements)
    return memory.nbytes / median_time_s(lambda: memory.sum(), repeats=5)


def same_memory(bytes_per_s: float, earlier_bytes_per_s: float) -> bool:
    """Whether the read bandwidth is about the same as before. [bytes/s]

    A virtual machine may be moved between cores that share their memory bus with more or fewer others.
    """
    return abs(bytes_per_s / earlier_bytes_per_s - 1) < MEMORY_CHANGE
