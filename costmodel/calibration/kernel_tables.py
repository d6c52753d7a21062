"""Kernel laws fitted to measured tables: those of the public package `aiconfigurator-core`, read with pyarrow.

Each table is split in two at random: one half is fitted, the errors that are stated are those of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from ..base.errors import bad
from ..hardware.profile import Calibration, Fit, HardwareProfile
from ..kernels.attention import AttentionLaw, attention_s
from ..kernels.collectives import AllreduceLaw, allreduce_s
from ..kernels.gemm import GemmLaw, gemm_s
from .fitting import bounds_of, errors_of, fit_values, rounded

Array = NDArray[np.float64]
Columns = dict[str, Array]
SIXTEEN = 2.0  # bytes of the elements of the rows that are fitted
L2_SPEEDUP = 3.0  # of a small L2 over its memory, for weights; 1.5 to 10 fit alike
WEIGHT_COPIES = 6.0  # weight matrices that the collectors cycle through
MOST_ROWS = 2500  # attention rows that are fitted: more change nothing
LARGE_WEIGHT = 4.0  # of large reads in the fit: they decide in serving, and are few


@dataclass(frozen=True)
class CacheReuse:
    """What a benchmark that repeats one call finds in the L2 cache: no property of a served model, whose KV and weights are cold.

    Attributes:
        kv_share: Working set that still hits, of the cache. [0-1 and a little beyond]
        kv_ratio: Bandwidth of the cache over that of memory.
        sm_ratio: Rate at which one SM streams from the cache over that from memory.
        weight_share: Share of the cache that keeps weights between repeats.
    """

    kv_share: Annotated[float, Interval(ge=0.2, le=1.6)] = 0.8
    kv_ratio: Annotated[float, Interval(ge=1.0, le=15.0)] = 2.0
    sm_ratio: Annotated[float, Interval(ge=1.0, le=10.0)] = 1.0
    weight_share: Annotated[float, Interval(ge=0.02, le=1.2)] = 0.4


@dataclass(frozen=True)
class System:
    """Where the tables of a system are, and facts of its attention kernel.

    Attributes:
        profile: The hardware profile that is fitted.
        gemm, attention, allreduce: Library whose table is used; None where none follows the law.
        kernel: Fixed parameters of the attention law.
        kernel_source: Rows of this kernel only, where a table mixes several.
        free: Parameters fitted beside the usual ones.
        windows_ungrouped: Rows with a sliding window were measured with a kernel that does not group queries.
    """

    profile: str
    gemm: str
    attention: str
    allreduce: str | None
    kernel: dict[str, Any] = field(default_factory=dict)
    kernel_source: str | None = None
    free: tuple[str, ...] = ()
    windows_ungrouped: bool = False


_FLASH2: dict[str, Any] = {"min_split_group": 2}
_BLACKWELL: dict[str, Any] = {"tile_rows": 16, "merge_s": 0.0}
SYSTEMS = {
    "a100_sxm": System("a100-sxm-80gb", "sglang", "vllm", "vllm", {**_FLASH2, "ctas_per_sm": 2}, None, ("transpose_s",), True),
    "h100_sxm": System("h100-sxm", "trtllm", "sglang", "vllm"),
    "h200_sxm": System("h200-sxm", "trtllm", "sglang", "vllm"),
    "b200_sxm": System("b200-sxm", "vllm", "vllm", "sglang", _BLACKWELL, None, ("sm_ratio",)),
    "b300_sxm": System("b300-sxm", "vllm", "vllm", "sglang", _BLACKWELL, None, ("sm_ratio",)),
    "gb200": System("gb200", "vllm", "vllm", "sglang", _BLACKWELL, None, ("sm_ratio",)),
    "gb300": System("gb300", "vllm", "vllm", "trtllm", _BLACKWELL, None, ("sm_ratio",)),
    "l40s": System("l40s", "vllm", "sglang", "nccl", {"ctas_per_sm": 2}, "flashinfer", ("ungrouped_wave_factor",)),
    "rtx_pro_6000_server": System("rtx-pro-6000", "vllm", "vllm", "nccl", _FLASH2, None, ("transpose_s",), True),
    "b60": System("arc-pro-b60", "vllm", "vllm", None),
}
GEMM_FREE = ("launch_s", "depth_s", "compute_efficiency", "memory_efficiency", "sharpness")
ATTENTION_FREE = ("launch_s", "memory_efficiency", "sm_bytes_per_s", "wave_s", "merge_s", "split_s", "sharpness")


def fit_tables(folder: Path, system: str, profile: HardwareProfile) -> HardwareProfile:
    """The profile with its kernel laws fitted to the tables of a system; what was fitted on top of other kernels is dropped.

    Args:
        folder: `aiconfigurator_core` as installed, or its `systems/data`.
        system: A key of `SYSTEMS`.
        profile: Peaks.

    Raises:
        InputError: A table is missing or cannot be read.
    """
    gemm, gemm_fit = fit_gemm(*read_gemm(folder, system), profile)
    attention, attention_fit = fit_attention(*read_attention(folder, system), profile, SYSTEMS[system])
    if SYSTEMS[system].allreduce is None:
        return replace(profile, calibration=Calibration(gemm, attention, fits=(gemm_fit, attention_fit)))
    allreduce, allreduce_fit = fit_allreduce(*read_allreduce(folder, system), profile)
    fits = (gemm_fit, attention_fit, allreduce_fit)
    return replace(profile, calibration=Calibration(gemm, attention, allreduce, fits=fits))


def _known(system: str) -> System:
    if system not in SYSTEMS:
        raise bad("--system", "", f"a system whose tables are known ({', '.join(SYSTEMS)})", repr(system))
    return SYSTEMS[system]


def _read(folder: Path, system: str, part: str, library: str, name: str) -> tuple[dict[str, NDArray[Any]], str]:
    """Columns of the newest version of a table, and where they come from."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise bad("--from-aiconfigurator", "", "pyarrow, to read Parquet files (pip install pyarrow)", "no such package") from None
    roots = [root for root in (folder, folder / "systems" / "data", folder / "data") if (root / system).is_dir()]
    if not roots:
        raise bad("--from-aiconfigurator", "", f"a folder with the tables of {system}", str(folder))
    files = list((roots[0] / system / part / library).glob(f"*/{name}.parquet"))
    if not files:
        raise bad(str(roots[0] / system / part / library), "", f"{name}.parquet in a folder for each version", "none")
    file = max(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    table = parquet.read_table(file)
    columns = {column: table[column].to_numpy() for column in table.column_names}
    return columns, f"aiconfigurator-core, {system}, {library} {file.parent.name}, {name}"


def read_gemm(folder: Path, system: str) -> tuple[Columns, str]:
    """16-bit products of up to 8192 rows, with at least 1024 outputs and inputs: m, n, k and seconds."""
    raw, source = _read(folder, system, "gemm", _known(system).gemm, "gemm_perf")
    kept = (raw["gemm_dtype"] == "bfloat16") & (raw["m"] <= 8192) & (raw["n"] >= 1024) & (raw["k"] >= 1024)
    return {**{name: raw[name][kept].astype(float) for name in "mnk"}, "seconds": raw["latency"][kept] * 1e-3}, source


def read_attention(folder: Path, system: str) -> tuple[Columns, str]:
    """16-bit decode attention of head dimension 128: batch, heads, kv_heads, length, seconds and whether a window was set."""
    known = _known(system)
    raw, source = _read(folder, system, "attention", known.attention, "generation_attention_perf")
    sixteen = ("bfloat16", "float16")
    kept = np.isin(raw["attn_dtype"], sixteen) & np.isin(raw["kv_cache_dtype"], sixteen) & (raw["head_dim"] == 128)
    if known.kernel_source is not None:
        kept &= raw["kernel_source"] == known.kernel_source
    columns = {new: raw[old][kept].astype(float) for new, old in _ATTENTION_COLUMNS.items()}
    window = raw["window_size"][kept].astype(float) if "window_size" in raw else np.zeros_like(columns["batch"])
    length = raw["step"][kept] + 1.0
    columns["length"] = np.where(window > 0, np.minimum(length, window), length)
    return {**columns, "window": window, "seconds": raw["latency"][kept] * 1e-3}, source


_ATTENTION_COLUMNS = {"batch": "batch_size", "heads": "num_heads", "kv_heads": "num_key_value_heads"}


def read_allreduce(folder: Path, system: str) -> tuple[Columns, str]:
    """All-reduces of 1 KB to 64 MB over up to 8 GPUs, in CUDA graphs where there are: payload, gpus and seconds."""
    library = _known(system).allreduce or ""
    raw, source = _read(folder, system, "comm", library, "nccl_perf" if library == "nccl" else "custom_allreduce_perf")
    payload = raw["message_size"].astype(float) * SIXTEEN  # sizes count elements
    kept = (raw["op_name"] == "all_reduce") & (payload >= 1e3) & (payload <= 64 * 2**20) & (raw["num_gpus"] <= 8)
    if library == "nccl":
        kept &= raw["nccl_dtype"] == "half"
    elif "backend" in raw and (graphs := np.char.find(raw["backend"].astype(str), "graph") >= 0).any():
        kept &= graphs
    gpus = raw["num_gpus"].astype(float)
    return {"payload": payload[kept], "gpus": gpus[kept], "seconds": raw["latency"][kept] * 1e-3}, source


def gemm_table_s(columns: Columns, law: GemmLaw, reuse: CacheReuse, profile: HardwareProfile) -> Array:
    """What the law says of the benchmark's rows, whose weights may be in L2. [s]"""
    m, n, k = (columns[name] for name in "mnk")
    weights = SIXTEEN * n * k
    hits = _hit_rate(WEIGHT_COPIES * weights / (reuse.weight_share * profile.peak.l2_cache_bytes))
    parts = gemm_s(
        law,
        rows=m,
        inputs=k,
        flop=2 * m * n * k,
        moved_bytes=weights * (1 - (1 - 1 / L2_SPEEDUP) * hits) + SIXTEEN * m * (n + k),
        flop_per_s=profile.flop_per_s("bfloat16"),
        bytes_per_s=profile.peak.memory_bandwidth_bytes_per_s,
    )
    return np.asarray(sum(parts))


def _hit_rate(load: Array) -> Array:
    """Hits of a cyclic scan over `load` times a cache that replaces at random: h = exp(-load (1 - h)). [0-1]"""
    hits = np.exp(-load)
    for _ in range(25):
        hits = np.exp(-load * (1 - hits))
    return np.where(load <= 1, 1.0, hits)


def attention_table_s(
    columns: Columns, law: AttentionLaw, reuse: CacheReuse, profile: HardwareProfile, *, windows_ungrouped: bool = False
) -> Array:
    """What the law says of the benchmark's rows, whose KV entries may be in L2. [s]"""
    b, heads, kv_heads, length = (columns[name] for name in ("batch", "heads", "kv_heads", "length"))
    grouped = ~((columns["window"] > 0) & windows_ungrouped)
    kv_bytes, query_bytes = b * kv_heads * length * 2 * 128 * SIXTEEN, b * heads * 2 * 128 * SIXTEEN
    load = (kv_bytes + query_bytes) / (reuse.kv_share * profile.peak.l2_cache_bytes)
    misses = 1 / (1 + load**-16.0)  # a cache read in cycles drops from all hits to none almost at once
    from_memory = misses + (1 - misses) / reuse.kv_ratio
    parts = attention_s(
        law,
        sequences=b,
        kv_heads=np.where(grouped, kv_heads, heads),
        query_rows=np.where(grouped, heads / kv_heads, 1.0),
        group=np.where(grouped, heads / kv_heads, 1.0),
        read_len=length,
        flop=4 * b * heads * 128 * length,
        kv_bytes=kv_bytes * from_memory,
        query_bytes=query_bytes * from_memory,
        flop_per_s=profile.flop_per_s("bfloat16"),
        bytes_per_s=profile.peak.memory_bandwidth_bytes_per_s,
        num_sms=profile.peak.num_sms,
        sm_speedup=from_memory / (misses + (1 - misses) / reuse.sm_ratio),
    )
    return np.asarray(sum(parts))


def allreduce_table_s(columns: Columns, law: AllreduceLaw, profile: HardwareProfile) -> Array:
    """What the law says of the benchmark's rows. [s]"""
    seconds = np.empty_like(columns["payload"])
    for gpus in np.unique(columns["gpus"]):
        here = columns["gpus"] == gpus
        link = profile.peak.interconnect_bandwidth_bytes_per_s
        seconds[here] = allreduce_s(law, columns["payload"][here], int(gpus), link)
    return seconds


def fit_gemm(columns: Columns, source: str, profile: HardwareProfile) -> tuple[GemmLaw, Fit]:
    """Fitted to one half; its errors are those of the other half with at most 1024 rows and at least 2048 outputs and inputs."""
    chosen, left = halves(columns)
    judged = (left["m"] <= 1024) & (left["n"] >= 2048) & (left["k"] >= 2048)
    left = _rows(left, judged)
    found: list[tuple[float, GemmLaw, CacheReuse]] = []
    for tile in (1, 64, 128, 256):

        def predicted(part: Columns, law: GemmLaw, reuse: CacheReuse) -> Array:
            return gemm_table_s(part, law, reuse, profile)

        law, reuse, error = _fit(GemmLaw(tile_rows=tile), (*GEMM_FREE, "weight_share"), chosen, predicted)
        found.append((error, law, reuse))
    _, law, reuse = min(found, key=lambda item: item[0])
    fit = _fit_record("gemm", source, (*GEMM_FREE, "tile_rows"), chosen, gemm_table_s(left, law, reuse, profile), left)
    return law, replace(fit, benchmark={"weight_share": reuse.weight_share})


def fit_attention(columns: Columns, source: str, profile: HardwareProfile, system: System) -> tuple[AttentionLaw, Fit]:
    """Fitted to one half of the rows without a window, large reads weighing more; its errors are those of the other half."""
    chosen, left = halves(_rows(columns, columns["window"] == 0))
    chosen = _rows(chosen, np.random.default_rng(0).permutation(len(chosen["seconds"]))[:MOST_ROWS])
    free = tuple(name for name in (*ATTENTION_FREE, *system.free) if name not in system.kernel)

    def predicted(part: Columns, law: AttentionLaw, reuse: CacheReuse) -> Array:
        return attention_table_s(part, law, reuse, profile)

    weights = np.where(is_large(chosen), LARGE_WEIGHT, 1.0)
    law, reuse, _ = _fit(AttentionLaw(**system.kernel), (*free, "kv_share", "kv_ratio"), chosen, predicted, weights)
    fitted = tuple(name for name in free if hasattr(law, name))
    predictions = attention_table_s(left, law, reuse, profile)
    fit = _fit_record("attention", source, fitted, chosen, predictions, left)
    large = np.abs(predictions / left["seconds"] - 1)[is_large(left)].mean()
    found_in_cache = {name: getattr(reuse, name) for name in ("kv_share", "kv_ratio", "sm_ratio")}
    return law, replace(fit, large_mean_error=rounded(float(large)), benchmark=found_in_cache)


def is_large(columns: Columns) -> NDArray[np.bool_]:
    """Rows that read at least 64 MB, of at least 4096 entries a sequence: what decides in serving."""
    read = columns["batch"] * columns["kv_heads"] * columns["length"] * 2 * 128 * SIXTEEN
    return np.asarray((columns["length"] >= 4096) & (read >= 64e6))


def fit_allreduce(columns: Columns, source: str, profile: HardwareProfile) -> tuple[AllreduceLaw, Fit]:
    """Fitted to all rows, for there are few; the errors are those of two more fits, each to one half, of the other half."""
    nccl, shared = ", nccl " in source, profile.peak.interconnect_bandwidth_bytes_per_s < 1e11
    start = AllreduceLaw(two_shot_latency_factor=1.0, one_shot=False) if nccl else AllreduceLaw()
    free: tuple[str, ...] = ("latency_s", "peer_latency_s", "two_shot_efficiency", "pipeline_fill")
    free += () if nccl else ("one_shot_efficiency", "two_shot_latency_factor")
    if shared:
        start, free = (
            replace(start, shared_bytes_per_s=2 * profile.peak.interconnect_bandwidth_bytes_per_s),
            (*free, "shared_bytes_per_s"),
        )

    def predicted(part: Columns, law: AllreduceLaw, _: CacheReuse) -> Array:
        return allreduce_table_s(part, law, profile)

    errors = []
    for chosen, left in (halves(columns), halves(columns)[::-1]):
        law, _, _ = _fit(start, free, chosen, predicted)
        errors.append(np.log(allreduce_table_s(left, law, profile) / left["seconds"]))
    law, _, _ = _fit(start, free, columns, predicted)
    held_out = errors_of(np.concatenate(errors))
    return law, Fit("allreduce", source, free, len(columns["seconds"]), *held_out, date.today().isoformat())


def halves(columns: Columns) -> tuple[Columns, Columns]:
    """A random half of the rows, always the same one, and the other."""
    first = np.random.default_rng(1).random(len(columns["seconds"])) < 0.5
    return _rows(columns, first), _rows(columns, ~first)


def _rows(columns: Columns, kept: NDArray[Any]) -> Columns:
    return {name: values[kept] for name, values in columns.items()}


def _fit(
    law: Any,
    free: tuple[str, ...],
    columns: Columns,
    predicted: Callable[[Columns, Any, CacheReuse], Array],
    weights: Array | float = 1.0,
) -> tuple[Any, CacheReuse, float]:
    """The law and what was found in the cache, with their `free` parameters fitted; and the mean absolute log error."""
    reuse = CacheReuse()
    owners = {name: reuse if hasattr(reuse, name) else law for name in free}
    start = {name: float(getattr(owner, name)) for name, owner in owners.items()}
    bounds = {name: bounds_of(type(owner), name) for name, owner in owners.items()}

    def rebuilt(values: dict[str, float]) -> tuple[Any, CacheReuse]:
        of_reuse = {name: value for name, value in values.items() if owners[name] is reuse}
        of_law = {name: value for name, value in values.items() if owners[name] is law}
        return replace(law, **of_law), replace(reuse, **of_reuse)

    def log_ratios(values: dict[str, float]) -> Array:
        return np.log(predicted(columns, *rebuilt(values)) / columns["seconds"])

    values = fit_values(start, bounds, lambda values: weights * log_ratios(values))
    return (*rebuilt(values), float(np.abs(log_ratios(values)).mean()))


def _fit_record(part: Any, source: str, fitted: tuple[str, ...], chosen: Columns, predicted: Array, left: Columns) -> Fit:
    errors = errors_of(np.log(predicted / left["seconds"]))
    return Fit(part, source, fitted, len(chosen["seconds"]), *errors, date.today().isoformat())
