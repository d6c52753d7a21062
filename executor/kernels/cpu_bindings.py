"""Python bindings of cpu_layers.c: decoder layers and matrix products on a CPU.

torch spends most of a decoding step between its operators, a dozen small ones per layer. Its products of few rows are far from
memory speed, and those of many rows take twice as long. Without a C compiler torch computes everything, with the same results.

Shapes: B batch, T query tokens, M tokens in all, D model, N query heads, K KV heads, H head dim, V vocabulary, P positions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .build import VECTOR_WIDTH, kernels

LAYER_WEIGHTS = {  # checkpoint names, in the order of the C structure
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
LAYER_SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
WEIGHT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # numbered as in simd.h


class LayerStruct(ctypes.Structure):
    """`Layer` of cpu_layers.c: weights and sizes of one decoder layer."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in LAYER_WEIGHTS),
        *((name, ctypes.c_int64) for name in ("type", *LAYER_SIZES)),
        ("norm_eps", ctypes.c_float),
    ]


class StackStruct(ctypes.Structure):
    """`Stack` of cpu_layers.c: all layers, the embeddings and the rotary tables."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "head", "cos", "sin")),
        *((name, ctypes.c_int64) for name in ("type", "vocab_size", "num_positions", "num_layers")),
        ("layers", ctypes.POINTER(LayerStruct)),
    ]


class PassStruct(ctypes.Structure):
    """`Pass` of cpu_layers.c: inputs, outputs and workspace of one forward pass."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "positions", "slots", "x", "k", "v", "greedy", "attention_workspace", "workspace")
        ),
        *((name, ctypes.c_int64) for name in ("B", "T", "stride_l", "stride_b", "stride_k", "window", "splits", "vocab_limit")),
        ("scale", ctypes.c_float),
    ]


def usable(weight: Tensor) -> bool:
    """Whether the C kernels can multiply float32 activations with `weight`: its type and layout fit, and no gradient is needed."""
    fits = (
        weight.device.type == "cpu"
        and weight.dtype in WEIGHT_TYPES
        and weight.is_contiguous()
        and weight.shape[-1] % VECTOR_WIDTH == 0
    )
    return fits and not torch.is_grad_enabled() and kernels() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply float32 rows with the transpose of a weight matrix.

    Args:
        x: Rows, of shape [..., in].
        weight: A matrix of shape [out, in] for which `usable` holds; its type may be narrower than float32.

    Returns:
        A float32 tensor of shape [..., out].
    """
    x, y, transposed = x.contiguous(), x.new_empty(*x.shape[:-1], len(weight)), torch.empty_like(x)
    sizes = (WEIGHT_TYPES[weight.dtype], x.shape[:-1].numel(), x.shape[-1], len(weight))
    _library().linear(*_pointers(x, weight, y, transposed), *_int64s(sizes), torch.get_num_threads())
    return y


def rms_norm(x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Divide float32 rows by their root mean square and multiply them with a weight vector."""
    x_MD = x_MD.contiguous()
    out_MD = torch.empty_like(x_MD)
    sizes = _int64s((x_MD.shape[:-1].numel(), x_MD.shape[-1]))
    _library().rms_norm(*_pointers(x_MD, weight_D, out_MD), *sizes, ctypes.c_float(eps), torch.get_num_threads())
    return out_MD


def layer_struct(weights: Sequence[Tensor | None], matrix_dtype: torch.dtype, sizes: Sequence[int], norm_eps: float) -> LayerStruct:
    """Describe a layer to C.

    Args:
        weights: In the order of `LAYER_WEIGHTS`; None for those that the layer does not have.
        matrix_dtype: Type of its matrices.
        sizes: In the order of `LAYER_SIZES`.
        norm_eps: Added to the mean square by the norms.
    """
    pointers = [None if weight is None else weight.data_ptr() for weight in weights]
    return LayerStruct(*pointers, WEIGHT_TYPES[matrix_dtype], *sizes, norm_eps)


def stack_struct(
    embedding_VD: Tensor, norm_D: Tensor, head_VD: Tensor, cos_PH: Tensor, sin_PH: Tensor, layers: Sequence[LayerStruct]
) -> StackStruct:
    """Describe a decoder to C. The structure keeps `layers` alive, but not the tensors."""
    pointers = (tensor.data_ptr() for tensor in (embedding_VD, norm_D, head_VD, cos_PH, sin_PH))
    sizes = (WEIGHT_TYPES[head_VD.dtype], len(head_VD), len(cos_PH), len(layers))
    return StackStruct(*pointers, *sizes, (LayerStruct * len(layers))(*layers))


def layer_heads(
    layer: LayerStruct, x_MD: Tensor, cos_PH: Tensor, sin_PH: Tensor, positions_M: Tensor, outputs: Sequence[Tensor]
) -> None:
    """Compute queries, keys and values of a layer, rotated, into `outputs`: q_MNH, k_MKH, v_MKH and the workspace."""
    tensors = _pointers(x_MD, cos_PH, sin_PH, positions_M, *outputs)
    _library().layer_heads(ctypes.byref(layer), *tensors, *_int64s((positions_M.numel(),)), torch.get_num_threads())


def layer_rest(layer: LayerStruct, x_MD: Tensor, attended_MNH: Tensor, out_MD: Tensor, workspace: Tensor) -> None:
    """Compute everything of a layer that follows its attention into `out_MD`: output projection, MLP and residuals."""
    tensors = _pointers(x_MD, attended_MNH, out_MD, workspace)
    tokens = _int64s((x_MD.shape[:-1].numel(),))
    _library().layer_rest(ctypes.byref(layer), *tensors, *tokens, torch.get_num_threads())


def forward_pass(stack: StackStruct, tensors: Sequence[Tensor], sizes: Sequence[int], scale: float) -> int:
    """Run a whole forward pass.

    Args:
        stack: The decoder.
        tensors, sizes: The fields of `PassStruct` in order.
        scale: Factor on attention scores.

    Returns:
        0; 1 if a token or a position is out of range and nothing was done; 2 if a logit is infinite or NaN.
    """
    arguments = PassStruct(*(tensor.data_ptr() for tensor in tensors), *sizes, scale)
    status: int = _library().forward_pass(ctypes.byref(stack), ctypes.byref(arguments), torch.get_num_threads())
    return status


def _library() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "callers check `usable` first"
    return library


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _int64s(values: Iterable[int]) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]
