"""Stage `attention`: verification attention over a long cache by number of query tokens, beside other kernels where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdec.executor.kv.attention import _kernel, visible

from .setting import COLD_BYTES, Setting, device_time_s

HEADS = {"Llama-3.1-8B, Qwen3-8B": (32, 8), "an eighth of Llama-3.1-8B": (4, 1), "multi-head, Llama-2-7B": (32, 32)}
QUERY_LENS = (1, 5, 2, 3, 9, 17)
BATCH_SIZES = (8, 32, 1, 128, 256)
CONTEXT_LENS = (32768, 8192, 1024, 131072)
WIDTH = 128
BESIDE = {(8, 32768), (32, 8192)}  # batch and context where other kernels run too

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def run(setting: Setting) -> None:
    """Measure and write; the points that matter most come first, so that a run that is cut off has them."""
    points = sorted(product(enumerate(HEADS), QUERY_LENS, BATCH_SIZES, CONTEXT_LENS), key=_order)
    if setting.rehearse:
        points = [((index, layout), query_len, 2, 300) for (index, layout), query_len in product(enumerate(HEADS), QUERY_LENS)]
    for (_, layout), query_len, batch, context in points:
        if setting.time_is_up:
            return
        heads, kv_heads = HEADS[layout]
        entry_bytes = 2 * batch * kv_heads * context * WIDTH * setting.dtype.itemsize
        if entry_bytes > setting.memory_bytes // 2:
            continue
        caches = list(_caches(setting, batch, kv_heads, context, entry_bytes))
        q_BNTH = torch.randn(batch, heads, query_len, WIDTH, device=setting.device, dtype=setting.dtype)
        positions_BT = torch.arange(context - query_len, context, device=setting.device).expand(batch, -1).contiguous()
        ways: dict[str, Attention] = {"magicdec": partial(_own, setting)}
        if setting.rehearse or (batch, context) in BESIDE:
            ways |= _others(setting, query_len)
        for name, attend in ways.items():
            row: dict[str, Any] = {
                "layout": layout,
                "query_len": query_len,
                "batch_size": batch,
                "context_len": context,
                "kernel": name,
            }
            try:
                time_s = device_time_s([partial(attend, q_BNTH, k, v, positions_BT) for k, v in caches], setting.device)
            except Exception as error:  # another kernel may not take this shape: the table says so
                setting.write("attention", row | {"error": f"{type(error).__name__}: {error}"[:200]})
                continue
            setting.write("attention", row | {"time_s": time_s, "bytes_per_s": entry_bytes / time_s})
        del caches


def _order(point: tuple[tuple[int, str], int, int, int]) -> int:
    (layout, _), query_len, batch, context = point
    return layout + QUERY_LENS.index(query_len) + BATCH_SIZES.index(batch) + CONTEXT_LENS.index(context)


def _caches(setting: Setting, batch: int, kv_heads: int, context: int, entry_bytes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of as many layers as the L2 cache does not hold."""
    for _ in range(1 if setting.rehearse else max(1, min(-(-COLD_BYTES // entry_bytes), 64))):
        k, v = torch.randn(2, batch, kv_heads, context, WIDTH, device=setting.device, dtype=setting.dtype)
        yield k, v


def _own(setting: Setting, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor) -> Tensor:
    kernel = _kernel(setting.device, setting.dtype, WIDTH)
    if kernel is None:
        raise RuntimeError("no kernel for this device: is Triton (on a CPU: a compiler) installed?")
    return kernel(q_BNTH, k_BKSH, v_BKSH, positions_BT, None)


def _others(setting: Setting, query_len: int) -> dict[str, Attention]:
    """Other kernels for the same, those that are installed."""
    ways: dict[str, Attention] = {"scaled_dot_product_attention": _sdpa}
    if setting.rehearse:
        return ways
    ways["FlexAttention"] = _flex
    try:
        from flash_attn import flash_attn_with_kvcache

        ways["flash-attn"] = lambda q, k, v, positions: flash_attn_with_kvcache(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), cache_seqlens=k.shape[2], causal=True
        )
    except ImportError:
        pass
    return ways


def _sdpa(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor) -> Tensor:
    mask = None
    if q_BNTH.shape[2] > 1:
        mask = visible(positions_BT[:1], torch.arange(k_BKSH.shape[2], device=q_BNTH.device), None)[:, None]
    return F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, enable_gqa=q_BNTH.shape[1] != k_BKSH.shape[1])


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _mask(query_len: int, slots: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return q + slots - query_len >= kv

    return create_block_mask(sees, None, None, query_len, slots, device="cuda")


def _flex(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor) -> Tensor:
    grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
    mask = _mask(q_BNTH.shape[2], k_BKSH.shape[2])
    out: Tensor = _compiled()(q_BNTH, k_BKSH, v_BKSH, block_mask=mask, enable_gqa=grouped)
    return out


def shapes() -> Sequence[str]:
    """Head layouts, for the report."""
    return tuple(HEADS)
