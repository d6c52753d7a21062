"""Readings of the exact cache at entries that are chosen at every draft step, by layer and KV head: top-k and Quest.

Shapes: B batch, T query tokens, R query rows of a KV head, S slots, L layers, K KV heads, H head dim, P pages, M pages of a row,
C chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv.cache import KvCache
from ..kv.gathered_attention import ChosenAttention
from ..kv.selection import PAGE, RECENT, quest_slots, top_slots
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device
from .kv_views import Reading


class TopKReading(Reading):
    """The entries with the largest products with the query, chosen at every step, and the recent ones."""

    def attend(self, positions_BT: Tensor) -> Attend:
        last_B, first_B = positions_BT[:, -1], _first_in_sight(self.model, positions_BT[:, 0])
        drafted_B = last_B + 1 - self.known_B
        recent_B = self.known_B - torch.minimum(self.budgets_B // 2, torch.full_like(self.budgets_B, RECENT))
        count_B, stop = self.budgets_B + drafted_B, int(last_B.max()) + 1
        how = _sent(self.cache.device, first_B=first_B, recent_B=recent_B, last_B=last_B, count_B=count_B)
        most = int(count_B.max())

        def choose(layer: int, q_BKRH: Tensor) -> Tensor:
            k_BKSH, _ = self.cache.read(layer, stop)
            return top_slots(q_BKRH, k_BKSH, **how, most=most)

        return ChosenAttention(self.cache, positions_BT, self.model.config.sliding_window, choose)


class QuestReading(Reading):
    """The pages with the largest bounds on the products of their keys with the query, and the newest pages.

    Attributes:
        low_LBKPH, high_LBKPH: Least and largest entry of the known keys of every page, by channel.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor):
        super().__init__(model, cache, budgets_B)
        layers, batch_size, kv_heads, capacity, width = cache.k_LBKSH.shape
        shape = (layers, batch_size, kv_heads, -(-capacity // PAGE), width)
        self.low_LBKPH = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.high_LBKPH = torch.zeros_like(self.low_LBKPH)

    def keep(self, rows_B: Tensor) -> None:
        super().keep(rows_B)
        self.low_LBKPH, self.high_LBKPH = self.low_LBKPH[:, rows_B], self.high_LBKPH[:, rows_B]

    def attend(self, positions_BT: Tensor) -> Attend:
        last_B, first_B = positions_BT[:, -1] // PAGE, _first_in_sight(self.model, positions_BT[:, 0]) // PAGE
        newest_B = (self.known_B - 1).clamp(min=0) // PAGE  # the newest page of known entries
        pages_B = torch.where(self.known_B <= self.budgets_B, newest_B + 1, (self.budgets_B // PAGE).clamp(min=1))
        count_B, stop = pages_B + last_B - newest_B, int(last_B.max()) + 1
        how = _sent(self.cache.device, first_B=first_B, recent_B=newest_B, last_B=last_B, count_B=count_B)
        most = int(count_B.max())

        def choose(layer: int, q_BKRH: Tensor) -> Tensor:
            bounds = self.low_LBKPH[layer, :, :, :stop], self.high_LBKPH[layer, :, :, :stop]
            return quest_slots(q_BKRH, *bounds, **how, most=most)

        return ChosenAttention(self.cache, positions_BT, self.model.config.sliding_window, choose)

    def _begin(self, row: int, tokens_S: Tensor, known: int) -> None:
        rows = slice(row, row + 1)
        self._bound(rows, torch.arange(-(-known // PAGE))[None], torch.tensor([known]))

    def _extend(self, known_B: Tensor) -> None:
        first_B = self.known_B // PAGE
        steps_M = torch.arange(int(((known_B - 1) // PAGE - first_B).max()) + 1)
        self._bound(slice(None), first_B[:, None] + steps_M, known_B)

    def _bound(self, rows: slice, pages_BM: Tensor, known_B: Tensor) -> None:
        """Compute the bounds of some pages of some rows from their known keys."""
        k_LBKSH = self.cache.k_LBKSH[:, rows]
        pages_BM, known_B = to_device(pages_BM, self.cache.device), to_device(known_B, self.cache.device)
        slots_BC = (pages_BM[..., None] * PAGE + torch.arange(PAGE, device=pages_BM.device)).flatten(1)
        rows_B1 = torch.arange(len(pages_BM), device=pages_BM.device)[:, None]
        k_BCLKH = k_LBKSH[:, rows_B1, :, slots_BC.clamp(max=self.cache.capacity - 1)]
        known_BC = (slots_BC < known_B[:, None])[:, :, None, None, None]
        size = (pages_BM.shape[1], PAGE)
        pages_BM = pages_BM.clamp(max=self.low_LBKPH.shape[3] - 1)
        for bound_LBKPH, worst in ((self.low_LBKPH, float("inf")), (self.high_LBKPH, float("-inf"))):
            paged = k_BCLKH.masked_fill(~known_BC, worst).unflatten(1, size)
            found_BMLKH = paged.amin(2) if worst > 0 else paged.amax(2)
            bound_LBKPH[:, rows][:, rows_B1, :, pages_BM] = found_BMLKH


def _sent(device: torch.device, **tensors: Tensor) -> dict[str, Tensor]:
    return {name: to_device(x, device) for name, x in tensors.items()}


def _first_in_sight(model: Transformer, positions_B: Tensor) -> Tensor:
    """The first entry that a token at each position may see."""
    window = model.config.sliding_window
    return torch.zeros_like(positions_B) if window is None else (positions_B + 1 - window).clamp(min=0)
