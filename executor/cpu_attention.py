"""Few-query attention on a CPU in C, compiled on first use with the machine's own compiler and kept in the user's cache.

Plain matrix products read the cache at half the speed of memory, and slower still for the few rows of a verification.
Without a compiler, `load` answers None and those are used instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from executor.user_cache import cache_folder

HEAD_DIMS = (32, 64, 128)
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-shared", "-fPIC")

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]


@cache
def load() -> Kernel | None:
    """The kernel, or None where there is no C compiler or `MAGICDEC_CPU_KERNEL=off` is set."""
    if os.environ.get("MAGICDEC_CPU_KERNEL") == "off":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        function = ctypes.CDLL(str(_library(compiler))).attend
    except (OSError, subprocess.SubprocessError):
        return None
    function.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 9 + [ctypes.c_int]
    function.restype = None

    def attend(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor, window: int | None) -> Tensor:
        batch, heads, length, width = q_BNTH.shape
        kv_heads = k_BKSH.shape[1]
        threads = torch.get_num_threads()
        splits = max(1, -(-4 * threads // (batch * kv_heads))) if threads > 1 else 1
        scaled_BNTH = (q_BNTH * width**-0.5).contiguous()
        out_BNTH = torch.empty_like(scaled_BNTH)
        scratch = torch.empty(batch * heads * splits * length * (width + 2), dtype=torch.float32, device="cpu")
        positions_BT = positions_BT.contiguous()
        if k_BKSH.stride() != v_BKSH.stride() or k_BKSH.stride()[2:] != (width, 1) or positions_BT.dtype != torch.int64:
            raise ValueError("keys and values must share one layout, slots contiguous, and positions be int64")
        pointers = (t.data_ptr() for t in (scaled_BNTH, k_BKSH, v_BKSH, positions_BT, out_BNTH, scratch))
        sizes = (batch, kv_heads, heads // kv_heads, length, width, k_BKSH.stride(0), k_BKSH.stride(1), window or 0, splits)
        function(*pointers, *sizes, threads)
        return out_BNTH

    return attend


def _library(compiler: str) -> Path:
    """The compiled kernel; one file for each source, processor and compiler."""
    source = (resources.files("executor") / "cpu_attention.c").read_text(encoding="utf-8")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    flags = next((line for line in _cpuinfo() if line.startswith(("flags", "Features"))), "")
    key = hashlib.sha256("\n".join([source, version, flags, *FLAGS]).encode()).hexdigest()[:16]
    library = cache_folder() / f"cpu_attention-{key}.so"
    if library.is_file() and library.stat().st_uid != os.getuid():
        raise OSError(f"{library} belongs to another user")
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            file, built = Path(folder) / "cpu_attention.c", Path(folder) / "cpu_attention.so"
            file.write_text(source, encoding="utf-8")
            # Linked without an OpenMP library of its own: torch has brought one, and two would fight over the cores.
            linked = ["-Wl,--unresolved-symbols=ignore-all", "-nostdlib"]
            subprocess.run([compiler, *FLAGS, str(file), "-o", str(built), *linked], check=True, capture_output=True, timeout=120)
            os.replace(built, library)
    return library


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
