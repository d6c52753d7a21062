"""Which KV entries a sparse draft reads: one function per policy, from keys and queries to slots.

Shapes: B batch, L layers, N query heads, K KV heads, R query rows of a KV head, W observed queries, S slots, P pages,
H head dim, C selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SINK_TOKENS = 16  # attention sinks of StreamingLLM, as in MagicDec (arXiv 2408.11049)
OBSERVED_QUERIES = 32  # SnapKV: queries of the observation window, and recent entries that are always kept
POOLING_KERNEL = 5  # SnapKV: neighbouring entries whose scores are averaged
RECENT_ENTRIES = 16  # top-k: recent entries that are always read
PAGE_SIZE = 16  # Quest: entries that are read or skipped together


def streaming_llm_slots(length: int, kv_budget: int, device: torch.device) -> Tensor:
    """Attention sinks and the most recent entries, `kv_budget` together; all entries if they fit.

    Args:
        length: Entries in the cache. [tokens]
        kv_budget: Most entries to read. [tokens]
        device: Where the result goes.

    Returns:
        slots_C in rising order.

    Source:
        StreamingLLM (arXiv 2309.17453); 16 sinks as in MagicDec (arXiv 2408.11049). Positions stay absolute.
    """
    if length <= kv_budget:
        return torch.arange(length, device=device)
    sinks = min(SINK_TOKENS, kv_budget // 2)
    recent = torch.arange(length - (kv_budget - sinks), length, device=device)
    return torch.cat([torch.arange(sinks, device=device), recent])


def snapkv_slots(q_NWH: Tensor, positions_W: Tensor, k_KSH: Tensor, kv_budget: int, first: int = 0) -> Tensor:
    """The entries that the latest queries attended to most, per KV head of a layer, and always the latest entries.

    Args:
        q_NWH: Queries of the observation window.
        positions_W: Their positions, the last of them S - 1; negative where there is no query. [tokens]
        k_KSH: All committed keys.
        kv_budget: Entries to select; all of them if they fit. [tokens]
        first: First entry inside the sliding window.

    Returns:
        slots_KC in rising order.

    Source:
        SnapKV (arXiv 2404.14469), section 3; window 32 and kernel 5 as in MagicDec (arXiv 2408.11049).
    """
    kv_heads, length, width = k_KSH.shape
    slots_S = torch.arange(length, device=k_KSH.device)
    if length - first <= kv_budget:
        return slots_S[first:].expand(kv_heads, -1)
    exact = torch.promote_types(k_KSH.dtype, torch.float32)
    q_KRH, k_KSH = q_NWH.to(exact).reshape(kv_heads, -1, width), k_KSH.to(exact)  # query heads of a group side by side
    scores_KGWS = (q_KRH @ k_KSH.transpose(1, 2) * width**-0.5).view(kv_heads, -1, len(positions_W), length)
    visible_WS = (slots_S <= positions_W[:, None]) & (slots_S >= first)
    # A missing query (negative position) sees nothing: its softmax is NaN and counts as zero.
    weights_KGWS = scores_KGWS.masked_fill(~visible_WS, float("-inf")).softmax(-1).nan_to_num(0.0)
    pooled_KS = F.avg_pool1d(weights_KGWS.sum((1, 2))[:, None], POOLING_KERNEL, stride=1, padding=POOLING_KERNEL // 2)[:, 0]
    kept = min(OBSERVED_QUERIES, max(1, kv_budget // 2))
    pooled_KS[:, :first] = -1.0
    pooled_KS[:, length - kept :] = float("inf")
    return pooled_KS.topk(kv_budget, -1).indices.sort(-1).values


@dataclass(frozen=True)
class SelectionLimits:
    """Bounds of a selection for each row, in entries or in pages.

    Attributes:
        first_B: First one that is visible.
        recent_B: From this one on, all are selected.
        last_B: Last one that is visible.
        count_B: How many to select, the recent ones included.
        most: Maximum of `count_B`.
    """

    first_B: Tensor
    recent_B: Tensor
    last_B: Tensor
    count_B: Tensor
    most: int


def top_slots(q_BKRH: Tensor, k_BKSH: Tensor, limits: SelectionLimits) -> Tensor:
    """The entries with the largest dot products with any query of their group, per KV head, and the recent ones.

    Args:
        q_BKRH: Queries that share a KV head.
        k_BKSH: Keys.
        limits: In entries.

    Returns:
        slots_BKC; padded with S where a row or head selects fewer than another.
    """
    return _best((q_BKRH @ k_BKSH.transpose(2, 3)).amax(2), limits)


def quest_slots(q_BKRH: Tensor, low_BKPH: Tensor, high_BKPH: Tensor, limits: SelectionLimits) -> Tensor:
    """The entries of the pages with the largest upper bounds on dot products with any query, and of the recent pages.

    Args:
        q_BKRH: Queries that share a KV head.
        low_BKPH, high_BKPH: Minimum and maximum of the keys of each page, by channel.
        limits: In pages.

    Returns:
        slots_BKC; padded with P * PAGE_SIZE or more where a row or head selects fewer than another.

    Source:
        Quest (arXiv 2406.10774), section 3.3; pages of 16.
    """
    bound_BKRP = q_BKRH.clamp(min=0) @ high_BKPH.transpose(2, 3) + q_BKRH.clamp(max=0) @ low_BKPH.transpose(2, 3)
    pages_BKC = _best(bound_BKRP.amax(2), limits)
    return (pages_BKC[..., None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=q_BKRH.device)).flatten(2)


def _best(score_BKS: Tensor, limits: SelectionLimits) -> Tensor:
    """Indices of the best scores of every row, the recent ones included; padded with S."""
    size = score_BKS.shape[2]
    slots_S = torch.arange(size, device=score_BKS.device)
    invisible_BS = (slots_S < limits.first_B[:, None]) | (slots_S > limits.last_B[:, None])
    score_BKS = score_BKS.masked_fill((slots_S >= limits.recent_B[:, None])[:, None], float("inf"))
    score_BKS = score_BKS.masked_fill(invisible_BS[:, None], float("-inf"))
    best_BKC = score_BKS.topk(min(limits.most, size), -1)
    ranks_C = torch.arange(best_BKC.values.shape[2], device=score_BKS.device)
    padding_BKC = (best_BKC.values == float("-inf")) | (ranks_C >= limits.count_B[:, None])[:, None]
    return best_BKC.indices.masked_fill(padding_BKC, size)
