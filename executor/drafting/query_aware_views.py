"""Query-aware KV views: top-k and Quest select entries of the exact cache at every draft step, per layer and KV head.

Shapes: B batch, T query tokens, R query rows of a KV head, S slots, L layers, K KV heads, H head dim, P pages, M pages of a row,
C selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kv.cache import KvCache
from ..kv.gathered_attention import GatheredAttention
from ..kv.selection import PAGE_SIZE, RECENT_ENTRIES, SelectionLimits, quest_slots, top_slots
from ..model.attend import Attend
from ..model.transformer import Transformer
from ..system.device import to_device
from .kv_views import KvView


class TopKView(KvView):
    """The entries with the largest dot products with the query, selected at every step, plus the most recent ones."""

    def attend(self, positions_BT: Tensor) -> Attend:
        """Same as in `KvView`."""
        last_B, first_B = positions_BT[:, -1], _first_visible(self.model, positions_BT[:, 0])
        drafted_B = last_B + 1 - self.committed_B
        recent_B = self.committed_B - torch.minimum(self.budgets_B // 2, torch.full_like(self.budgets_B, RECENT_ENTRIES))
        limits = _limits(self.cache.device, first_B, recent_B, last_B, self.budgets_B + drafted_B)
        stop = int(last_B.max()) + 1

        def select(layer: int, q_BKRH: Tensor) -> Tensor:
            k_BKSH, _ = self.cache.read(layer, stop)
            return top_slots(q_BKRH, k_BKSH, limits)

        return GatheredAttention(self.cache, positions_BT, self.model.config.sliding_window, select)


class QuestView(KvView):
    """The pages with the largest upper bounds on the dot products of their keys with the query, plus the newest pages.

    Args:
        model, cache, budgets_B: As for `KvView`.

    Attributes:
        low_LBKPH, high_LBKPH: Minimum and maximum of the committed keys of each page, by channel.
    """

    def __init__(self, model: Transformer, cache: KvCache, budgets_B: Tensor):
        super().__init__(model, cache, budgets_B)
        layers, batch_size, kv_heads, capacity, width = cache.k_LBKSH.shape
        shape = (layers, batch_size, kv_heads, -(-capacity // PAGE_SIZE), width)
        self.low_LBKPH = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self.high_LBKPH = torch.zeros_like(self.low_LBKPH)

    def compact(self, rows_B: Tensor) -> None:
        """Same as in `KvView`."""
        super().compact(rows_B)
        self.low_LBKPH, self.high_LBKPH = self.low_LBKPH[:, rows_B], self.high_LBKPH[:, rows_B]

    def attend(self, positions_BT: Tensor) -> Attend:
        """Same as in `KvView`."""
        last_B, first_B = positions_BT[:, -1] // PAGE_SIZE, _first_visible(self.model, positions_BT[:, 0]) // PAGE_SIZE
        newest_B = (self.committed_B - 1).clamp(min=0) // PAGE_SIZE  # newest page with committed entries
        pages_B = torch.where(self.committed_B <= self.budgets_B, newest_B + 1, (self.budgets_B // PAGE_SIZE).clamp(min=1))
        limits = _limits(self.cache.device, first_B, newest_B, last_B, pages_B + last_B - newest_B)
        stop = int(last_B.max()) + 1

        def select(layer: int, q_BKRH: Tensor) -> Tensor:
            return quest_slots(q_BKRH, self.low_LBKPH[layer, :, :, :stop], self.high_LBKPH[layer, :, :, :stop], limits)

        return GatheredAttention(self.cache, positions_BT, self.model.config.sliding_window, select)

    def _rebuild(self, row: int, tokens_S: Tensor, committed: int) -> None:
        rows = slice(row, row + 1)
        self._update_bounds(rows, torch.arange(-(-committed // PAGE_SIZE))[None], torch.tensor([committed]))

    def _extend(self, committed_B: Tensor) -> None:
        first_B = self.committed_B // PAGE_SIZE
        steps_M = torch.arange(int(((committed_B - 1) // PAGE_SIZE - first_B).max()) + 1)
        self._update_bounds(slice(None), first_B[:, None] + steps_M, committed_B)

    def _update_bounds(self, rows: slice, pages_BM: Tensor, committed_B: Tensor) -> None:
        """Compute the bounds of the given pages from their committed keys."""
        k_LBKSH = self.cache.k_LBKSH[:, rows]
        pages_BM, committed_B = to_device(pages_BM, self.cache.device), to_device(committed_B, self.cache.device)
        slots_BC = (pages_BM[..., None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=pages_BM.device)).flatten(1)
        rows_B1 = torch.arange(len(pages_BM), device=pages_BM.device)[:, None]
        k_BCLKH = k_LBKSH[:, rows_B1, :, slots_BC.clamp(max=self.cache.capacity - 1)]
        committed_BC = (slots_BC < committed_B[:, None])[:, :, None, None, None]
        paged = (len(pages_BM), pages_BM.shape[1], PAGE_SIZE, *k_BCLKH.shape[2:])
        pages_BM = pages_BM.clamp(max=self.low_LBKPH.shape[3] - 1)
        low_BMLKH = k_BCLKH.masked_fill(~committed_BC, float("inf")).reshape(paged).amin(2)
        high_BMLKH = k_BCLKH.masked_fill(~committed_BC, float("-inf")).reshape(paged).amax(2)
        self.low_LBKPH[:, rows][:, rows_B1, :, pages_BM] = low_BMLKH
        self.high_LBKPH[:, rows][:, rows_B1, :, pages_BM] = high_BMLKH


def _limits(device: torch.device, first_B: Tensor, recent_B: Tensor, last_B: Tensor, count_B: Tensor) -> SelectionLimits:
    """Selection limits on the device, from tensors on the host."""
    most = int(count_B.max())
    return SelectionLimits(
        to_device(first_B, device), to_device(recent_B, device), to_device(last_B, device), to_device(count_B, device), most
    )


def _first_visible(model: Transformer, positions_B: Tensor) -> Tensor:
    """The first entry that a token at each position may attend to."""
    window = model.config.sliding_window
    return torch.zeros_like(positions_B) if window is None else (positions_B + 1 - window).clamp(min=0)
