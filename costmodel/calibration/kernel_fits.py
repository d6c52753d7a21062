"""Kernel laws fitted to benchmark tables.

GEMM and attention tables are split at random: one half is fitted, the reported errors are those of the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from ..base.records import Limits
from ..hardware.profile import Calibration, Fit, FitPart, HardwareProfile
from ..kernels.attention import AttentionLaw, attention_s
from ..kernels.collectives import AllreduceLaw, allreduce_s
from ..kernels.gemm import GemmLaw, gemm_s
from ..passes.forward import Array, BoolArray
from .fitting import LawT, bounds_of, errors_of, fit_values, rounded, with_parameters
from .kernel_tables import ELEMENT_BYTES, Columns, System, known_system, read_allreduce, read_attention, read_gemm

L2_SPEEDUP = 3.0  # L2 bandwidth over memory bandwidth when streaming weights; 1.5 to 10 fit equally well
WEIGHT_COPIES = 6.0  # weight matrices that the benchmark cycles through
MAX_ROWS = 2500  # attention rows used in a fit; more rows do not change it
LARGE_WEIGHT = 4.0  # weight of large reads in the fit: they dominate serving, but are few
HEAD_DIM = 128  # of the attention table
GEMM_FREE = ("launch_s", "depth_s", "compute_efficiency", "memory_efficiency", "sharpness")
ATTENTION_FREE = ("launch_s", "memory_efficiency", "sm_bytes_per_s", "wave_s", "merge_s", "split_s", "sharpness")


@dataclass(frozen=True)
class CacheReuse:
    """L2 cache hits of a benchmark that repeats one call. They do not occur in serving, where KV cache and weights are cold.

    Attributes:
        kv_share: Largest KV working set that still hits, relative to the L2 capacity; may exceed 1. [ratio]
        kv_ratio: L2 bandwidth over memory bandwidth, for KV entries. [ratio]
        sm_ratio: Streaming rate of one SM from L2 over that from memory. [ratio]
        weight_share: Share of the L2 that keeps weights between repetitions. [ratio]
    """

    kv_share: Annotated[float, Limits(ge=0.2, le=1.6)] = 0.8
    kv_ratio: Annotated[float, Limits(ge=1.0, le=15.0)] = 2.0
    sm_ratio: Annotated[float, Limits(ge=1.0, le=10.0)] = 1.0
    weight_share: Annotated[float, Limits(ge=0.02, le=1.2)] = 0.4


def fit_tables(folder: Path, system: str, profile: HardwareProfile) -> HardwareProfile:
    """Fit the kernel laws of a profile to the tables of a system; the rest of its calibration returns to defaults.

    Args:
        folder: `aiconfigurator_core` as installed, or its `systems/data`.
        system: A key of `SYSTEMS`.
        profile: The profile; its peaks are used.

    Raises:
        InputError: The system is not known, a table is missing, or pyarrow is not installed.
    """
    known = known_system(system)
    gemm, gemm_fit = fit_gemm(*read_gemm(folder, system), profile)
    attention, attention_fit = fit_attention(*read_attention(folder, system), profile, known)
    if known.allreduce is None:
        return replace(profile, calibration=Calibration(gemm, attention, fits=(gemm_fit, attention_fit)))
    allreduce, allreduce_fit = fit_allreduce(*read_allreduce(folder, system), profile)
    fits = (gemm_fit, attention_fit, allreduce_fit)
    return replace(profile, calibration=Calibration(gemm, attention, allreduce, fits=fits))


def gemm_table_s(columns: Columns, law: GemmLaw, reuse: CacheReuse, profile: HardwareProfile) -> Array:
    """Predict the rows of a GEMM benchmark, whose weights may hit the L2 cache. [s]

    Args:
        columns: The rows, as `read_gemm` returns them.
        law: Parameters of the device.
        reuse: L2 cache hits.
        profile: Peaks of the device.
    """
    m, n, k = (columns[name] for name in "mnk")
    weights = ELEMENT_BYTES * n * k
    hits = _hit_rate(WEIGHT_COPIES * weights / (reuse.weight_share * profile.peak.l2_cache_bytes))
    parts = gemm_s(
        law,
        rows=m,
        inputs=k,
        flop=2 * m * n * k,
        moved_bytes=weights * (1 - (1 - 1 / L2_SPEEDUP) * hits) + ELEMENT_BYTES * m * (n + k),
        flop_per_s=profile.flop_per_s("bfloat16"),
        bytes_per_s=profile.peak.memory_bandwidth_bytes_per_s,
    )
    return np.asarray(sum(parts))


def _hit_rate(load: Array) -> Array:
    """Hit rate of a cyclic scan over `load` times the cache size, with random replacement: h = exp(-load (1 - h)). [0-1]"""
    hits = np.exp(-load)
    for _ in range(25):
        hits = np.exp(-load * (1 - hits))
    return np.where(load <= 1, 1.0, hits)


def attention_table_s(columns: Columns, law: AttentionLaw, reuse: CacheReuse, profile: HardwareProfile) -> Array:
    """Predict the rows of an attention benchmark, whose KV entries may hit the L2 cache. [s]

    Args:
        columns: The rows, as `read_attention` returns them.
        law: Parameters of the kernel.
        reuse: L2 cache hits.
        profile: Peaks of the device.
    """
    b, heads, kv_heads, length = (columns[name] for name in ("batch", "heads", "kv_heads", "length"))
    kv_bytes, query_bytes = b * kv_heads * length * 2 * HEAD_DIM * ELEMENT_BYTES, b * heads * 2 * HEAD_DIM * ELEMENT_BYTES
    load = (kv_bytes + query_bytes) / (reuse.kv_share * profile.peak.l2_cache_bytes)
    misses = 1 / (1 + load**-16.0)  # cyclic reads of a cache change abruptly from all hits to none
    from_memory = misses + (1 - misses) / reuse.kv_ratio
    parts = attention_s(
        law,
        sequences=b,
        kv_heads=kv_heads,
        query_rows=heads / kv_heads,
        group=heads / kv_heads,
        read_len=length,
        flop=4 * b * heads * HEAD_DIM * length,
        kv_bytes=kv_bytes * from_memory,
        query_bytes=query_bytes * from_memory,
        flop_per_s=profile.flop_per_s("bfloat16"),
        bytes_per_s=profile.peak.memory_bandwidth_bytes_per_s,
        num_sms=profile.peak.num_sms,
        sm_speedup=from_memory / (misses + (1 - misses) / reuse.sm_ratio),
    )
    return np.asarray(sum(parts))


def allreduce_table_s(columns: Columns, law: AllreduceLaw, profile: HardwareProfile) -> Array:
    """Predict the rows of an all-reduce benchmark. [s]

    Args:
        columns: The rows, as `read_allreduce` returns them.
        law: Parameters of the node.
        profile: Peaks of the device.
    """
    seconds = np.empty_like(columns["payload"])
    for gpus in np.unique(columns["gpus"]):
        here = columns["gpus"] == gpus
        link = profile.peak.interconnect_bandwidth_bytes_per_s
        seconds[here] = allreduce_s(law, columns["payload"][here], int(gpus), link)
    return seconds


def fit_gemm(columns: Columns, source: str, profile: HardwareProfile) -> tuple[GemmLaw, Fit]:
    """Fit the GEMM law to one half of the rows.

    The errors are those of the other half, for at most 1024 rows and at least 2048 outputs and inputs.

    Args:
        columns: The rows, as `read_gemm` returns them.
        source: Origin of the rows.
        profile: Peaks of the device.
    """
    fitted, held_out = halves(columns)
    held_out = _rows(held_out, (held_out["m"] <= 1024) & (held_out["n"] >= 2048) & (held_out["k"] >= 2048))

    def predicted(part: Columns, law: GemmLaw, reuse: CacheReuse) -> Array:
        return gemm_table_s(part, law, reuse, profile)

    fits = [_fit(GemmLaw(tile_rows=tile), (*GEMM_FREE, "weight_share"), fitted, predicted) for tile in (1, 64, 128, 256)]
    law, reuse, _ = min(fits, key=lambda fit: fit[2])
    names = (*GEMM_FREE, "tile_rows")
    fit = _fit_record("gemm", source, names, fitted, gemm_table_s(held_out, law, reuse, profile), held_out)
    return law, replace(fit, benchmark={"weight_share": reuse.weight_share})


def fit_attention(columns: Columns, source: str, profile: HardwareProfile, system: System) -> tuple[AttentionLaw, Fit]:
    """Fit the attention law to one half of the rows without a window; large reads have more weight.

    The errors are those of the other half.

    Args:
        columns: The rows, as `read_attention` returns them.
        source: Origin of the rows.
        profile: Peaks of the device.
        system: Known facts of the kernel.
    """
    fitted, held_out = halves(_rows(columns, columns["window"] == 0))
    fitted = _rows(fitted, np.random.default_rng(0).permutation(len(fitted["seconds"]))[:MAX_ROWS])
    free = tuple(name for name in (*ATTENTION_FREE, *system.free) if name not in system.kernel)

    def predicted(part: Columns, law: AttentionLaw, reuse: CacheReuse) -> Array:
        return attention_table_s(part, law, reuse, profile)

    weights = np.where(is_large(fitted), LARGE_WEIGHT, 1.0)
    law, reuse, _ = _fit(AttentionLaw(**system.kernel), (*free, "kv_share", "kv_ratio"), fitted, predicted, weights)
    names = tuple(name for name in free if hasattr(law, name))
    predictions = attention_table_s(held_out, law, reuse, profile)
    fit = _fit_record("attention", source, names, fitted, predictions, held_out)
    large = np.abs(predictions / held_out["seconds"] - 1)[is_large(held_out)].mean()
    benchmark = {"kv_share": reuse.kv_share, "kv_ratio": reuse.kv_ratio, "sm_ratio": reuse.sm_ratio}
    return law, replace(fit, large_mean_error=rounded(float(large)), benchmark=benchmark)


def is_large(columns: Columns) -> BoolArray:
    """Select calls that read at least 64 MB, with at least 4096 entries per sequence; they dominate serving."""
    read = columns["batch"] * columns["kv_heads"] * columns["length"] * 2 * HEAD_DIM * ELEMENT_BYTES
    return np.asarray((columns["length"] >= 4096) & (read >= 64e6))


def fit_allreduce(columns: Columns, source: str, profile: HardwareProfile) -> tuple[AllreduceLaw, Fit]:
    """Fit the all-reduce law to all rows, because there are few.

    The errors come from two further fits, each to one half of the rows and tested on the other.

    Args:
        columns: The rows, as `read_allreduce` returns them.
        source: Origin of the rows.
        profile: Peaks of the device.
    """
    nccl, no_links = ", nccl " in source, profile.peak.interconnect_bandwidth_bytes_per_s < 1e11
    start = AllreduceLaw(two_shot_latency_factor=1.0, one_shot=False) if nccl else AllreduceLaw()
    free: tuple[str, ...] = ("latency_s", "peer_latency_s", "two_shot_efficiency", "pipeline_fill")
    free += () if nccl else ("one_shot_efficiency", "two_shot_latency_factor")
    if no_links:
        start = replace(start, shared_bytes_per_s=2 * profile.peak.interconnect_bandwidth_bytes_per_s)
        free += ("shared_bytes_per_s",)

    def predicted(part: Columns, law: AllreduceLaw, _: CacheReuse) -> Array:
        return allreduce_table_s(part, law, profile)

    errors = []
    for fitted, held_out in (halves(columns), halves(columns)[::-1]):
        law, _, _ = _fit(start, free, fitted, predicted)
        errors.append(np.log(allreduce_table_s(held_out, law, profile) / held_out["seconds"]))
    law, _, _ = _fit(start, free, columns, predicted)
    held_out_errors = errors_of(np.concatenate(errors))
    return law, Fit("allreduce", source, free, len(columns["seconds"]), *held_out_errors, date.today().isoformat())


def halves(columns: Columns) -> tuple[Columns, Columns]:
    """Split the rows into two random halves, always in the same way."""
    first = np.random.default_rng(1).random(len(columns["seconds"])) < 0.5
    return _rows(columns, first), _rows(columns, ~first)


def _rows(columns: Columns, kept: BoolArray | NDArray[np.intp]) -> Columns:
    return {name: values[kept] for name, values in columns.items()}


def _fit(
    law: LawT,
    free: tuple[str, ...],
    columns: Columns,
    predicted: Callable[[Columns, LawT, CacheReuse], Array],
    weights: Array | float = 1.0,
) -> tuple[LawT, CacheReuse, float]:
    """Fit the `free` parameters of a law and of the cache hits. Returns both, and the mean absolute log error."""
    reuse = CacheReuse()
    of_reuse = {name for name in free if hasattr(reuse, name)}
    start = {name: float(getattr(reuse if name in of_reuse else law, name)) for name in free}
    bounds = {name: bounds_of(CacheReuse if name in of_reuse else type(law), name) for name in free}

    def rebuilt(values: dict[str, float]) -> tuple[LawT, CacheReuse]:
        law_values = {name: value for name, value in values.items() if name not in of_reuse}
        reuse_values = {name: value for name, value in values.items() if name in of_reuse}
        return with_parameters(law, law_values), with_parameters(reuse, reuse_values)

    def log_ratios(values: dict[str, float]) -> Array:
        return np.log(predicted(columns, *rebuilt(values)) / columns["seconds"])

    values = fit_values(start, bounds, lambda values: weights * log_ratios(values))
    return (*rebuilt(values), float(np.abs(log_ratios(values)).mean()))


def _fit_record(part: FitPart, source: str, names: tuple[str, ...], fitted: Columns, predicted: Array, held_out: Columns) -> Fit:
    errors = errors_of(np.log(predicted / held_out["seconds"]))
    return Fit(part, source, names, len(fitted["seconds"]), *errors, date.today().isoformat())
