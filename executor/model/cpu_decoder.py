"""The decoder's layers on a CPU, computed by the C kernels: a backend of `transformer.Transformer`.

Shapes: B batch, T query tokens, M = B * T, D model, N query heads, K KV heads, H head dim, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels import cpu_attention, cpu_bindings
from ..kv.attention import SlotAttention
from ..kv.cache import KvCache
from .attend import Attend, RopeTables


class CpuDecoder:
    """A `DecoderBackend` that reads the weights where they are and keeps no copy.

    Args:
        layers: The model's layers; their parameters carry the names of checkpoints.
        embedding_VD, norm_D, head_VD: Token embeddings, final norm and LM head.
        config: Sizes of the model.
    """

    def __init__(
        self, layers: Iterable[nn.Module], embedding_VD: Tensor, norm_D: Tensor, head_VD: Tensor, config: TransformerConfig
    ):
        self.config = config
        self.layers = [_CpuLayer(index, layer, config) for index, layer in enumerate(layers)]
        self.embedding_VD, self.norm_D, self.head_VD = embedding_VD, norm_D, head_VD
        weights = [weight for layer in self.layers for weight in layer.weights if weight is not None]
        self._weights = [*weights, embedding_VD, norm_D, head_VD]
        assert embedding_VD.dtype == head_VD.dtype
        assert all(weight.is_contiguous() for weight in (embedding_VD, norm_D, head_VD))
        self._addresses: list[int] = []

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        """One C call if attention only reads a KV cache, else two calls a layer. See `DecoderBackend.run`.

        Raises:
            IndexError: A token, a position or a slot is out of range.
        """
        if self._fuses(attend):
            return self._forward_pass(tokens_BT, positions_BT, rope, attend)[0]
        positions_BT = positions_BT.expand(tokens_BT.shape).long().contiguous()
        if positions_BT.numel() and not 0 <= int(positions_BT.min()) <= int(positions_BT.max()) < len(rope[0]):
            raise IndexError(f"a position beyond {len(rope[0])}")
        x_BTD = F.embedding(tokens_BT, self.embedding_VD).float()
        for layer in self.layers:
            x_BTD = layer(x_BTD, positions_BT, rope, attend)
        return cpu_bindings.rms_norm(x_BTD, self.norm_D, self.config.norm_eps)

    def greedy_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend, vocab_size: int
    ) -> Tensor | None:
        """One C call if attention only reads a KV cache, else None. See `DecoderBackend.greedy_tokens`.

        Raises:
            FloatingPointError: A logit is infinite or NaN.
            IndexError: A token, a position or a slot is out of range.
        """
        return self._forward_pass(tokens_BT, positions_BT, rope, attend, vocab_size)[1] if self._fuses(attend) else None

    def _fuses(self, attend: Attend) -> TypeGuard[SlotAttention]:
        """Whether a pass with this attention is a single C call."""
        return isinstance(attend, SlotAttention) and attend.only_reads_cache and self.config.head_dim in cpu_attention.HEAD_DIMS

    def _forward_pass(
        self, tokens_BT: Tensor, positions_BT: Tensor, rope: RopeTables, attend: SlotAttention, vocab_size: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states x_BTD, and greedy next tokens if `vocab_size` is not 0."""
        config, cache = self.config, attend.cache
        assert isinstance(cache, KvCache)  # see `only_reads_cache`
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
        splits = cpu_attention.num_splits(batch * config.num_kv_heads, torch.get_num_threads())
        attended = cpu_attention.scratch_size(batch * length * config.num_heads, width, splits)
        per_token = self.layers[0].workspace_per_token + 3 * config.d_attention + 2 * config.d_kv + vocab_size
        x_BTD = self.norm_D.new_empty(batch, length, config.d_model)
        workspace = x_BTD.new_empty(attended + batch * length * per_token)
        greedy_BT = torch.empty_like(tokens_BT)
        caches = (cache.k_LBKSH, cache.v_LBKSH)
        tensors = (tokens_BT, positions_BT, slots_BT, x_BTD, *caches, greedy_BT, workspace, workspace[attended:])
        sizes = (batch, length, *strides[:3], attend.window or 0, splits, vocab_size)
        status = cpu_bindings.forward_pass(self._struct_with(rope), tensors, sizes, width**-0.5)
        if status == 1:
            raise IndexError(f"a token beyond {config.vocab_size} or a position beyond {len(rope[0])}")
        if status == 2:
            raise FloatingPointError("a logit that is infinite or NaN")
        return x_BTD, greedy_BT

    def _struct_with(self, rope: RopeTables) -> cpu_bindings.StackStruct:
        """The C description of the decoder; made again only after weights have moved."""
        addresses = [weight.data_ptr() for weight in (*self._weights, *rope)]
        if addresses != self._addresses:
            self._addresses, layers = addresses, [layer.struct() for layer in self.layers]
            self._struct = cpu_bindings.stack_struct(self.embedding_VD, self.norm_D, self.head_VD, *rope, layers)
        return self._struct


class _CpuLayer:
    """One decoder layer: what `transformer.Layer` computes."""

    def __init__(self, index: int, layer: nn.Module, config: TransformerConfig):
        self.index, self.config = index, config
        self.workspace_per_token = config.d_model + 2 * config.d_ff + max(config.d_model, config.d_attention)
        named = dict(layer.named_parameters())
        self.weights = [named.get(name) for name in cpu_bindings.LAYER_WEIGHTS.values()]
        present = [weight for weight in self.weights if weight is not None]
        (self.matrix_dtype,) = {weight.dtype for weight in present if weight.ndim == 2}
        assert all(weight.is_contiguous() for weight in present)
        assert all(weight.dtype == torch.float32 for weight in present if weight.ndim == 1)

    def struct(self) -> cpu_bindings.LayerStruct:
        """The C description of the layer, with the current addresses of its weights."""
        sizes = [getattr(self.config, name) for name in cpu_bindings.LAYER_SIZES]
        return cpu_bindings.layer_struct(self.weights, self.matrix_dtype, sizes, self.config.norm_eps)

    def __call__(self, x_BTD: Tensor, positions_BT: Tensor, rope: RopeTables, attend: Attend) -> Tensor:
        config, shape, struct = self.config, x_BTD.shape[:2], self.struct()
        q_BTNH = x_BTD.new_empty(*shape, config.num_heads, config.head_dim)
        k_BTKH, v_BTKH = x_BTD.new_empty(2, *shape, config.num_kv_heads, config.head_dim)
        out_BTD, workspace = torch.empty_like(x_BTD), x_BTD.new_empty(shape.numel() * self.workspace_per_token)
        cpu_bindings.layer_heads(struct, x_BTD, *rope, positions_BT, (q_BTNH, k_BTKH, v_BTKH, workspace))
        attended_BNTH = attend(self.index, q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2))
        attended_BTNH = attended_BNTH.transpose(1, 2).contiguous()
        cpu_bindings.layer_rest(struct, x_BTD, attended_BTNH, out_BTD, workspace)
        return out_BTD
