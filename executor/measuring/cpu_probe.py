"""Measure a machine: its peaks, and the time of decoding passes of a small model with random weights.

What is measured here is what the cost model is fitted to, so it knows nothing of predictions.

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
from ..drafting.policy import Always
from ..engine.batch import Batch, Prompt
from ..engine.model_runner import Passes
from ..generate import make_drafter
from ..kernels.cpu_bindings import linear, usable
from ..kv.attention import SlotAttention
from ..kv.cache import KvCache
from ..model.dtypes import HALF_DTYPES
from ..model.transformer import Transformer
from ..system.machine import last_level_cache_bytes, memory_bytes, processor_name
from .measurement import seconds

MEMORY_CHANGE = 0.15  # of the read rate: so much, and what was measured holds no longer
BATCH_SIZES, CONTEXT_LENS, QUERY_LENS = (1, 4, 16), (512, 2048, 4096), (1, 2, 3, 4, 5, 7, 9)


@dataclass(frozen=True)
class Pass:
    """One measured pass of the probed model. [sequences, tokens, s]"""

    batch_size: int
    query_len: int
    context_len: int
    measured_s: float


@dataclass(frozen=True)
class Probe:
    """What was measured of a machine.

    Attributes:
        description: The device, for people.
        flop_per_s: Best rate of a large matrix product, by type. [FLOP/s]
        memory_bandwidth_bytes_per_s: Reading memory far larger than any cache. [bytes/s]
        memory_bytes: Memory there is. [bytes]
        cores: Threads torch uses.
        cache_bytes: Last-level cache. [bytes]
        round_overhead_s: Host work of a speculative round. [s]
        passes: Decode and verification passes.
    """

    description: str
    flop_per_s: dict[str, float]
    memory_bandwidth_bytes_per_s: float
    memory_bytes: float
    cores: int
    cache_bytes: float
    round_overhead_s: float
    passes: tuple[Pass, ...]


def random_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A model with random weights: timing needs no others."""
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
    """Measure this machine's CPU on a model of the given shape. Takes about 15 seconds on 2 cores.

    Args:
        config: Shape of the probed model.
        progress: Called after each of `num_measurements()` measurements.
    """
    model = random_model(config)
    slots = max(CONTEXT_LENS) + max(QUERY_LENS)
    cache = KvCache(config, max(BATCH_SIZES), slots, model.device, model.dtype)
    cache.k_LBKSH.normal_()
    cache.v_LBKSH.normal_()
    model_passes, passes = Passes(model), []
    for batch_size in BATCH_SIZES:
        part = _first_rows(cache, batch_size)
        for context_len in CONTEXT_LENS:
            for query_len in QUERY_LENS:
                measured_s = seconds(lambda: decoding_pass(model_passes, part, query_len, context_len), repeats=5, warm_up=2)  # noqa: B023
                passes.append(Pass(batch_size, query_len, context_len, measured_s))
                progress()
    del cache
    rates = _product_rates()
    progress()
    bandwidth = read_rate()
    progress()
    overhead_s = _round_overhead(model)
    progress()
    return Probe(
        description=f"{processor_name()}, {torch.get_num_threads()} threads",
        flop_per_s=rates,
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


def _first_rows(cache: KvCache, batch_size: int) -> KvCache:
    part = KvCache.__new__(KvCache)
    part.k_LBKSH, part.v_LBKSH = cache.k_LBKSH[:, :batch_size], cache.v_LBKSH[:, :batch_size]
    part._rows_B1, part.scratch = cache._rows_B1[:batch_size], cache.scratch
    return part


def decoding_pass(passes: Passes, cache: KvCache, query_len: int, context_len: int) -> None:
    """One pass of every row of a cache, from tokens to the likeliest next ones."""
    batch_size = cache.k_LBKSH.shape[1]
    tokens_BT = torch.zeros((batch_size, query_len), dtype=torch.long)
    positions_BT = torch.arange(context_len, context_len + query_len).expand(batch_size, -1)
    attend = SlotAttention(cache, positions_BT)
    passes(tokens_BT, positions_BT, attend).likeliest()


def _product_rates(size: int = 2048) -> dict[str, float]:
    """Rate of a large product, by type of its weights: float32 by torch or the C kernels, whichever is faster. [FLOP/s]

    16-bit weights are measured only where the C kernels multiply them, so planning knows from the profile that they do.
    """
    a = torch.randn(size, size)
    ways: dict[str, list[Callable[[], object]]] = {"float32": [lambda: a @ a]}
    for dtype in ("float32", *HALF_DTYPES):
        weight = a.to(getattr(torch, dtype))
        if usable(weight):
            ways.setdefault(dtype, []).append(partial(linear, a, weight))
    return {dtype: 2 * size**3 / min(seconds(way, repeats=5) for way in found) for dtype, found in ways.items()}


def read_rate(elements: int = 128 * 2**20) -> float:
    """How fast this machine reads memory far larger than its caches. [bytes/s]"""
    memory = torch.ones(elements)
    return memory.nbytes / seconds(lambda: memory.sum(), repeats=5)


def same_memory(bytes_per_s: float, earlier_bytes_per_s: float) -> bool:
    """Memory is as fast as it was: a host may move its guests between cores that share a link to memory and others."""
    return abs(bytes_per_s / earlier_bytes_per_s - 1) < MEMORY_CHANGE


def _round_overhead(model: Transformer, rounds: int = 8) -> float:
    """Median over rounds of what draft and verification leave of a round."""
    gamma = 4
    prompts = [Prompt(str(row), [1] * 64) for row in range(16)]
    batch = Batch(model, prompts, max_new_tokens=rounds * (gamma + 1), gamma=gamma)
    batch.prefill()
    drafter = make_drafter(Strategy("self", "streaming_llm", 64, gamma), batch, None)
    trace = decode(batch, steer=Always(drafter, gamma))
    return statistics.median(r - d - v for r, d, v in zip(trace.round_s, trace.draft_s, trace.verify_s, strict=True))
