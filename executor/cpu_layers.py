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

LANES = 16  # the most of lanes.h: dimensions must be multiples
MOST_TOKENS = 256  # beyond, torch's products are about as fast

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
    right = (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and weight.shape[-1] % LANES == 0
    )
    return right and num_tokens <= MOST_TOKENS and not torch.is_grad_enabled() and kernels() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x[..., in] times the transposed weight[out, in]."""
    library = kernels()
    assert library is not None
    x, y, turned = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight)), torch.empty_like(x)
    sizes = map(ctypes.c_int64, (x.shape[:-1].numel(), x.shape[-1], len(weight)))
    library.linear(*_pointers(x, weight, y, turned), *sizes, torch.get_num_threads())
    return y


def fit(config: TransformerConfig) -> bool:
    """A model of this shape can be computed here."""
    return all(size % LANES == 0 for size in (config.d_model, config.head_dim, config.d_ff))


class CpuStack:
    """The layers and the norm after them, used as `transformer.Stack` is."""

    def __init__(self, layers: nn.ModuleList, norm: nn.RMSNorm, config: TransformerConfig):
        self.layers = [CpuLayer(index, layer, config) for index, layer in enumerate(layers)]
        self.weight_D, self.eps = norm.weight, config.norm_eps

    def norm(self, x_BTD: Tensor) -> Tensor:
        """Root-mean-square norm, as after the last layer."""
        library, x_BTD = kernels(), x_BTD.contiguous()
        assert library is not None
        out_BTD = torch.empty_like(x_BTD)
        sizes = map(ctypes.c_int64, (x_BTD.shape[:-1].numel(), x_BTD.shape[-1]))
        library.normalise_all(*_pointers(x_BTD, self.weight_D, out_BTD), *sizes, ctypes.c_float(self.eps), torch.get_num_threads())
        return out_BTD


class CpuLayer:
    """One decoder layer, called as `transformer.Layer` is. It reads the weights where they are and keeps no copy."""

    def __init__(self, index: int, layer: nn.Module, config: TransformerConfig):
        self.index, self.config = index, config
        self.sizes = [getattr(config, name) for name in _SIZES]
        self.scratch_per_token = config.d_model + 2 * config.d_ff + max(config.d_model, config.d_attention, config.d_ff)
        named = dict(layer.named_parameters())
        self.weights = [named.get(name) for name in _WEIGHTS.values()]
        assert all(weight is None or weight.is_contiguous() for weight in self.weights)

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
        out_BTD, scratch = torch.empty_like(x_BTD), x_BTD.new_empty(shape.numel() * self.scratch_per_token)
        library.layer_heads(layer, *_pointers(x_BTD, cos_BTH, sin_BTH, q_BTNH, k_BTKH, v_BTKH, scratch), tokens, threads)
        seen_BNTH = attend(self.index, q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2))
        seen_BTNH = seen_BNTH.transpose(1, 2).contiguous()
        library.layer_rest(layer, *_pointers(x_BTD, seen_BTNH, out_BTD, scratch), tokens, threads)
        return out_BTD


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
