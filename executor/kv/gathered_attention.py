"""Attention of a draft step over entries that are chosen for this very step, by KV head: an `Attend` for the decoder.

Shapes: B batch, T query tokens, N query heads, K KV heads, R query rows of a KV head, C chosen entries, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..system.device import to_device
from .attention import visible
from .cache import KvCache

Choose = Callable[[int, Tensor], Tensor]  # (layer, q_BKRH) to slots_BKC; slots beyond the cache are none


class ChosenAttention:
    """New tokens of every row, stored at their positions; each reads the entries that are chosen for its KV head.

    A draft's own keys and values so lie in the cache beyond the row's known tokens, where exact ones replace them.

    Args:
        cache: Where they are stored and what they read.
        positions_BT: Positions of the new tokens, on the host. [tokens]
        window: Entries a token reaches back, its own included; None for all. [tokens]
        choose: Which entries are read, of those that the last of the new tokens may see.
    """

    def __init__(self, cache: KvCache, positions_BT: Tensor, window: int | None, choose: Choose):
        self.cache, self.window, self.choose = cache, window, choose
        self.positions_BT = to_device(positions_BT, cache.device)

    def __call__(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        self.cache.write(layer, self.positions_BT, k_BKTH, v_BKTH)
        batch, heads, length, width = q_BNTH.shape
        q_BKRH = q_BNTH.reshape(batch, k_BKTH.shape[1], -1, width)
        slots_BKC = self.choose(layer, q_BKRH)
        chosen_BKCH, values_BKCH = self.cache.gather(layer, slots_BKC.clamp(max=self.cache.capacity - 1))
        scores_BKRC = q_BKRH @ chosen_BKCH.transpose(2, 3) * width**-0.5
        seen_BTKC = visible(self.positions_BT[:, :, None], slots_BKC[:, None], self.window)
        by_token = scores_BKRC.view(*scores_BKRC.shape[:2], -1, length, scores_BKRC.shape[3])  # [B, K, G, T, C]
        by_token.masked_fill_(~seen_BTKC.transpose(1, 2)[:, :, None], float("-inf"))
        out_BKRH = torch.softmax(scores_BKRC, -1) @ values_BKCH
        return out_BKRH.reshape(batch, heads, length, width)
