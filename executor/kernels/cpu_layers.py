"""Decoder layers on a CPU in C (cpu_layers.c): what decoding steps and prompts take beside attention and sampling.

torch spends most of a step between its operators, a dozen small ones a layer, its products of few rows are far from the speed
of memory, and those of many take twice as long. Without a compiler torch computes them all the same.

Shapes: B batch, T query tokens, D model, N query heads, K KV heads, H head dim, V vocabulary.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdec.costmodel.models.transformer import TransformerConfig

from ..kv.attention import SlotAttention
from ..model.dtypes import LANES
from . import cpu_attention
from .build import kernels

if TYPE_CHECKING:
    from ..model.transformer import Attend, Stack


_WEIGHTS = {  # in the order of the C structure
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "input_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # numbered as in simd.h
_SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_int64) for name in ("type", *_SIZES)),
        ("norm_eps", ctypes.c_float),
    ]


class _Stack(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "head", "cos", "sin")),
        *((name, ctypes.c_int64) for name in ("type", "vocab_size", "num_positions", "num_layers")),
        ("layers", ctypes.POINTER(_Layer)),
    ]


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "slots", "x", "k", "v", "likeliest", "attended", "scratch")),
        *((name, ctypes.c_int64) for name in ("B", "T", "stride_l", "stride_b", "stride_k", "window", "splits", "answers")),
        ("scale", ctypes.c_float),
    ]


def usable(weight: Tensor) -> bool:
    """The C kernels can multiply numbers in float32 with such weights."""
    right = weight.device.type == "cpu" and weight.dtype in _TYPES and weight.is_contiguous() and weight.shape[-1] % LANES == 0
    return right and not torch.is_grad_enabled() and kernels() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x[..., in] times the transposed weight[out, in], which may be of a narrower type."""
    library = kernels()
    assert library is not None
    x, y, turned = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight)), torch.empty_like(x)
    sizes = map(ctypes.c_int64, (_TYPES[weight.dtype], x.shape[:-1].numel(), x.shape[-1], len(weight)))
    library.linear(*_pointers(x, weight, y, turned), *sizes, torch.get_num_threads())
    return y


def likeliest(logits: Tensor) -> Tensor:
    """The id of the largest of the last dimension, the first of equals, where none is NaN; in half of torch's time."""
    right = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.is_contiguous() and logits.numel() > 0
    library = kernels() if right else None
    if library is None:
        return logits.argmax(-1)
    places = torch.empty(logits.shape[:-1], dtype=torch.long, device="cpu")
    sizes = map(ctypes.c_int64, (places.numel(), logits.shape[-1]))
    library.likeliest(*_pointers(logits, places), *sizes, torch.get_num_threads())
    return places


class CpuStack:
    """A model's stack of layers, used as `transformer.Stack` is. It reads the weights where they are and keeps no copy."""

    def __init__(self, stack: Stack, head_VD: Tensor, config: TransformerConfig):
        self.config = config
        self.layers = [CpuLayer(index, layer, config) for index, layer in enumerate(stack.layers)]
        self.embedding_VD, self.norm_D, self.head_VD = stack.embed_tokens.weight, stack.norm.weight, head_VD
        self._weights = [*stack.parameters(), head_VD]
        assert self.embedding_VD.dtype == head_VD.dtype
        assert all(weight.is_contiguous() for weight in (self.embedding_VD, self.norm_D, head_VD))
        self._addresses: list[int] = []

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """A whole pass in one call where attention is no more than reading a cache, else layer by layer."""
        if self.takes(attend):
            return self._whole_pass(tokens_BT, positions_BT, rope, attend)[0]
        positions_BT = positions_BT.expand(tokens_BT.shape).long().contiguous()
        if positions_BT.numel() and not 0 <= int(positions_BT.min()) <= int(positions_BT.max()) < len(rope[0]):
            raise IndexError(f"a position beyond {len(rope[0])}")
        x_BTD = F.embedding(tokens_BT, self.embedding_VD).float()
        for layer in self.layers:
            x_BTD = layer(x_BTD, positions_BT, rope, attend)
        return self._norm(x_BTD)

    def takes(self, attend: Attend) -> TypeGuard[SlotAttention]:
        """A pass that reads the cache in this way is one call."""
        return isinstance(attend, SlotAttention) and attend.only_reads_cache and self.config.head_dim in cpu_attention.HEAD_DIMS

    def likeliest(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: tuple[Tensor, Tensor], attend: SlotAttention, answers: int
    ) -> Tensor:
        """The likeliest next token after each, out of the first so many: LM head and all in one call, which must be possible.

        Raises:
            FloatingPointError: A logit is infinite or NaN.
        """
        return self._whole_pass(tokens_BT, positions_BT, rope, attend, answers)[1]

    def _whole_pass(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: tuple[Tensor, Tensor], attend: SlotAttention, answers: int = 0
    ) -> tuple[Tensor, Tensor]:
        """x_BTD, and the likeliest next tokens if any are asked for."""
        library, threads, config, cache = kernels(), torch.get_num_threads(), self.config, attend.cache
        assert library is not None
        (batch, length), width = tokens_BT.shape, config.head_dim
        tokens_BT, slots_BT = tokens_BT.contiguous(), attend.slots_BT.contiguous()
        positions_BT = positions_BT.expand(batch, length).long().contiguous()
        strides = cache.k_LBKSH.stride()
        if attend.stop > cache.capacity:
            raise IndexError(f"slot {attend.stop - 1} in a cache of {cache.capacity}")
        if strides != cache.v_LBKSH.stride() or strides[3:] != (width, 1):
            raise ValueError("keys and values must share one layout, slots contiguous")
        if slots_BT.shape != tokens_BT.shape or not tokens_BT.dtype == slots_BT.dtype == torch.int64:
            raise ValueError("tokens and slots must be int64, and as many")
        splits = cpu_attention.num_splits(batch * config.num_kv_heads, threads)
        attended = cpu_attention.scratch_size(batch * length * config.num_heads, width, splits)
        per_token = self.layers[0].scratch_per_token + 3 * config.d_attention + 2 * config.d_kv + answers
        x_BTD = self.norm_D.new_empty(batch, length, config.d_model)
        scratch = x_BTD.new_empty(attended + batch * length * per_token)
        likeliest_BT = torch.empty_like(tokens_BT)
        tensors = (
            tokens_BT,
            positions_BT,
            slots_BT,
            x_BTD,
            cache.k_LBKSH,
            cache.v_LBKSH,
            likeliest_BT,
            scratch,
            scratch[attended:],
        )
        sizes = (batch, length, *strides[:3], attend.window or 0, splits, answers)
        told = _Pass(*(tensor.data_ptr() for tensor in tensors), *sizes, width**-0.5)
        failed = library.whole_pass(self._told_of(rope), ctypes.byref(told), threads)
        if failed == 1:
            raise IndexError(f"a token beyond {config.vocab_size} or a position beyond {len(rope[0])}")
        if failed == 2:
            raise FloatingPointError("a logit that is infinite or NaN")
        return x_BTD, likeliest_BT

    def _told_of(self, rope: tuple[Tensor, Tensor]) -> ctypes._Pointer[_Stack]:
        """What C is told of all weights, made anew only when they have moved."""
        addresses = [weight.data_ptr() for weight in (*self._weights, *rope)]
        if addresses != self._addresses:
            self._addresses, self._layers = addresses, (_Layer * len(self.layers))(*(layer.structure() for layer in self.layers))
            pointers = (tensor.data_ptr() for tensor in (self.embedding_VD, self.norm_D, self.head_VD, *rope))
            sizes = (_TYPES[self.head_VD.dtype], self.config.vocab_size, len(rope[0]), len(self.layers))
            self._told = ctypes.pointer(_Stack(*pointers, *sizes, self._layers))
        return self._told

    def _norm(self, x_BTD: Tensor) -> Tensor:
        library, x_BTD = kernels(), x_BTD.contiguous()
        assert library is not None
        out_BTD = torch.empty_like(x_BTD)
        sizes = map(ctypes.c_int64, (x_BTD.shape[:-1].numel(), x_BTD.shape[-1]))
        eps = ctypes.c_float(self.config.norm_eps)
        library.normalise_all(*_pointers(x_BTD, self.norm_D, out_BTD), *sizes, eps, torch.get_num_threads())
        return out_BTD


class CpuLayer:
    """One decoder layer: what `transformer.Layer` computes."""

    def __init__(self, index: int, layer: nn.Module, config: TransformerConfig):
        self.index, self.config = index, config
        self.scratch_per_token = config.d_model + 2 * config.d_ff + max(config.d_model, config.d_attention)
        named = dict(layer.named_parameters())
        self.weights = [named.get(name) for name in _WEIGHTS.values()]
        present = [weight for weight in self.weights if weight is not None]
        (self.dtype,) = {weight.dtype for weight in present if weight.ndim == 2}
        assert all(weight.is_contiguous() for weight in present)
        assert all(weight.dtype == torch.float32 for weight in present if weight.ndim == 1)

    def structure(self) -> _Layer:
        """What C is told of the layer: where its weights are now, and its shape."""
        pointers = [None if weight is None else weight.data_ptr() for weight in self.weights]
        return _Layer(*pointers, _TYPES[self.dtype], *(getattr(self.config, name) for name in _SIZES), self.config.norm_eps)

    def __call__(self, x_BTD: Tensor, positions_BT: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        library, threads, config = kernels(), torch.get_num_threads(), self.config
        assert library is not None
        shape = x_BTD.shape[:2]
        tokens = ctypes.c_int64(shape.numel())
        layer = ctypes.byref(self.structure())
        q_BTNH = x_BTD.new_empty(*shape, config.num_heads, config.head_dim)
        k_BTKH, v_BTKH = x_BTD.new_empty(2, *shape, config.num_kv_heads, config.head_dim)
        out_BTD, scratch = torch.empty_like(x_BTD), x_BTD.new_empty(shape.numel() * self.scratch_per_token)
        library.layer_heads(layer, *_pointers(x_BTD, *rope, positions_BT, q_BTNH, k_BTKH, v_BTKH, scratch), tokens, threads)
        seen_BNTH = attend(self.index, q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2))
        seen_BTNH = seen_BNTH.transpose(1, 2).contiguous()
        library.layer_rest(layer, *_pointers(x_BTD, seen_BTNH, out_BTD, scratch), tokens, threads)
        return out_BTD


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
