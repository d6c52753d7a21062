"""Prefill: read tokens into one row of a KV cache.

Shapes: B batch, T query tokens, S tokens to read, D model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv.attention import PrefillAttention, QueryHook
from ..kv.cache import KvCache
from ..model.transformer import Transformer
from ..system.device import to_device

CHUNK_TOKENS = 4096  # tokens per pass: bounds the memory of attention scores and activations


@torch.inference_mode()
def prefill(
    model: Transformer, cache: KvCache, row: int, tokens_S: Tensor, first: int = 0, query_hook: QueryHook | None = None
) -> Tensor:
    """Read tokens into a row of the cache, chunk by chunk.

    Args:
        model: Computes keys and values.
        cache: Where they are stored.
        row: Row of the cache.
        tokens_S: Token ids, at least one, on any device.
        first: Position of the first token; entries before it are in the cache already. [tokens]
        query_hook: Receives the queries of each layer and chunk.

    Returns:
        Final hidden state x_D of the last token.
    """
    x_BTD = torch.empty(0)
    for start in range(0, len(tokens_S), CHUNK_TOKENS):
        chunk_BT = to_device(tokens_S[None, start : start + CHUNK_TOKENS], model.device)
        positions_BT = torch.arange(first + start, first + start + chunk_BT.shape[1], device=chunk_BT.device)[None]
        attend = PrefillAttention(cache, row, first + start, model.config.sliding_window, query_hook)
        x_BTD = model(chunk_BT, positions_BT, attend)
    return x_BTD[0, -1]
