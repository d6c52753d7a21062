"""Which cached entries a sparse draft reads: one function a policy, from the number of entries to their slots."""

from __future__ import annotations

import torch
from torch import Tensor

SINK_TOKENS = 16  # as in MagicDec (arXiv 2408.11049)


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
