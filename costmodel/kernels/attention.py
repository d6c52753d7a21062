"""Closed-form latency of decode attention: few queries per sequence over a long KV cache.

A block is one (sequence, KV head) pair, with at most `tile_rows` query rows. Blocks run in waves over the streaming
multiprocessors (SMs). The latency is

    t = launch + (sm^p + memory^p + arithmetic^p)^(1/p)

    memory      bytes / achieved bandwidth; the last, partly filled wave may not saturate the bandwidth
    sm          critical path of one SM: it streams its share of the cache at its own rate; the first tile is hidden in the
                launch; idle SMs split a sequence (split-KV) and merge their results; each further wave costs a prologue
    arithmetic  FLOP / achieved rate, with query rows padded to the size of a tensor-core instruction
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.records import STRICT, Limits

Array = NDArray[np.float64]
TILE = 128.0  # KV tokens that a thread block (CTA) processes at a time


@dataclass(frozen=True)
class AttentionLaw:
    """Parameters of an attention kernel on one GPU.

    Attributes:
        launch_s: Launch, prologue and epilogue of one wave with one tile. [s]
        memory_efficiency: Achieved share of peak bandwidth in a large read. [0-1]
        compute_efficiency: Achieved share of peak FLOP/s. [0-1]
        sm_bytes_per_s: Streaming rate of one SM. [bytes/s]
        wave_s: Prologue and epilogue of each further wave. [s]
        merge_s: Merging the results of the CTAs that share a sequence. [s]
        split_s: Extra merge time per CTA. [s]
        sharpness: Exponent p of the overlap: 1 for no overlap, infinity for full overlap.
        transpose_s: Transposing queries and output, in kernels that do so for grouped queries of several sequences. [s]
        ungrouped_wave_factor: `wave_s` of the multi-head kernel relative to that of the grouped-query kernel. [ratio]
        ctas_per_sm: Resident CTAs per SM.
        tile_rows: Query rows per CTA.
        instruction_rows: Query rows per tensor-core instruction; 1 without tensor cores.
        splits_kv: Whether several CTAs may share a sequence (split-KV).
        packs_group: Whether the query heads of a KV head share a CTA; otherwise each has CTAs of its own, and further reads of
            the KV head hit the L2 cache.
        min_split_group: Smallest number of query heads per KV head for which they may.
    """

    launch_s: Annotated[float, Limits(ge=0.0, le=1e-3)] = 1e-5
    memory_efficiency: Annotated[float, Limits(ge=0.05, le=1.0)] = 0.9
    compute_efficiency: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.5
    sm_bytes_per_s: Annotated[float, Limits(ge=1e9, le=1e13)] = 1e11
    wave_s: Annotated[float, Limits(ge=0.0, le=2e-5)] = 3e-6
    merge_s: Annotated[float, Limits(ge=0.0, le=3e-5)] = 2e-6
    split_s: Annotated[float, Limits(ge=0.0, le=2e-6)] = 2e-7
    sharpness: Annotated[float, Limits(ge=1.0, le=12.0)] = 1.7
    transpose_s: Annotated[float, Limits(ge=0.0, le=2e-5)] = 0.0
    ungrouped_wave_factor: Annotated[float, Limits(ge=0.05, le=1.5)] = 1.0
    ctas_per_sm: Annotated[int, Limits(ge=1, le=32)] = 1
    tile_rows: Annotated[int, Limits(ge=1, le=4096)] = 64
    instruction_rows: Annotated[int, Limits(ge=1, le=64)] = 16
    splits_kv: bool = True
    packs_group: bool = True
    min_split_group: Annotated[int, Limits(ge=1, le=64)] = 1

    __pydantic_config__ = STRICT


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
    tile_rows: ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """Latency of one call, for one layer on one GPU; array arguments broadcast.

    Args:
        law: Parameters of the kernel.
        sequences: Sequences in the batch.
        kv_heads: KV heads on this GPU.
        query_rows: Query rows that share one read of a (sequence, KV head) pair.
        group: Query heads per KV head.
        read_len: KV entries read per sequence. [tokens]
        flop: Products with keys and values, causal pairs only. [FLOP]
        kv_bytes, query_bytes: Size of the KV entries; of queries and output. [bytes]
        flop_per_s, bytes_per_s: Peak rates. [FLOP/s, bytes/s]
        num_sms: SMs of the GPU.
        may_split: Whether several CTAs may share a sequence in this call.
        tile_rows: Query rows per CTA in this call; None for those of the law.
        sm_speedup: Factor on the streaming rate of an SM; above 1 only in benchmarks that hit the L2 cache. [ratio]

    Returns:
        (compute time not hidden by memory traffic, memory time, fixed overhead). [s]
    """
    b, k, rows, length = (np.asarray(x, np.float64) for x in (sequences, kv_heads, query_rows, read_len))
    kv, queries = np.asarray(kv_bytes, np.float64), np.asarray(query_bytes, np.float64)
    slots = float(num_sms * law.ctas_per_sm)
    tile = law.tile_rows if tile_rows is None else np.asarray(tile_rows)
    if law.packs_group:
        blocks = b * k * np.ceil(rows / tile)
    else:
        blocks = b * k * np.asarray(group) * np.ceil(rows / np.asarray(group) / tile)
    reached = bytes_per_s * law.memory_efficiency
    rate = law.sm_bytes_per_s / law.ctas_per_sm  # per CTA

    pairs = b * k  # further query tiles of a pair hit the L2 cache
    full = np.floor(pairs / slots)
    rest = pairs - full * slots
    saturating = reached / rate  # CTAs needed to saturate memory
    served = full * np.maximum(slots, saturating) + np.where(rest > 0, np.maximum(rest, saturating), 0.0)
    memory_s = (kv + queries) / reached * np.where(pairs > slots, served / pairs, 1.0)

    waves = np.ceil(blocks / slots)
    token_s = kv / (b * k * length) / (rate * np.asarray(sm_speedup))  # one token of one KV head
    whole_s = waves * np.maximum(length - TILE, 0.0) * token_s
    splits = np.asarray(may_split) & law.splits_kv & (np.asarray(group) >= law.min_split_group)
    most = np.where(splits, np.maximum(np.minimum(np.floor(slots / blocks), length / TILE), 1.0), 1.0)
    parts = np.clip(np.sqrt(length * token_s / max(law.split_s, 1e-12)), 1.0, most)
    split_s = np.maximum(length / parts - TILE, 0.0) * token_s + law.merge_s + law.split_s * parts
    prologues_s = (waves - 1) * law.wave_s * np.where(rows <= 1, law.ungrouped_wave_factor, 1.0)
    sm_s = prologues_s + np.where(most > 1, np.minimum(whole_s, split_s), whole_s)

    padded = np.ceil(rows / law.instruction_rows) * law.instruction_rows
    compute_s = np.asarray(flop, np.float64) * (padded / rows) / (flop_per_s * law.compute_efficiency)
    exposed_s, traffic_s = _exposed_times(compute_s, memory_s, sm_s, law.sharpness)
    transposes = (b > 1) & (k > 1) & (rows > 1)
    return exposed_s, traffic_s, np.asarray(law.launch_s + law.transpose_s * transposes, np.float64)


def _exposed_times(compute_s: Array, memory_s: Array, sm_s: Array, sharpness: float) -> tuple[Array, Array]:
    """Split (compute^p + memory^p + sm^p)^(1/p) into (compute, traffic): the larger in full, the smaller if not hidden. [s]"""
    traffic_s = _p_norm(memory_s, sm_s, sharpness)
    total_s = _p_norm(compute_s, traffic_s, sharpness)
    computing = compute_s > traffic_s
    return np.where(computing, compute_s, total_s - traffic_s), np.where(computing, total_s - compute_s, traffic_s)


def _p_norm(one_s: Array, other_s: Array, sharpness: float) -> Array:
    """(one^p + other^p)^(1/p), scaled to avoid overflow. [s]"""
    longer = np.maximum(np.maximum(one_s, other_s), 1e-30)
    total = np.power(one_s / longer, sharpness) + np.power(other_s / longer, sharpness)
    return np.asarray(longer * np.power(total, 1 / sharpness))
