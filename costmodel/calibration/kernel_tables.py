"""Kernel benchmarks of the public package `aiconfigurator-core`, read from its Parquet tables with pyarrow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..base.errors import bad
from ..hardware.profile import SIXTEEN_BITS
from ..passes.forward import Array, BoolArray

Columns = dict[str, Array]
ELEMENT_BYTES = 2.0  # only 16-bit rows are used


class KernelFacts(TypedDict, total=False):
    """Known, fixed parameters of an attention kernel: fields of `AttentionLaw`."""

    min_split_group: int
    ctas_per_sm: int
    tile_rows: int
    merge_s: float


@dataclass(frozen=True)
class System:
    """Tables of one system.

    Attributes:
        profile: Name of the hardware profile to fit.
        gemm, attention, allreduce: Library whose table is used; None if no table of all-reduces follows the law.
        kernel: Fixed parameters of the attention kernel.
        kernel_source: Attention kernel to select, if the table mixes several.
        free: Parameters to fit in addition to the usual ones.
    """

    profile: str
    gemm: str
    attention: str
    allreduce: str | None
    kernel: KernelFacts = field(default_factory=KernelFacts)
    kernel_source: str | None = None
    free: tuple[str, ...] = ()


_FLASH_ATTENTION_2: KernelFacts = {"min_split_group": 2}
_BLACKWELL: KernelFacts = {"tile_rows": 16, "merge_s": 0.0}
_A100: KernelFacts = {"min_split_group": 2, "ctas_per_sm": 2}
_L40S: KernelFacts = {"ctas_per_sm": 2}
SYSTEMS = {
    "a100_sxm": System("a100-sxm-80gb", "sglang", "vllm", "vllm", kernel=_A100, free=("transpose_s",)),
    "h100_sxm": System("h100-sxm", "trtllm", "sglang", "vllm"),
    "h200_sxm": System("h200-sxm", "trtllm", "sglang", "vllm"),
    "b200_sxm": System("b200-sxm", "vllm", "vllm", "sglang", kernel=_BLACKWELL, free=("sm_ratio",)),
    "b300_sxm": System("b300-sxm", "vllm", "vllm", "sglang", kernel=_BLACKWELL, free=("sm_ratio",)),
    "gb200": System("gb200", "vllm", "vllm", "sglang", kernel=_BLACKWELL, free=("sm_ratio",)),
    "gb300": System("gb300", "vllm", "vllm", "trtllm", kernel=_BLACKWELL, free=("sm_ratio",)),
    "l40s": System("l40s", "vllm", "sglang", "nccl", kernel=_L40S, kernel_source="flashinfer", free=("ungrouped_wave_factor",)),
    "rtx_pro_6000_server": System("rtx-pro-6000", "vllm", "vllm", "nccl", kernel=_FLASH_ATTENTION_2, free=("transpose_s",)),
    "b60": System("arc-pro-b60", "vllm", "vllm", None),
}


@dataclass(frozen=True)
class Table:
    """One Parquet table.

    Attributes:
        columns: Columns by name.
        source: Package, system, library, version and name of the table.
    """

    columns: Mapping[str, NDArray[np.generic]]
    source: str

    def numbers(self, name: str) -> Array:
        """Return a numeric column."""
        return self.columns[name].astype(np.float64)

    def texts(self, name: str) -> NDArray[np.str_]:
        """Return a text column."""
        return self.columns[name].astype(np.str_)


def known_system(system: str) -> System:
    """Return the description of a system.

    Raises:
        InputError: The tables of this system are not known.
    """
    if system not in SYSTEMS:
        raise bad("system", "", f"a system with known tables ({', '.join(SYSTEMS)})", repr(system))
    return SYSTEMS[system]


def _read(folder: Path, system: str, part: str, library: str, name: str) -> Table:
    """Read the newest version of a table."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise bad("folder", "", "the package pyarrow, to read Parquet files (pip install pyarrow)", "no such package") from None
    roots = [root for root in (folder, folder / "systems" / "data", folder / "data") if (root / system).is_dir()]
    if not roots:
        raise bad("folder", "", f"a folder with the tables of {system}", str(folder))
    files = list((roots[0] / system / part / library).glob(f"*/{name}.parquet"))
    if not files:
        raise bad(str(roots[0] / system / part / library), "", f"{name}.parquet in a folder for each version", "none")
    file = max(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    table = parquet.read_table(file)
    columns = {column: table[column].to_numpy() for column in table.column_names}
    return Table(columns, f"aiconfigurator-core, {system}, {library} {file.parent.name}, {name}")


def read_gemm(folder: Path, system: str) -> tuple[Columns, str]:
    """Read 16-bit products with at most 8192 rows and at least 1024 outputs and inputs.

    Args:
        folder: `aiconfigurator_core` as installed, or its `systems/data`.
        system: A key of `SYSTEMS`.

    Returns:
        Columns m, n, k and seconds; and the source.

    Raises:
        InputError: The table is missing, or pyarrow is not installed.
    """
    table = _read(folder, system, "gemm", known_system(system).gemm, "gemm_perf")
    m, n, k = (table.numbers(name) for name in "mnk")
    kept = (table.texts("gemm_dtype") == "bfloat16") & (m <= 8192) & (n >= 1024) & (k >= 1024)
    return {"m": m[kept], "n": n[kept], "k": k[kept], "seconds": table.numbers("latency")[kept] * 1e-3}, table.source


def read_attention(folder: Path, system: str) -> tuple[Columns, str]:
    """Read 16-bit decode attention with head dimension 128.

    Args:
        folder: `aiconfigurator_core` as installed, or its `systems/data`.
        system: A key of `SYSTEMS`.

    Returns:
        Columns batch, heads, kv_heads, length (entries read), window (0 for none) and seconds; and the source.

    Raises:
        InputError: The table is missing, or pyarrow is not installed.
    """
    known = known_system(system)
    table = _read(folder, system, "attention", known.attention, "generation_attention_perf")
    kept: BoolArray = np.isin(table.texts("attn_dtype"), SIXTEEN_BITS) & np.isin(table.texts("kv_cache_dtype"), SIXTEEN_BITS)
    kept &= table.numbers("head_dim") == 128
    if known.kernel_source is not None:
        kept &= table.texts("kernel_source") == known.kernel_source
    length = table.numbers("step")[kept] + 1.0
    window = table.numbers("window_size")[kept] if "window_size" in table.columns else np.zeros_like(length)
    columns = {
        "batch": table.numbers("batch_size")[kept],
        "heads": table.numbers("num_heads")[kept],
        "kv_heads": table.numbers("num_key_value_heads")[kept],
        "length": np.where(window > 0, np.minimum(length, window), length),
        "window": window,
        "seconds": table.numbers("latency")[kept] * 1e-3,
    }
    return columns, table.source


def read_allreduce(folder: Path, system: str) -> tuple[Columns, str]:
    """Read all-reduces of 1 KB to 64 MB over up to 8 GPUs; only those in CUDA graphs, if there are any.

    Args:
        folder: `aiconfigurator_core` as installed, or its `systems/data`.
        system: A key of `SYSTEMS`.

    Returns:
        Columns payload [bytes], gpus and seconds; and the source.

    Raises:
        InputError: The table is missing, or pyarrow is not installed.
    """
    library = known_system(system).allreduce or ""
    table = _read(folder, system, "comm", library, "nccl_perf" if library == "nccl" else "custom_allreduce_perf")
    payload = table.numbers("message_size") * ELEMENT_BYTES  # message sizes count elements
    gpus = table.numbers("num_gpus")
    kept: BoolArray = (table.texts("op_name") == "all_reduce") & (payload >= 1e3) & (payload <= 64 * 2**20) & (gpus <= 8)
    if library == "nccl":
        kept &= table.texts("nccl_dtype") == "half"
    elif "backend" in table.columns and (graphs := np.char.find(table.texts("backend"), "graph") >= 0).any():
        kept &= graphs
    return {"payload": payload[kept], "gpus": gpus[kept], "seconds": table.numbers("latency")[kept] * 1e-3}, table.source
