"""A KV cache in fewer bits, which a self draft may read: one scale for each token and KV head, chosen by its largest entry.

Reading gives plain numbers back, so attention is the same as over the exact cache; a kernel that computes on the small
numbers themselves would save the traffic too, this one saves memory alone.

Shapes: L layers, B batch, K KV heads, S slots, H head dim, T new tokens; ... any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magicdec.costmodel.models.transformer import TransformerConfig

from ..system.device import Workspace

LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}  # what a scale maps to 1
STORED = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}


def quantise(x: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Numbers in `dtype` and their scales, one for each vector of the last dimension. Two int4 share a byte."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / LARGEST[dtype]
    scaled = x / scale
    if dtype == "fp8":
        return scaled.float().to(torch.float8_e4m3fn), scale
    whole = scaled.round().to(torch.int8)
    if dtype == "int4":
        low, high = (whole + 8).to(torch.uint8).chunk(2, -1)
        return low | (high << 4), scale
    return whole, scale


def restore(stored: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """The numbers that `quantise` stored, as near as `dtype` holds them."""
    if dtype == "int4":
        stored = torch.cat([stored & 15, stored >> 4], -1).to(torch.int8) - 8
    return stored.to(scale.dtype) * scale


class QuantisedKv:
    """Keys and values of a batch in a compressed type; slot s of a row holds position s, as in `KvCache`."""

    def __init__(
        self, config: TransformerConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype, kv_dtype: str
    ):
        width = config.head_dim // 2 if kv_dtype == "int4" else config.head_dim
        shape = (2, config.num_layers, batch_size, config.num_kv_heads, capacity, width)  # keys, then values
        self.kv_dtype = kv_dtype
        self._stored = torch.zeros(shape, device=device, dtype=STORED[kv_dtype])
        self._scales = torch.zeros((*shape[:-1], 1), device=device, dtype=dtype)
        self._rows_B1 = torch.arange(batch_size, device=device)[:, None]
        self.scratch = Workspace(device, dtype)  # for attention scores

    @property
    def device(self) -> torch.device:
        return self._stored.device

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and scales. [bytes]"""
        return self._stored.nbytes + self._scales.nbytes

    def keep(self, rows_B: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self._stored = self._bytes(self._stored)[:, :, rows_B].view(STORED[self.kv_dtype])
        self._scales, self._rows_B1 = self._scales[:, :, rows_B], self._rows_B1[: len(rows_B)]

    def write(self, layer: int, slots_BT: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> None:
        """Store new tokens of every row at the given slots."""
        for which, x_BKTH in enumerate((k_BKTH, v_BKTH)):
            stored, scales = quantise(x_BKTH.transpose(1, 2), self.kv_dtype)
            # torch cannot index float8 by tensors: its bytes are moved instead.
            self._bytes(self._stored)[which, layer][self._rows_B1, :, slots_BT] = self._bytes(stored)
            self._scales[which, layer][self._rows_B1, :, slots_BT] = scales

    def write_row(self, row: int, k_LKSH: Tensor, v_LKSH: Tensor) -> None:
        """Store a row's tokens from its first slot on, in every layer."""
        count = k_LKSH.shape[2]
        for which, x_LKSH in enumerate((k_LKSH, v_LKSH)):
            stored, scales = quantise(x_LKSH, self.kv_dtype)
            self._stored[which, :, row, :, :count] = stored
            self._scales[which, :, row, :, :count] = scales

    def read(self, layer: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as plain numbers, in the slots before `stop`."""
        k_BKSH, v_BKSH = (
            restore(self._stored[which, layer, :, :, :stop], self._scales[which, layer, :, :, :stop], self.kv_dtype)
            for which in (0, 1)
        )
        return k_BKSH, v_BKSH

    @staticmethod
    def _bytes(stored: Tensor) -> Tensor:
        return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored
