"""Reading a prompt into one row of a cache.

Shapes: B batch, T query tokens, S tokens to read, D model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv.attention import PrefillAttention, Watch
from ..kv.cache import KvCache
from ..model.transformer import Transformer
from ..system.device import to_device

CHUNK = 4096  # tokens read at once, which bounds the memory that scores and activations take


@torch.inference_mode()
def prefill(model: Transformer, cache: KvCache, row: int, tokens_S: Tensor, first: int = 0, watch: Watch | None = None) -> Tensor:
    """Read tokens, wherever they are, into a row of the cache from position `first` on, in chunks; x_D after the last of them."""
    x_BTD = torch.empty(0)
    for start in range(0, len(tokens_S), CHUNK):
        chunk_BT = to_device(tokens_S[None, start : start + CHUNK], model.device)
        positions_BT = torch.arange(first + start, first + start + chunk_BT.shape[1], device=chunk_BT.device)[None]
        attend = PrefillAttention(cache, row, first + start, model.config.sliding_window, watch)
        x_BTD = model(chunk_BT, positions_BT, attend)
    return x_BTD[0, -1]
