"""Attention of a draft step over entries that are selected for this very step, per KV head: an `Attend` for the decoder.

Shapes: B batch, T query tokens, N query heads, K KV heads, R query rows of a KV head, C selected entries, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..system.device import to_device
from .attention import visible
from .cache import KvCache

Select = Callable[[int, Tensor], Tensor]  # (layer, q_BKRH) -> slots_BKC; slots beyond the cache mean "no entry"


class GatheredAttention:
    """Stores the new tokens of every row at their positions, and lets them attend to the selected entries of their KV head.

    Keys and values of draft tokens lie in the cache behind the committed ones; verification overwrites them with exact ones.

    Args:
        cache: Where the new tokens are stored and what they read.
        positions_BT: Positions of the new tokens, on the host. [tokens]
        window: Sliding window, the token itself included; None for none. [tokens]
        select: Selects the entries to read among those that the last new token may attend to.
    """

    def __init__(self, cache: KvCache, positions_BT: Tensor, window: int | None, select: Select):
        self.cache, self.window, self.select = cache, window, select
        self.positions_BT = to_device(positions_BT, cache.device)

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        """Attention output of one layer, of the shape of `q_BNTH`."""
        self.cache.write(layer, self.positions_BT, k_BKTH, v_BKTH)
        batch, heads, length, width = q_BNTH.shape
        q_BKRH = q_BNTH.reshape(batch, k_BKTH.shape[1], -1, width)
        slots_BKC = self.select(layer, q_BKRH)
        k_BKCH, v_BKCH = self.cache.gather(layer, slots_BKC.clamp(max=self.cache.capacity - 1))
        scores_BKRC = q_BKRH @ k_BKCH.transpose(2, 3) * width**-0.5
        visible_BTKC = visible(self.positions_BT[:, :, None], slots_BKC[:, None], self.window)
        by_token = scores_BKRC.view(*scores_BKRC.shape[:2], -1, length, scores_BKRC.shape[3])  # [B, K, G, T, C]
        by_token.masked_fill_(~visible_BTKC.transpose(1, 2)[:, :, None], float("-inf"))
        out_BKRH = torch.softmax(scores_BKRC, -1) @ v_BKCH
        return out_BKRH.reshape(batch, heads, length, width)
