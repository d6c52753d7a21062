"""Measure this machine: peak rates, and the time of decoding passes of a small model with random weights.

The cost model is fitted to these measurements, so nothing here sees a prediction.

Shapes: B batch, T query tokens, S slots.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import Strategy

from ..decode_loop import decode
from ..drafting.factory import make_policy
from ..engine.batch import Batch
from ..engine.model_runner import ModelRunner
from ..engine.request import Request
from ..engine.settings import GenerationSettings
from ..kernels.cpu_bindings import linear, usable
from ..kv.attention import SlotAttention
from ..kv.cache import KvCache
from ..model.dtypes import HALF_DTYPES
from ..model.transformer import Transformer
from ..system.machine import last_level_cache_bytes, memory_bytes, processor_name
from .timing import median_time_s

MEMORY_CHANGE = 0.15  # relative change of the read bandwidth that makes earlier measurements obsolete
BATCH_SIZES, CONTEXT_LENS, QUERY_LENS = (1, 4, 16), (512, 2048, 4096), (1, 2, 3, 4, 5, 7, 9)


@dataclass(frozen=True)
class MeasuredPass:
    """Time of one pass of the probed model.

    Attributes:
        batch_size: Sequences.
        query_len, context_len: New and cached tokens of each sequence. [tokens]
        measured_s: Median time. [s]
    """

    batch_size: int
    query_len: int
    context_len: int
    measured_s: float


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
        round_overhead_s: Host work of a speculative round. [s]
        passes: Decoding and verification passes.
    """

    description: str
    flop_per_s: dict[str, float]
    memory_bandwidth_bytes_per_s: float
    memory_bytes: float
    cores: int
    cache_bytes: float
    round_overhead_s: float
    passes: tuple[MeasuredPass, ...]


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
    """Measure this machine's CPU with a model of the given shape. Takes about 15 seconds on 2 cores.

    Args:
        config: Shape of the probed model.
        progress: Called after each of `num_measurements()` measurements.

    Raises:
        InputError: Out of memory.
    """
    model = random_model(config)
    slots = max(CONTEXT_LENS) + max(QUERY_LENS)
    cache = KvCache(config, max(BATCH_SIZES), slots, model.device, model.dtype)
    cache.k_LBKSH.normal_()
    cache.v_LBKSH.normal_()
    runner, passes = ModelRunner(model), []
    for batch_size in BATCH_SIZES:
        part = cache.first_rows(batch_size)
        for context_len in CONTEXT_LENS:
            for query_len in QUERY_LENS:
                measured_s = median_time_s(lambda: decoding_pass(runner, part, query_len, context_len), repeats=5, warm_up=2)  # noqa: B023
                passes.append(MeasuredPass(batch_size, query_len, context_len, measured_s))
                progress()
    del cache
    flop_per_s = _product_rates()
    progress()
    bandwidth = read_rate()
    progress()
    overhead_s = _round_overhead_s(model)
    progress()
    return Probe(
        description=f"{processor_name()}, {torch.get_num_threads()} threads",
        flop_per_s=flop_per_s,
        memory_bandwidth_bytes_per_s=bandwidth,
        memory_bytes=memory_bytes(),
        cores=torch.get_num_threads(),
        cache_bytes=last_level_cache_bytes(),
        round_overhead_s=overhead_s,
        passes=tuple(passes),
    )


def num_measurements() -> int:
    """How often `probe_cpu` reports progress."""
    return len(BATCH_SIZES) * len(CONTEXT_LENS) * len(QUERY_LENS) + 3


def decoding_pass(runner: ModelRunner, cache: KvCache, query_len: int, context_len: int) -> None:
    """Run one greedy pass over every row of a cache, from `query_len` tokens at `context_len` to the next tokens."""
    batch_size = cache.k_LBKSH.shape[1]
    tokens_BT = torch.zeros((batch_size, query_len), dtype=torch.long)
    positions_BT = torch.arange(context_len, context_len + query_len).expand(batch_size, -1)
    runner(tokens_BT, positions_BT, SlotAttention(cache, positions_BT)).greedy()


def _product_rates(size: int = 2048) -> dict[str, float]:
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


def _round_overhead_s(model: Transformer, rounds: int = 8) -> float:
    """Median over rounds of the time beside draft and verification. [s]"""
    gamma = 4
    strategy = Strategy("self", "streaming_llm", 64, gamma)
    requests = [Request(str(row), [1] * 64) for row in range(16)]
    batch = Batch(model, requests, GenerationSettings(rounds * (gamma + 1)), gamma=gamma)
    batch.prefill()
    measured = decode(batch, make_policy(strategy, batch, None))
    return statistics.median(one.round_s - one.draft_s - one.verify_s for one in measured)
