"""Time of an attention kernel over a long KV cache, in closed form: few queries a sequence, as in decoding and verification.

A block is one (sequence, KV head) pair, or as many query rows of one as a thread block (CTA) holds. Blocks run in waves over
the streaming multiprocessors (SMs). The time is

    t = launch + (sm^p + memory^p + arithmetic^p)^(1/p)

    memory      bytes at the reached bandwidth; a last, partly filled wave may not saturate it
    sm          what one SM takes: it reads its share of the cache at its own rate, after the first tile, which hides in the
                launch; while SMs would idle, several share a sequence and merge their results, as many as pays best; each
                further wave costs its prologue
    arithmetic  products, query rows filled up to what a tensor-core instruction takes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
TILE = 128.0  # tokens of the cache that a CTA takes at a time


@dataclass(frozen=True)
class AttentionLaw:
    """How an attention kernel uses a machine.

    Attributes:
        launch_s: A call of one wave on one tile: launches, prologue, epilogue. [s]
        memory_efficiency: Of peak bandwidth, in a read that saturates it. [0-1]
        compute_efficiency: Of peak FLOP/s. [0-1]
        sm_bytes_per_s: Rate at which one SM streams the cache. [bytes/s]
        wave_s: Prologue and epilogue of each further wave. [s]
        merge_s: Combining the results of several CTAs that share a sequence. [s]
        split_s: Each further CTA among them. [s]
        sharpness: How the three times overlap: 1 adds them up, infinity hides the smaller behind the largest.
        transpose_s: Reordering queries and output, in kernels that do so for several sequences and grouped queries. [s]
        ungrouped_wave_factor: `wave_s` of the kernel that serves multi-head attention, over that of the other. [ratio]
        ctas_per_sm: CTAs that share an SM.
        tile_rows: Query rows of one KV head that a CTA holds.
        instruction_rows: Query rows that a tensor-core instruction takes; 1 where there is none.
        splits_kv: Several CTAs may share a sequence at all.
        min_split_group: Fewest query heads of a KV head for which they may.
    """

    launch_s: Annotated[float, Interval(ge=0.0, le=1e-3)] = 1e-5
    memory_efficiency: Annotated[float, Interval(ge=0.05, le=1.0)] = 0.9
    compute_efficiency: Annotated[float, Interval(ge=0.02, le=1.0)] = 0.5
    sm_bytes_per_s: Annotated[float, Interval(ge=1e9, le=1e12)] = 1e11
    wave_s: Annotated[float, Interval(ge=0.0, le=2e-5)] = 3e-6
    merge_s: Annotated[float, Interval(ge=0.0, le=3e-5)] = 2e-6
    split_s: Annotated[float, Interval(ge=0.0, le=2e-6)] = 2e-7
    sharpness: Annotated[float, Interval(ge=1.0, le=12.0)] = 1.7
    transpose_s: Annotated[float, Interval(ge=0.0, le=2e-5)] = 0.0
    ungrouped_wave_factor: Annotated[float, Interval(ge=0.05, le=1.5)] = 1.0
    ctas_per_sm: Annotated[int, Interval(ge=1, le=32)] = 1
    tile_rows: Annotated[int, Interval(ge=1, le=4096)] = 64
    instruction_rows: Annotated[int, Interval(ge=1, le=64)] = 16
    splits_kv: bool = True
    min_split_group: Annotated[int, Interval(ge=1, le=64)] = 1

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # in profile files


def attention_s(
    law: AttentionLaw,
    *,
    sequences: ArrayLike,
    kv_heads: ArrayLike,
    query_rows: ArrayLike,
    group: ArrayLike,
    read_len: ArrayLike,
    flop: ArrayLike,
    kv_bytes: ArrayLike,
    query_bytes: ArrayLike,
    flop_per_s: float,
    bytes_per_s: float,
    num_sms: int,
    may_split: ArrayLike = True,
    sm_speedup: ArrayLike = 1.0,
) -> tuple[Array, Array, Array]:
    """One call of the kernel, for one layer on one GPU.

    Args:
        law: Of the kernel on this machine.
        sequences: Sequences in the batch.
        kv_heads: KV heads of the GPU.
        query_rows: Queries that share one read of a (sequence, KV head).
        group: Query heads per KV head.
        read_len: KV entries read per sequence. [tokens]
        flop: Products with keys and values, causal pairs only. [FLOP]
        kv_bytes, query_bytes: KV entries; queries and output. [bytes]
        flop_per_s, bytes_per_s: Peaks. [FLOP/s, bytes/s]
        num_sms: SMs of the GPU.
        may_split: Several CTAs may share a sequence in this call.
        sm_speedup: How much faster than from memory an SM streams; 1 but for benchmarks that find the cache in L2.

    Returns:
        What it spends on arithmetic that does not hide behind the cache traffic, on the traffic, and beside both. [s]
    """
    b, k, rows, length = (np.asarray(x, np.float64) for x in (sequences, kv_heads, query_rows, read_len))
    kv, queries = np.asarray(kv_bytes, np.float64), np.asarray(query_bytes, np.float64)
    slots = float(num_sms * law.ctas_per_sm)
    blocks = b * k * np.ceil(rows / law.tile_rows)
    reached = bytes_per_s * law.memory_efficiency
    rate = law.sm_bytes_per_s / law.ctas_per_sm  # of one CTA

    pairs = b * k  # further tiles of queries find the entries of their pair in the L2 cache
    full = np.floor(pairs / slots)
    rest = pairs - full * slots
    saturating = reached / rate  # CTAs that keep the memory busy
    served = full * np.maximum(slots, saturating) + np.where(rest > 0, np.maximum(rest, saturating), 0.0)
    memory_s = (kv + queries) / reached * np.where(pairs > slots, served / pairs, 1.0)

    waves = np.ceil(blocks / slots)
    token_s = kv / (b * k * length) / (rate * np.asarray(sm_speedup))  # one KV head's share of a token
    whole_s = waves * np.maximum(length - TILE, 0.0) * token_s
    splits = np.asarray(may_split) & law.splits_kv & (np.asarray(group) >= law.min_split_group)
    most = np.where(splits, np.maximum(np.minimum(np.floor(slots / blocks), length / TILE), 1.0), 1.0)
    parts = np.clip(np.sqrt(length * token_s / max(law.split_s, 1e-12)), 1.0, most)
    split_s = np.maximum(length / parts - TILE, 0.0) * token_s + law.merge_s + law.split_s * parts
    prologues_s = (waves - 1) * law.wave_s * np.where(rows <= 1, law.ungrouped_wave_factor, 1.0)
    sm_s = prologues_s + np.where(most > 1, np.minimum(whole_s, split_s), whole_s)

    padded = np.ceil(rows / law.instruction_rows) * law.instruction_rows
    compute_s = np.asarray(flop, np.float64) * (padded / rows) / (flop_per_s * law.compute_efficiency)
    exposed_s, traffic_s = _shared_time(compute_s, memory_s, sm_s, law.sharpness)
    transposes = (b > 1) & (k > 1) & (rows > 1)
    return exposed_s, traffic_s, np.asarray(law.launch_s + law.transpose_s * transposes, np.float64)


def _shared_time(compute_s: Array, memory_s: Array, sm_s: Array, sharpness: float) -> tuple[Array, Array]:
    """(compute^p + memory^p + sm^p)^(1/p) as what it takes without arithmetic, and what arithmetic adds; or, where that is
    the longer, the other way round. [s]"""
    traffic_s = _joined(memory_s, sm_s, sharpness)
    total_s = _joined(compute_s, traffic_s, sharpness)
    computing = compute_s > traffic_s
    return np.where(computing, compute_s, total_s - traffic_s), np.where(computing, total_s - compute_s, traffic_s)


def _joined(one_s: Array, other_s: Array, sharpness: float) -> Array:
    """(one^p + other^p)^(1/p), without overflow. [s]"""
    longer = np.maximum(np.maximum(one_s, other_s), 1e-30)
    total = np.power(one_s / longer, sharpness) + np.power(other_s / longer, sharpness)
    return np.asarray(longer * np.power(total, 1 / sharpness))
