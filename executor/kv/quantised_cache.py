"""A quantised KV cache for self drafts: one scale per token and KV head, set by the largest entry of the vector.

Reads dequantise, so attention is the same as over the exact cache. This saves memory but no traffic; a kernel that computes
on the quantised numbers would save both.

Shapes: L layers, B batch, K KV heads, S slots, H head dim, T new tokens; ... any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import CompressedDtype

from ..system.device import Workspace

LARGEST: dict[CompressedDtype, float] = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}  # quantised value of a vector's largest entry
STORAGE_DTYPES: dict[CompressedDtype, torch.dtype] = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}


def quantise(x: Tensor, dtype: CompressedDtype) -> tuple[Tensor, Tensor]:
    """Quantise the vectors of the last dimension.

    Returns:
        The numbers in `dtype`, two int4 to a byte, and one scale per vector.
    """
    scale = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / LARGEST[dtype]
    scaled = x / scale
    if dtype == "fp8":
        return scaled.float().to(torch.float8_e4m3fn), scale
    rounded = scaled.round().to(torch.int8)
    if dtype == "int4":
        low, high = (rounded + 8).to(torch.uint8).chunk(2, -1)
        return low | (high << 4), scale
    return rounded, scale


def dequantise(stored: Tensor, scale: Tensor, dtype: CompressedDtype) -> Tensor:
    """Inverse of `quantise`, up to rounding."""
    if dtype == "int4":
        stored = torch.cat([stored & 15, stored >> 4], -1).to(torch.int8) - 8
    return stored.to(scale.dtype) * scale


class QuantisedKv:
    """Quantised keys and values of a batch. Slot s of a row holds position s, as in `KvCache`.

    Args:
        config: Shape of the model.
        batch_size: Number of rows. [sequences]
        capacity: Slots per row. [tokens]
        device: Where it is stored.
        dtype: Type of the scales and of what `read` returns.
        kv_dtype: Type of the stored numbers.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        kv_dtype: CompressedDtype,
    ):
        width = config.head_dim // 2 if kv_dtype == "int4" else config.head_dim
        shape = (2, config.num_layers, batch_size, config.num_kv_heads, capacity, width)  # keys, then values
        self.kv_dtype = kv_dtype
        self._stored = torch.zeros(shape, device=device, dtype=STORAGE_DTYPES[kv_dtype])
        self._scales = torch.zeros((*shape[:-1], 1), device=device, dtype=dtype)
        self._rows_B1 = torch.arange(batch_size, device=device)[:, None]
        self.scratch = Workspace(device, dtype)  # for attention scores

    @property
    def device(self) -> torch.device:
        """Where it is stored."""
        return self._stored.device

    @property
    def capacity(self) -> int:
        """Slots per row. [tokens]"""
        return self._stored.shape[4]

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and scales. [bytes]"""
        return self._stored.nbytes + self._scales.nbytes

    def compact(self, rows_B: Tensor) -> None:
        """Keep these rows only, in this order."""
        self._stored = _as_bytes(self._stored)[:, :, rows_B].view(STORAGE_DTYPES[self.kv_dtype])
        self._scales, self._rows_B1 = self._scales[:, :, rows_B], self._rows_B1[: len(rows_B)]

    def write(self, layer: int, slots_BT: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> None:
        """Store new tokens of every row at the given slots."""
        for index, x_BKTH in enumerate((k_BKTH, v_BKTH)):
            stored, scales = quantise(x_BKTH.transpose(1, 2), self.kv_dtype)
            _as_bytes(self._stored)[index, layer][self._rows_B1, :, slots_BT] = _as_bytes(stored)
            self._scales[index, layer][self._rows_B1, :, slots_BT] = scales

    def write_row(self, row: int, k_LKSH: Tensor, v_LKSH: Tensor) -> None:
        """Store tokens of one row from its first slot on, in every layer."""
        count = k_LKSH.shape[2]
        for index, x_LKSH in enumerate((k_LKSH, v_LKSH)):
            stored, scales = quantise(x_LKSH, self.kv_dtype)
            self._stored[index, :, row, :, :count] = stored
            self._scales[index, :, row, :, :count] = scales

    def read(self, layer: int, stop: int) -> tuple[Tensor, Tensor]:
        """Dequantised keys and values of a layer, in the slots before `stop`."""
        k_BKSH, v_BKSH = (
            dequantise(self._stored[index, layer, :, :, :stop], self._scales[index, layer, :, :, :stop], self.kv_dtype)
            for index in (0, 1)
        )
        return k_BKSH, v_BKSH


def _as_bytes(stored: Tensor) -> Tensor:
    """float8 as bytes: torch cannot index float8 by tensors."""
    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored
