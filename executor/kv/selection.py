"""Which cached entries a sparse draft reads: one function a policy, from what is known of the entries to their slots.

Shapes: B batch, L layers, N query heads, K KV heads, R query rows of a KV head, W observed queries, S slots, P pages,
H head dim, C chosen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SINK_TOKENS = 16  # as in MagicDec (arXiv 2408.11049)
OBSERVED = 32  # queries that SnapKV looks at, and entries that it always keeps
POOLING = 5  # neighbouring entries whose scores it averages
RECENT = 16  # entries that top-k always reads
PAGE = 16  # entries that Quest reads or skips together


def streaming_llm_slots(length: int, kv_budget: int, device: torch.device) -> Tensor:
    """The first few entries and the most recent ones, at most `kv_budget`; all of them if they fit.

    Args:
        length: Entries in the cache. [tokens]
        kv_budget: Most entries to read. [tokens]

    Source:
        StreamingLLM (arXiv 2309.17453); 16 sinks as in MagicDec (arXiv 2408.11049). Positions stay absolute.
    """
    if length <= kv_budget:
        return torch.arange(length, device=device)
    sinks = min(SINK_TOKENS, kv_budget // 2)
    recent = torch.arange(length - (kv_budget - sinks), length, device=device)
    return torch.cat([torch.arange(sinks, device=device), recent])


def snapkv_slots(q_NWH: Tensor, positions_W: Tensor, k_KSH: Tensor, kv_budget: int, first: int = 0) -> Tensor:
    """The entries that the latest queries attended to most, for each KV head of a layer, and always the latest entries.

    Args:
        q_NWH: Queries of the observation window.
        positions_W: Their positions, the last of them S - 1; negative where there is no query. [tokens]
        k_KSH: All known keys.
        kv_budget: Entries to choose; all of them if they fit. [tokens]
        first: The first entry still in sight of a sliding window.

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
    q_KRH, k_KSH = q_NWH.to(exact).reshape(kv_heads, -1, width), k_KSH.to(exact)  # rows of a head's group side by side
    scores_KGWS = (q_KRH @ k_KSH.transpose(1, 2) * width**-0.5).view(kv_heads, -1, len(positions_W), length)
    seen_WS = (slots_S <= positions_W[:, None]) & (slots_S >= first)
    # Where a row has fewer tokens than the window, a query that is none sees nothing: its weights are dropped.
    weights_KGWS = scores_KGWS.masked_fill(~seen_WS, float("-inf")).softmax(-1).nan_to_num(0.0)
    pooled_KS = F.avg_pool1d(weights_KGWS.sum((1, 2))[:, None], POOLING, stride=1, padding=POOLING // 2)[:, 0]
    kept = min(OBSERVED, max(1, kv_budget // 2))
    pooled_KS[:, :first] = -1.0
    pooled_KS[:, length - kept :] = float("inf")
    return pooled_KS.topk(kv_budget, -1).indices.sort(-1).values


def top_slots(
    q_BKRH: Tensor, k_BKSH: Tensor, *, first_B: Tensor, recent_B: Tensor, last_B: Tensor, count_B: Tensor, most: int
) -> Tensor:
    """The entries whose keys have the largest products with a query of their group, for each KV head, and the recent ones.

    Args:
        q_BKRH: Queries that share a KV head.
        k_BKSH: Keys.
        first_B: First entry in sight.
        recent_B: From this one on, all are read.
        last_B: Last entry in sight.
        count_B: Entries to read, the recent ones included. [tokens]
        most: The largest of these. [tokens]

    Returns:
        slots_BKC; S where a row or head reads fewer than another.
    """
    return _best((q_BKRH @ k_BKSH.transpose(2, 3)).amax(2), first_B, recent_B, last_B, count_B, most)


def quest_slots(
    q_BKRH: Tensor,
    low_BKPH: Tensor,
    high_BKPH: Tensor,
    *,
    first_B: Tensor,
    recent_B: Tensor,
    last_B: Tensor,
    count_B: Tensor,
    most: int,
) -> Tensor:
    """The entries of the pages whose keys may have the largest products with a query, and of the recent pages.

    Args:
        q_BKRH: Queries that share a KV head.
        low_BKPH, high_BKPH: Least and largest entry of the keys of each page, by channel.
        first_B, recent_B, last_B, count_B, most: As in `top_slots`, but of pages.

    Returns:
        slots_BKC; P * PAGE or more where a row or head reads fewer than another.

    Source:
        Quest (arXiv 2406.10774), section 3.3; pages of 16.
    """
    bound_BKRP = q_BKRH.clamp(min=0) @ high_BKPH.transpose(2, 3) + q_BKRH.clamp(max=0) @ low_BKPH.transpose(2, 3)
    pages_BKC = _best(bound_BKRP.amax(2), first_B, recent_B, last_B, count_B, most)
    return (pages_BKC[..., None] * PAGE + torch.arange(PAGE, device=q_BKRH.device)).flatten(2)


def _best(score_BKS: Tensor, first_B: Tensor, recent_B: Tensor, last_B: Tensor, count_B: Tensor, most: int) -> Tensor:
    """The `count_B` best of every row, those from `recent_B` to `last_B` among them; S where there are no more."""
    size = score_BKS.shape[2]
    slots_S = torch.arange(size, device=score_BKS.device)
    unseen_BS = (slots_S < first_B[:, None]) | (slots_S > last_B[:, None])
    score_BKS = score_BKS.masked_fill((slots_S >= recent_B[:, None])[:, None], float("inf"))
    score_BKS = score_BKS.masked_fill(unseen_BS[:, None], float("-inf"))
    best_BKC = score_BKS.topk(min(most, size), -1)
    ranks_C = torch.arange(best_BKC.values.shape[2], device=score_BKS.device)
    none_BKC = (best_BKC.values == float("-inf")) | (ranks_C >= count_B[:, None])[:, None]
    return best_BKC.indices.masked_fill(none_BKC, size)
