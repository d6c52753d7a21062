"""Attention of few queries over a long KV cache on a GPU, in Triton: for decoding and verification.

Each key and value is read once for all queries that share its KV head. A program takes one KV head of one sequence and one
split of its slots, with a running softmax over blocks (FlashAttention, arXiv 2205.14135); a second kernel merges the splits
(Flash-Decoding). The length of a sequence is read on the GPU, so launches do not depend on it and CUDA graphs can be replayed.

Shapes: B batch, T query tokens, N query heads, K KV heads, G = N / K, R = G * T query rows, S slots, H head dim.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_BYTES = 16 * 1024  # keys of one block, and as much again for values [bytes]
MIN_SLOTS_PER_SPLIT = 256
STAGES = 3  # software pipelining: blocks in flight
PROGRAMS_PER_SM = 2
MIN_ROWS = 16  # of a tensor-core product; missing query rows are padding


@triton.jit
def _partial(
    q_ptr, k_ptr, v_ptr, positions_ptr, out_ptr, top_ptr, sum_ptr, scale, stride_b, stride_k, window,
    K, T: tl.constexpr, R: tl.constexpr, H: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, kv = pair // K, pair % K
    r, h, s = tl.arange(0, ROWS), tl.arange(0, H), tl.arange(0, BLOCK)
    positions_R = tl.load(positions_ptr + b * T + r % T, mask=r < R, other=-1).to(tl.int32)
    stop = tl.max(positions_R) + 1
    first = tl.maximum(tl.load(positions_ptr + b * T).to(tl.int32) + 1 - window, 0)
    share = tl.cdiv(tl.cdiv(stop - first, SPLITS), BLOCK) * BLOCK
    low = first + part * share
    high = tl.minimum(low + share, stop)
    q_RH = tl.load(q_ptr + (pair * R + r[:, None]) * H + h[None, :], mask=r[:, None] < R, other=0.0)
    base = b * stride_b + kv * stride_k
    top_R = tl.full([ROWS], float("-inf"), tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    out_RH = tl.zeros([ROWS, H], tl.float32)
    for start in range(low, high, BLOCK):
        slots = start + s
        there = slots < high
        k_HS = tl.load(k_ptr + base + slots[None, :].to(tl.int64) * H + h[:, None], mask=there[None, :], other=0.0)
        scores_RS = tl.dot(q_RH, k_HS, input_precision="ieee") * scale
        back_RS = positions_R[:, None] - slots[None, :]
        scores_RS = tl.where((back_RS >= 0) & (back_RS < window) & there[None, :], scores_RS, float("-inf"))
        new_top_R = tl.maximum(top_R, tl.max(scores_RS, 1))
        finite_top_R = tl.where(new_top_R == float("-inf"), 0.0, new_top_R)
        weights_RS = tl.exp(scores_RS - finite_top_R[:, None])
        shrink_R = tl.exp(top_R - finite_top_R)
        v_SH = tl.load(v_ptr + base + slots[:, None].to(tl.int64) * H + h[None, :], mask=there[:, None], other=0.0)
        out_RH = out_RH * shrink_R[:, None] + tl.dot(weights_RS.to(v_SH.dtype), v_SH, input_precision="ieee")
        sum_R = sum_R * shrink_R + tl.sum(weights_RS, 1)
        top_R = new_top_R
    place = (pair * SPLITS + part) * R + r
    tl.store(top_ptr + place, top_R, mask=r < R)
    tl.store(sum_ptr + place, sum_R, mask=r < R)
    tl.store(out_ptr + place[:, None] * H + h[None, :], out_RH, mask=r[:, None] < R)


@triton.jit
def _merge(part_ptr, top_ptr, sum_ptr, out_ptr, R: tl.constexpr, H: tl.constexpr, SPLITS: tl.constexpr):
    pair, r = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h = tl.arange(0, H)
    top, total = float("-inf"), 0.0
    out_H = tl.zeros([H], tl.float32)
    for part in range(SPLITS):
        place = (pair * SPLITS + part) * R + r
        part_top = tl.load(top_ptr + place)
        new_top = tl.maximum(top, part_top)
        finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink, share = tl.exp(top - finite_top), tl.exp(part_top - finite_top)
        out_H = out_H * shrink + share * tl.load(part_ptr + place * H + h)
        total = total * shrink + share * tl.load(sum_ptr + place)
        top = new_top
    tl.store(out_ptr + (pair * R + r) * H + h, (out_H / total).to(out_ptr.dtype.element_ty))


def attend(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, positions_BT: Tensor, window: int | None) -> Tensor:
    """Attention of each query over the cached slots up to its own.

    Args:
        q_BNTH: Queries in bfloat16, float16 or float32; H is a power of 2.
        k_BKSH, v_BKSH: Keys and values, with equal strides and the last two dimensions contiguous.
        positions_BT: Slot of each query's own token, ascending along T.
        window: Slots that a query reaches back, its own included; None for all. [tokens]

    Returns:
        out_BNTH, in the dtype of the queries.

    Raises:
        ValueError: The strides of keys and values do not fit.
    """
    batch, heads, length, width = q_BNTH.shape
    kv_heads, slots = k_BKSH.shape[1:3]
    rows, pairs = heads // kv_heads * length, batch * kv_heads
    if k_BKSH.stride() != v_BKSH.stride() or k_BKSH.stride()[2:] != (width, 1):
        raise ValueError("keys and values must share one layout: equal strides, contiguous slots")
    splits = num_splits(pairs, slots, _num_sms(q_BNTH.device))
    q_BNTH, positions_BT = q_BNTH.contiguous(), positions_BT.contiguous()
    part_out = torch.empty((pairs, splits, rows, width), dtype=torch.float32, device=q_BNTH.device)
    part_top, part_sum = torch.empty((2, pairs, splits, rows), dtype=torch.float32, device=q_BNTH.device)
    out_BNTH = torch.empty_like(q_BNTH)
    _partial[(pairs, splits)](
        q_BNTH, k_BKSH, v_BKSH, positions_BT, part_out, part_top, part_sum,
        width**-0.5, k_BKSH.stride(0), k_BKSH.stride(1), window or 2**30, kv_heads,
        T=length, R=rows, H=width, SPLITS=splits, **tuning(rows, width, q_BNTH.dtype.itemsize),
    )  # fmt: skip
    _merge[(pairs, rows)](part_out, part_top, part_sum, out_BNTH, R=rows, H=width, SPLITS=splits, enable_fp_fusion=True)
    return out_BNTH


def tuning(rows: int, width: int, bytes_per_element: int) -> dict[str, int]:
    """Tile sizes and launch options of the split kernel. Triton requires powers of 2.

    Args:
        rows: Query rows of a KV head.
        width: Head dim.
        bytes_per_element: Of keys and values. [bytes]
    """
    return {
        "ROWS": max(MIN_ROWS, triton.next_power_of_2(rows)),
        "BLOCK": max(16, min(BLOCK_BYTES // (width * bytes_per_element), 128)),
        "num_warps": 4,
        "num_stages": STAGES,
        "enable_fp_fusion": True,
    }


def num_splits(pairs: int, slots: int, sms: int) -> int:
    """Splits of the slots of each KV head: enough to keep all SMs busy, but none too small.

    A power of 2, so that few versions of the kernel are compiled while a cache fills up.

    Args:
        pairs: KV heads of all sequences together.
        slots: Slots of a sequence. [tokens]
        sms: Streaming multiprocessors of the GPU.
    """
    wanted = min(-(-PROGRAMS_PER_SM * sms // pairs), slots // MIN_SLOTS_PER_SPLIT)
    return 1 << max(wanted, 1).bit_length() - 1


@cache
def _num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
