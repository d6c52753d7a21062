"""Few-query attention on a CPU in C (cpu_attention.c).

Plain matrix products read the cache at half the speed of memory, and slower still for the few rows of a verification.
Without a compiler, `load` answers None and those are used instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .build import kernels

HEAD_DIMS = range(32, 257, 32)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]


def num_splits(pairs: int, threads: int) -> int:
    """Parts that the slots of each KV head are split into, so that all threads have work."""
    return max(1, -(-4 * threads // pairs)) if threads > 1 else 1


def scratch_size(rows: int, width: int, splits: int) -> int:
    """Numbers that the parts of so many query rows take."""
    return rows * splits * (width + 2)


@cache
def load() -> Kernel | None:
    """The kernel, or None where C kernels cannot be had."""
    library = kernels()
    if library is None:
        return None
    function = library.attend
    function.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 9 + [ctypes.c_float, ctypes.c_int]
    function.restype = None

    def attend(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor, window: int | None) -> Tensor:
        batch, heads, length, width = q_BNTH.shape
        kv_heads = k_BKSH.shape[1]
        threads = torch.get_num_threads()
        splits = num_splits(batch * kv_heads, threads)
        q_BNTH = q_BNTH.contiguous()
        out_BNTH = torch.empty_like(q_BNTH)
        scratch = torch.empty(scratch_size(batch * heads * length, width, splits), dtype=torch.float32, device="cpu")
        positions_BT = positions_BT.contiguous()
        if k_BKSH.stride() != v_BKSH.stride() or k_BKSH.stride()[2:] != (width, 1) or positions_BT.dtype != torch.int64:
            raise ValueError("keys and values must share one layout, slots contiguous, and positions be int64")
        pointers = (t.data_ptr() for t in (q_BNTH, k_BKSH, v_BKSH, positions_BT, out_BNTH, scratch))
        sizes = (batch, kv_heads, heads // kv_heads, length, width, k_BKSH.stride(0), k_BKSH.stride(1), window or 0, splits)
        function(*pointers, *sizes, width**-0.5, threads)
        return out_BNTH

    return attend
