"""Decoder layers over few tokens on a CPU in C (cpu_layers.c): what a decoding step does beside attention.

torch spends most of such a step between its operators, a dozen small ones a layer, and its products of few rows are far from
the speed of memory. Without a compiler, or with many tokens, torch computes them all the same.

Shapes: B batch, T query tokens, D model, N query heads, K KV heads, H head dim; ... any leading dimensions.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from costmodel.transformer import TransformerConfig
from executor.compiled import kernels

if TYPE_CHECKING:
    from executor.transformer import Attend

LANES = 16  # of lanes.h: dimensions must be multiples
MOST_TOKENS = 128  # from about here on torch's products are as fast

_WEIGHTS = {  # in the order of the C structure
    "input_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("norm_eps", ctypes.c_float),
    ]


def usable(weight: Tensor, num_tokens: int) -> bool:
    """The C kernels can compute with such weights, and do it faster than torch."""
    right = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and weight.shape[-1] % LANES == 0
    return right and num_tokens <= MOST_TOKENS and not torch.is_grad_enabled() and kernels() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x[..., in] times the transposed weight[out, in]."""
    library = kernels()
    assert library is not None
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight))
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    library.linear(*_pointers(x, weight, y), *map(ctypes.c_int64, (rows, width, len(weight))), torch.get_num_threads())
    return y


def of(layers: nn.ModuleList, config: TransformerConfig) -> list[CpuLayer]:
    """The layers in C; none if their dimensions are not multiples of `LANES`."""
    fits = all(size % LANES == 0 for size in (config.d_model, config.head_dim, config.d_ff))
    return [CpuLayer(index, layer, config) for index, layer in enumerate(layers)] if fits else []


class CpuLayer:
    """One decoder layer, called as `transformer.Layer` is. It reads the weights where they are and keeps no copy."""

    def __init__(self, index: int, layer: nn.Module, config: TransformerConfig):
        self.index, self.config = index, config
        self.sizes = [getattr(config, name) for name in _SIZES]
        named = dict(layer.named_parameters())
        self.weights = [named.get(name) for name in _WEIGHTS.values()]

    def __call__(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        library, threads, config = kernels(), torch.get_num_threads(), self.config
        assert library is not None
        shape = x_BTD.shape[:2]
        tokens = ctypes.c_int64(shape.numel())
        pointers = (None if weight is None else weight.data_ptr() for weight in self.weights)
        layer = ctypes.byref(_Layer(*pointers, *self.sizes, config.norm_eps))
        x_BTD, cos_BTH, sin_BTH = (x.expand(*shape, -1).contiguous() for x in (x_BTD, cos_BTH, sin_BTH))
        q_BTNH = x_BTD.new_empty(*shape, config.num_heads, config.head_dim)
        k_BTKH, v_BTKH = x_BTD.new_empty(2, *shape, config.num_kv_heads, config.head_dim)
        out_BTD = torch.empty_like(x_BTD)
        library.layer_heads(layer, *_pointers(x_BTD, cos_BTH, sin_BTH, q_BTNH, k_BTKH, v_BTKH, out_BTD), tokens, threads)
        seen_BNTH = attend(self.index, q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2))
        seen_BTNH = seen_BNTH.transpose(1, 2).contiguous()
        scratch = x_BTD.new_empty(shape.numel() * (config.d_model + 2 * config.d_ff))
        library.layer_rest(layer, *_pointers(x_BTD, seen_BTNH, out_BTD, scratch), tokens, threads)
        return out_BTD


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
