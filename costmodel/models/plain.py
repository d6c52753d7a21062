"""The layers of a plain decoder, from the few numbers that describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..layers.attention import Attention, AttentionKind, Latent
from ..layers.layer import Layer, LayerGroup, grouped
from ..layers.mlp import DenseMlp, ExpertMlp, MlpKind

if TYPE_CHECKING:
    from .transformer import TransformerConfig


def plain_layers(model: TransformerConfig) -> tuple[LayerGroup, ...]:
    """Return the layers that the numbers of a model describe: those with full attention and a dense MLP first."""
    first_window = 0 if model.num_window_layers is None else model.num_layers - model.num_window_layers
    if model.sliding_window is None:
        first_window = model.num_layers
    first_experts = model.num_layers if model.experts is None else model.experts.num_dense_layers
    borders = sorted({0, first_window, first_experts, model.num_layers})
    found = []
    for start, stop in zip(borders, borders[1:], strict=False):
        attention = _attention(model, model.sliding_window if start >= first_window else None)
        layer = Layer(attention=attention, mlp=_mlp(model, experts=start >= first_experts), norms=model.norms_per_layer)
        found += [(layer, {})] * (stop - start)
    return grouped(found)


def _attention(model: TransformerConfig, window: int | None) -> AttentionKind:
    if model.latent is not None:
        part = model.latent
        return Latent(model.num_heads, part.kv_rank, part.rope_dim, part.nope_dim, part.value_dim, part.q_rank)
    return Attention(
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        window=window,
        qkv_bias=model.qkv_bias,
        o_bias=model.o_bias,
        qk_norm="head" if model.qk_norm else "none",
        sinks=model.attention_sinks,
    )


def _mlp(model: TransformerConfig, *, experts: bool) -> MlpKind:
    moe = model.experts
    if moe is None or not experts:
        return DenseMlp(model.d_ff)
    return ExpertMlp(moe.num_experts, moe.experts_per_token, moe.d_ff, moe.d_ff_shared, bias=moe.bias)
