"""KV storage: keys and values of every token at the slot of its position, and compact copies for sparse drafts.

Shapes: L layers, B batch, K KV heads, S slots, H head dim, T new tokens, C slots of a copy.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from magicdec.costmodel.models.transformer import TransformerConfig

from ..system.device import Workspace, to_device, zeros_in_huge_pages


class KvCache:
    """Preallocated keys and values of a batch of sequences of unequal length.

    Slot s of a row holds position s. Entries beyond a row's length are stale, and are overwritten before they are read, so
    rolling back just means reading less.

    Args:
        config: Shape of the model.
        batch_size: Number of rows. [sequences]
        capacity: Slots per row. [tokens]
        device: Where it is stored.
        dtype: Type of keys and values.

    Attributes:
        k_LBKSH, v_LBKSH: Keys, rotated to their absolute positions, and values.
        scratch: Reusable memory for attention scores.
    """

    def __init__(self, config: TransformerConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
        self.k_LBKSH, self.v_LBKSH = zeros_in_huge_pages(shape, device, dtype), zeros_in_huge_pages(shape, device, dtype)
        self._rows_B1 = torch.arange(batch_size, device=device)[:, None]
        self.scratch = Workspace(device, dtype)

    @property
    def device(self) -> torch.device:
        """Where it is stored."""
        return self.k_LBKSH.device

    @property
    def capacity(self) -> int:
        """Slots per row. [tokens]"""
        return self.k_LBKSH.shape[3]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values. [bytes]"""
        return self.k_LBKSH.nbytes + self.v_LBKSH.nbytes

    def first_rows(self, batch_size: int) -> KvCache:
        """The first rows as a cache that shares this one's memory."""
        part = copy(self)
        part.k_LBKSH, part.v_LBKSH = self.k_LBKSH[:, :batch_size], self.v_LBKSH[:, :batch_size]
        part._rows_B1 = self._rows_B1[:batch_size]
        return part

    def write(self, layer: int, slots_BT: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> None:
        """Store new tokens of every row at the given slots."""
        self.k_LBKSH[layer][self._rows_B1, :, slots_BT] = k_BKTH.transpose(1, 2)
        self.v_LBKSH[layer][self._rows_B1, :, slots_BT] = v_BKTH.transpose(1, 2)

    def write_row(self, layer: int, row: int, start: int, k_KTH: Tensor, v_KTH: Tensor) -> None:
        """Store consecutive new tokens of one row from slot `start` on."""
        stop = start + k_KTH.shape[1]
        self.k_LBKSH[layer, row, :, start:stop] = k_KTH
        self.v_LBKSH[layer, row, :, start:stop] = v_KTH

    def compact(self, rows_B: Tensor) -> None:
        """Keep these rows only, in rising order. They are moved within the same memory, layer by layer."""
        for layers in (self.k_LBKSH, self.v_LBKSH):
            for x_BKSH in layers:
                x_BKSH[: len(rows_B)] = x_BKSH[rows_B]
        self.k_LBKSH, self.v_LBKSH = self.k_LBKSH[:, : len(rows_B)], self.v_LBKSH[:, : len(rows_B)]
        self._rows_B1 = self._rows_B1[: len(rows_B)]

    def read(self, layer: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [B, K, stop, H], in the slots before `stop`: views, nothing is copied."""
        return self.k_LBKSH[layer, :, :, :stop], self.v_LBKSH[layer, :, :, :stop]

    def gather(self, layer: int, slots_BKC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at the given slots of every row and KV head, each [B, K, C, H]."""
        heads_K1 = torch.arange(slots_BKC.shape[1], device=slots_BKC.device)[:, None]
        index = (self._rows_B1[:, :, None], heads_K1, slots_BKC)
        return self.k_LBKSH[layer][index], self.v_LBKSH[layer][index]

    def copy_row_to(self, other: KvCache, row: int, slots_C: Tensor) -> None:
        """Copy slots of a row, in order, to the first slots of the same row of `other`."""
        count = len(slots_C)
        other.k_LBKSH[:, row, :, :count] = self.k_LBKSH[:, row].index_select(2, slots_C)
        other.v_LBKSH[:, row, :, :count] = self.v_LBKSH[:, row].index_select(2, slots_C)

    def copy_heads_to(self, other: KvCache, row: int, slots_LKC: Tensor) -> None:
        """Same as `copy_row_to`, with other slots for each layer and KV head."""
        count = slots_LKC.shape[2]
        other.k_LBKSH[:, row, :, :count] = torch.take_along_dim(self.k_LBKSH[:, row], slots_LKC[..., None], 2)
        other.v_LBKSH[:, row, :, :count] = torch.take_along_dim(self.v_LBKSH[:, row], slots_LKC[..., None], 2)

    def copy_to(self, other: KvCache, slots_BT: Tensor, other_slots_BT: Tensor) -> None:
        """Copy slots of every row to other slots of the same row of `other`; the slot numbers may be on the host."""
        rows, slots_BT, other_slots_BT = self._rows_B1, to_device(slots_BT, self.device), to_device(other_slots_BT, self.device)
        other.k_LBKSH[:, rows, :, other_slots_BT] = self.k_LBKSH[:, rows, :, slots_BT]
        other.v_LBKSH[:, rows, :, other_slots_BT] = self.v_LBKSH[:, rows, :, slots_BT]
