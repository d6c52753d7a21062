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
from executor import cpu_attention
from executor.attention import SlotAttention
from executor.compiled import kernels

if TYPE_CHECKING:
    from executor.transformer import Attend

LANES = 16  # the most of lanes.h: dimensions must be multiples
MOST_TOKENS = 256  # beyond, little is left to gain on torch

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
        self.config, self.weight_D, self.eps = config, norm.weight, config.norm_eps
        self._pointers: list[list[int | None]] = []

    def run(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        """All layers: in one call where attention is no more than reading a cache, else one after the other."""
        if isinstance(attend, SlotAttention) and attend.alone and self.config.head_dim in cpu_attention.HEAD_DIMS:
            return self._at_once(x_BTD.clone(), cos_BTH, sin_BTH, attend)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTH, sin_BTH, attend)
        return x_BTD

    def _at_once(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: SlotAttention) -> Tensor:
        library, threads, config = kernels(), torch.get_num_threads(), self.config
        assert library is not None
        (batch, length), width = x_BTD.shape[:2], config.head_dim
        k_LBKSH, v_LBKSH, slots_BT = attend.cache.k_LBKSH, attend.cache.v_LBKSH, attend.slots_BT.contiguous()
        if attend.stop > attend.cache.capacity:
            raise IndexError(f"slot {attend.stop - 1} in a cache of {attend.cache.capacity}")
        if k_LBKSH.stride() != v_LBKSH.stride() or k_LBKSH.stride()[3:] != (width, 1) or slots_BT.dtype != torch.int64:
            raise ValueError("keys and values must share one layout, slots contiguous, and slots be int64")
        cos_BTH, sin_BTH = (x.expand(batch, length, -1).contiguous() for x in (cos_BTH, sin_BTH))
        splits = cpu_attention.num_splits(batch * config.num_kv_heads, threads)
        attended = x_BTD.new_empty(cpu_attention.scratch_size(batch * length * config.num_heads, width, splits))
        scratch = x_BTD.new_empty(batch * length * (self.layers[0].scratch_per_token + 3 * config.d_attention + 2 * config.d_kv))
        library.all_layers(
            self._structures(),
            ctypes.c_int64(len(self.layers)),
            *_pointers(x_BTD, cos_BTH, sin_BTH, k_LBKSH, v_LBKSH, slots_BT),
            *map(ctypes.c_int64, (batch, length, *k_LBKSH.stride()[:3], attend.window or 0, splits)),
            *_pointers(attended, scratch),
            threads,
        )
        return x_BTD

    def _structures(self) -> ctypes.Array[_Layer]:
        """What C is told of all layers, made anew only when weights have moved."""
        pointers = [layer.pointers() for layer in self.layers]
        if pointers != self._pointers:
            self._pointers, self._told = pointers, (_Layer * len(self.layers))(*(layer.structure() for layer in self.layers))
        return self._told

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

    def pointers(self) -> list[int | None]:
        """Where the weights are now."""
        return [None if weight is None else weight.data_ptr() for weight in self.weights]

    def structure(self) -> _Layer:
        """What C is told of the layer: where its weights are now, and its shape."""
        return _Layer(*self.pointers(), *self.sizes, self.config.norm_eps)

    def __call__(self, x_BTD: Tensor, cos_BTH: Tensor, sin_BTH: Tensor, attend: Attend) -> Tensor:
        library, threads, config = kernels(), torch.get_num_threads(), self.config
        assert library is not None
        shape = x_BTD.shape[:2]
        tokens = ctypes.c_int64(shape.numel())
        layer = ctypes.byref(self.structure())
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
