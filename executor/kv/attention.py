"""Attention over cached keys and values, for prefill, decoding and verification: each an `Attend` for the decoder.

Decoding and verification fold the query heads of a KV head into the query axis, so that each key is read once for all of them.
Where possible they use a kernel of our own: in C on a CPU in float32 (`kernels.cpu_attention`), in Triton on a GPU
(`kernels.triton_attention`). The fallback on a CPU is two matrix products, which are faster than torch's fused kernel for so
few query rows; on a GPU it is that fused kernel.

Shapes: B batch, T query tokens, S slots, N query heads, K KV heads, G query heads per KV head, H head dim, R query rows of a KV
head (G x T).
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

GPU_HEAD_DIMS = (16, 32, 64, 128, 256)  # Triton needs powers of 2

QueryHook = Callable[[int, Tensor, Tensor], None]  # receives (layer, q_BNTH, positions_BT) from each layer


class PrefillAttention:
    """Attention of a chunk of one row's prompt to itself and to the entries before it, which are in the cache already.

    Args:
        cache: Where keys and values are stored and read.
        row: Row of the cache.
        start: Position of the chunk's first token. [tokens]
        window: Sliding window, the token itself included; None for none. [tokens]
        query_hook: Receives the queries.
    """

    def __init__(self, cache: KvCache, row: int, start: int, window: int | None, query_hook: QueryHook | None = None):
        self.cache, self.row, self.start, self.window, self.query_hook = cache, row, start, window, query_hook

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        """Attention output of one layer, of the shape of `q_BNTH`; B is 1."""
        self.cache.write_row(layer, self.row, self.start, k_BKTH[0], v_BKTH[0])
        if self.query_hook is not None:
            self.query_hook(layer, q_BNTH, torch.arange(self.start, self.start + q_BNTH.shape[2], device=q_BNTH.device)[None])
        length = q_BNTH.shape[2]
        grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
        stop = self.start + length
        if self.start == 0 and (self.window is None or length <= self.window):
            return F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=grouped)
        k_BKSH = self.cache.k_LBKSH[layer, self.row : self.row + 1, :, :stop]
        v_BKSH = self.cache.v_LBKSH[layer, self.row : self.row + 1, :, :stop]
        positions_T = torch.arange(self.start, stop, device=q_BNTH.device)
        mask_TS = visible(positions_T, torch.arange(stop, device=q_BNTH.device), self.window)
        if grouped and q_BNTH.device.type == "cuda":  # few fused kernels support a mask and grouped heads together
            group, grouped = q_BNTH.shape[1] // k_BKTH.shape[1], False
            k_BKSH, v_BKSH = k_BKSH.repeat_interleave(group, 1), v_BKSH.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=mask_TS, enable_gqa=grouped)


class SlotAttention:
    """Stores new tokens of every row at consecutive slots of a cache; each attends to the row's slots up to its own.

    Args:
        cache: Where the new tokens are stored and what they read.
        slots_BT: Slot of each new token, on the host.
        window: Sliding window in slots, the token's own included; None for none. [tokens]
        also_store: A second cache that also stores the new keys and values, at their positions.
        positions_BT: Positions of the new tokens, on the host; None if they equal the slots. [tokens]
        query_hook: Receives the queries.

    Attributes:
        slots_BT, positions_BT: The same on the cache's device.
        stop: One more than the largest slot.
    """

    def __init__(
        self,
        cache: KvCache | QuantisedKv,
        slots_BT: Tensor,
        window: int | None = None,
        also_store: KvCache | None = None,
        positions_BT: Tensor | None = None,
        query_hook: QueryHook | None = None,
    ):
        self.cache, self.window, self.also_store, self.query_hook = cache, window, also_store, query_hook
        self._host_slots_BT = slots_BT
        self.slots_BT = to_device(slots_BT, cache.device)
        self.positions_BT = self.slots_BT if positions_BT is None else to_device(positions_BT, cache.device)
        self.stop = int(slots_BT.max()) + 1

    @property
    def only_reads_cache(self) -> bool:
        """True if it does nothing but store to and read from one exact cache, so that fused kernels can take over."""
        return isinstance(self.cache, KvCache) and self.also_store is None and self.query_hook is None

    @property
    def capturable(self) -> bool:
        """True if it can be part of a CUDA graph: on a GPU, with launches that depend only on tensor shapes."""
        if not isinstance(self.cache, KvCache) or self.cache.device.type != "cuda":
            return False
        return _kernel(self.cache.device, self.cache.k_LBKSH.dtype, self.cache.k_LBKSH.shape[4]) is not None

    @property
    def graph_key(self) -> Hashable:
        """Equal for attentions that differ only in slots and positions, so that they can share a CUDA graph."""
        return id(self.cache), id(self.also_store), self.query_hook, self.window

    def with_slots(self, slots_BT: Tensor, positions_BT: Tensor) -> SlotAttention:
        """The same attention at other slots and positions, given on the device, wherever in the cache they are."""
        other = copy(self)
        other.slots_BT, other.positions_BT, other.stop = slots_BT, positions_BT, self.cache.capacity
        return other

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        """Attention output of one layer, of the shape of `q_BNTH`."""
        self.cache.write(layer, self.slots_BT, k_BKTH, v_BKTH)
        if self.also_store is not None:
            self.also_store.write(layer, self.positions_BT, k_BKTH, v_BKTH)
        if self.query_hook is not None:
            self.query_hook(layer, q_BNTH, self.positions_BT)
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
        """Number of leading slots that all queries of all rows see."""
        return 0 if self.window is not None and self.stop > self.window else int(self._host_slots_BT.min()) + 1

    @cached_property
    def mask_BTS(self) -> Tensor | None:
        """Which of the slots from `unmasked` on each query sees; None if there are no such slots."""
        slots_S = torch.arange(self.unmasked, self.stop, device=self.slots_BT.device)
        return None if len(slots_S) == 0 else visible(self.slots_BT, slots_S, self.window)


def _kernel(device: torch.device, dtype: torch.dtype, width: int) -> Kernel | None:
    """Our own kernel for such queries; None if there is none or it is not available."""
    if device.type == "cpu" and dtype == torch.float32 and width in cpu_attention.HEAD_DIMS:
        return cpu_attention.load()
    if device.type == "cuda" and dtype != torch.float64 and width in GPU_HEAD_DIMS:
        return gpu_kernel()
    return None


@cache
def gpu_kernel() -> Kernel | None:
    """The Triton kernel; None without Triton or if `MAGICDEC_GPU_KERNEL=off` is set."""
    if os.environ.get("MAGICDEC_GPU_KERNEL") == "off":
        return None
    try:
        from ..kernels.triton_attention import attend
    except ImportError:
        return None
    return attend


def visible(positions_T: Tensor, slots_S: Tensor, window: int | None) -> Tensor:
    """Causal mask: which slots a query at each position sees, its own and those before it within the window.

    Args:
        positions_T: Positions of the queries, of any shape. [tokens]
        slots_S: Slots.
        window: Sliding window, the query's own slot included; None for none. [tokens]

    Returns:
        A boolean tensor, of the shape of `positions_T` with a slot axis added.
    """
    distance = positions_T[..., None] - slots_S
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _two_products(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_BTS: Tensor | None, unmasked: int, scratch_2BKRS: Tensor
) -> Tensor:
    """Attention as two matrix products; the scores are kept in scratch memory."""
    batch, heads, length, width = q_BNTH.shape
    scores_BKRS, weights_BKRS = scratch_2BKRS
    kv_heads, slots = scores_BKRS.shape[1], scores_BKRS.shape[3]
    q_BKRH = (q_BNTH * width**-0.5).reshape(batch, kv_heads, -1, width)
    torch.matmul(q_BKRH, k_BKSH.transpose(2, 3), out=scores_BKRS)
    if mask_BTS is not None:
        tail = scores_BKRS.view(batch, kv_heads, -1, length, slots)[..., unmasked:]
        tail.masked_fill_(~mask_BTS[:, None, None], float("-inf"))
    torch.softmax(scores_BKRS, -1, out=weights_BKRS)
    return torch.matmul(weights_BKRS, v_BKSH).view(batch, heads, length, width)


def _fused(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_BTS: Tensor | None, unmasked: int) -> Tensor:
    """Attention by torch's fused kernel."""
    batch, heads, length, width = q_BNTH.shape
    kv_heads, slots = k_BKSH.shape[1], k_BKSH.shape[2]
    mask = None
    if mask_BTS is not None:
        padded_BTS = F.pad(mask_BTS, (unmasked, slots - unmasked - mask_BTS.shape[2]), value=True)
        mask = padded_BTS[:, None].repeat(1, 1, heads // kv_heads, 1)
    out = F.scaled_dot_product_attention(q_BNTH.reshape(batch, kv_heads, -1, width), k_BKSH, v_BKSH, attn_mask=mask)
    return out.view(batch, heads, length, width)
