"""Attention over cached keys and values, for prefill, decode and verification: each an `Attend` for the decoder.

Decode and verification fold the query heads of a KV head into the query axis, so that each key is read once for all of them.
That is a kernel of our own where there is one: in C on a CPU in float32 (`cpu_attention`), in Triton on a GPU
(`gpu_attention`). Elsewhere on a CPU it is two plain matrix products, which beat torch's fused kernel at the few rows there
are, and that fused kernel on a GPU.

Shapes: B batch, T query tokens, S slots, N query heads, K KV heads, G query heads per KV head, H head dim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from copy import copy
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import cpu_attention
from ..kernels.cpu_attention import Kernel
from ..system.device import to_device
from .cache import KvCache
from .quantised_cache import QuantisedKv

GPU_HEAD_DIMS = (16, 32, 64, 128, 256)  # powers of 2, as Triton wants them

Watch = Callable[[int, Tensor, Tensor], None]  # told of each layer's (layer, q_BNTH, positions_BT)


class PrefillAttention:
    """A chunk of one row's prompt: its tokens see those before them, which are in the cache already."""

    def __init__(self, cache: KvCache, row: int, start: int, window: int | None, watch: Watch | None = None):
        self.cache, self.row, self.start, self.window, self.watch = cache, row, start, window, watch

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        self.cache.write_row(layer, self.row, self.start, k_BKTH[0], v_BKTH[0])
        if self.watch is not None:
            self.watch(layer, q_BNTH, torch.arange(self.start, self.start + q_BNTH.shape[2], device=q_BNTH.device)[None])
        length = q_BNTH.shape[2]
        grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
        stop = self.start + length
        if self.start == 0 and (self.window is None or length <= self.window):
            return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=grouped)
        k_BKSH = self.cache.k_LBKSH[layer, self.row : self.row + 1, :, :stop]
        v_BKSH = self.cache.v_LBKSH[layer, self.row : self.row + 1, :, :stop]
        positions_T = torch.arange(self.start, stop, device=q_BNTH.device)
        mask_TS = visible(positions_T, torch.arange(stop, device=q_BNTH.device), self.window)
        if grouped and q_BNTH.device.type == "cuda":  # few of its fused kernels take a mask and groups together
            group, grouped = q_BNTH.shape[1] // k_BKTH.shape[1], False
            k_BKSH, v_BKSH = k_BKSH.repeat_interleave(group, 1), v_BKSH.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=mask_TS, enable_gqa=grouped)


class SlotAttention:
    """New tokens of every row, stored at slots of a cache that follow each other; each sees its row's slots up to its own.

    Args:
        cache: Where they are stored and what they read.
        slots_BT: The slot of each, on the host.
        window: Slots a token reaches back, its own included; None for all. [tokens]
        also_store: A second cache that keeps the new keys and values, at their positions.
        positions_BT: Those positions, on the host; the slots themselves by default.
        watch: Told of the queries and their positions.
    """

    def __init__(
        self,
        cache: KvCache | QuantisedKv,
        slots_BT: Tensor,
        window: int | None = None,
        also_store: KvCache | None = None,
        positions_BT: Tensor | None = None,
        watch: Watch | None = None,
    ):
        self.cache, self.window, self.also_store, self.watch, self._host_slots_BT = cache, window, also_store, watch, slots_BT
        self.slots_BT = to_device(slots_BT, cache.device)
        self.positions_BT = self.slots_BT if positions_BT is None else to_device(positions_BT, cache.device)
        self.stop = int(slots_BT.max()) + 1

    @property
    def only_reads_cache(self) -> bool:
        """True if it only appends to one full-precision cache and reads it: no second cache, no observer."""
        return isinstance(self.cache, KvCache) and self.also_store is None and self.watch is None

    @property
    def replayable(self) -> bool:
        """On a GPU: what it launches depends on the shapes of its tensors alone."""
        on_gpu = isinstance(self.cache, KvCache) and self.cache.device.type == "cuda"
        return on_gpu and _kernel(self.cache.device, self.cache.k_LBKSH.dtype, self.cache.k_LBKSH.shape[4]) is not None

    @property
    def identity(self) -> Hashable:
        """What it has in common with others that differ in slots and positions alone."""
        return id(self.cache), id(self.also_store), self.watch, self.window

    def at(self, slots_BT: Tensor, positions_BT: Tensor) -> SlotAttention:
        """The same at other slots, wherever in the cache those are."""
        other = copy(self)
        other.slots_BT, other.positions_BT, other.stop = slots_BT, positions_BT, self.cache.capacity
        return other

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        self.cache.write(layer, self.slots_BT, k_BKTH, v_BKTH)
        if self.also_store is not None:
            self.also_store.write(layer, self.positions_BT, k_BKTH, v_BKTH)
        if self.watch is not None:
            self.watch(layer, q_BNTH, self.positions_BT)
        k_BKSH, v_BKSH = self.cache.read(layer, self.stop)
        kernel = _kernel(q_BNTH.device, q_BNTH.dtype, q_BNTH.shape[3])
        if kernel is not None:
            return kernel(q_BNTH, k_BKSH, v_BKSH, self.slots_BT, self.window)
        if q_BNTH.device.type == "cpu" and q_BNTH.dtype in (torch.float32, torch.float64):
            rows = q_BNTH.shape[1] // k_BKSH.shape[1] * q_BNTH.shape[2]
            scratch_2BKRS = self.cache.scratch(2, *k_BKSH.shape[:2], rows, self.stop)
            return _two_products(q_BNTH, k_BKSH, v_BKSH, self.mask_BTS, self.unmasked, scratch_2BKRS)
        return _fused(q_BNTH, k_BKSH, v_BKSH, self.mask_BTS, self.unmasked)

    @cached_property
    def unmasked(self) -> int:
        """Every query of every row sees the slots before this one."""
        return 0 if self.window is not None and self.stop > self.window else int(self._host_slots_BT.min()) + 1

    @cached_property
    def mask_BTS(self) -> Tensor | None:
        """Which of the slots from `unmasked` on each query sees; None where there are none."""
        slots_S = torch.arange(self.unmasked, self.stop, device=self.slots_BT.device)
        return None if len(slots_S) == 0 else visible(self.slots_BT, slots_S, self.window)


def _kernel(device: torch.device, dtype: torch.dtype, width: int) -> Kernel | None:
    """The kernel of our own for such queries, if there is one and it can be had."""
    if device.type == "cpu" and dtype == torch.float32 and width in cpu_attention.HEAD_DIMS:
        return cpu_attention.load()
    if device.type == "cuda" and dtype != torch.float64 and width in GPU_HEAD_DIMS:
        return gpu_kernel()
    return None


@cache
def gpu_kernel() -> Kernel | None:
    """The Triton kernel, or None without Triton or where `MAGICDEC_GPU_KERNEL=off` is set."""
    if os.environ.get("MAGICDEC_GPU_KERNEL") == "off":
        return None
    try:
        from ..kernels.triton_attention import attend
    except ImportError:
        return None
    return attend


def visible(positions_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Which slots a query at each position may read: its own and those before it, as far back as the window."""
    back = positions_T[..., None] - slots_S
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _two_products(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_BTS: Tensor | None, unmasked: int, scratch_2BKRS: Tensor
) -> Tensor:
    batch, heads, length, width = q_BNTH.shape
    scores_BKRS, weights_BKRS = scratch_2BKRS
    kv_heads, slots = scores_BKRS.shape[1], scores_BKRS.shape[3]
    q_BKRH = (q_BNTH * width**-0.5).reshape(batch, kv_heads, -1, width)
    torch.matmul(q_BKRH, k_BKSH.transpose(2, 3), out=scores_BKRS)
    if mask_BTS is not None:
        tail = scores_BKRS.view(batch, kv_heads, -1, length, slots)[..., unmasked:]
        tail.masked_fill_(~mask_BTS[:, None, None], float("-inf"))
    torch.softmax(scores_BKRS, -1, out=weights_BKRS)
    return (weights_BKRS @ v_BKSH).view(batch, heads, length, width)


def _fused(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_BTS: Tensor | None, unmasked: int) -> Tensor:
    batch, heads, length, width = q_BNTH.shape
    kv_heads, slots = k_BKSH.shape[1], k_BKSH.shape[2]
    mask = None
    if mask_BTS is not None:
        whole_BTS = F.pad(mask_BTS, (unmasked, slots - unmasked - mask_BTS.shape[2]), value=True)
        mask = whole_BTS[:, None].repeat(1, 1, heads // kv_heads, 1)
    out = F.scaled_dot_product_attention(q_BNTH.reshape(batch, kv_heads, -1, width), k_BKSH, v_BKSH, attn_mask=mask)
    return out.view(batch, heads, length, width)
