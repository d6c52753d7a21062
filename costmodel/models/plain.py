"""The layers of a plain decoder, from the few numbers that describe it."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

from ..layers.attention import Attention, AttentionKind, Latent
from ..layers.layer import Layer, LayerGroup, grouped
from ..layers.mlp import DenseMlp, ExpertMlp, MlpKind
from .architecture import Experts, LatentAttention


class PlainDecoder(Protocol):
    """The few numbers of a plain decoder; `TransformerConfig` says what they are."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def norms_per_layer(self) -> int: ...
    @property
    def sliding_window(self) -> int | None: ...
    @property
    def num_window_layers(self) -> int | None: ...
    @property
    def experts(self) -> Experts | None: ...
    @property
    def latent(self) -> LatentAttention | None: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def o_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def attention_sinks(self) -> bool: ...


def plain_layers(model: PlainDecoder) -> tuple[LayerGroup, ...]:
    """Return the layers that the numbers of a model describe: those with full attention and a dense MLP first."""
    first_window = 0 if model.num_window_layers is None else model.num_layers - model.num_window_layers
    if model.sliding_window is None:
        first_window = model.num_layers
    first_experts = model.num_layers if model.experts is None else model.experts.num_dense_layers
    borders = sorted({0, first_window, first_experts, model.num_layers})
    found: list[tuple[Layer, dict[str, str]]] = []
    for start, stop in pairwise(borders):
        attention = _attention(model, model.sliding_window if start >= first_window else None)
        layer = Layer(attention=attention, mlp=_mlp(model, experts=start >= first_experts), norms=model.norms_per_layer)
        found += [(layer, {})] * (stop - start)
    return grouped(found)


def _attention(model: PlainDecoder, window: int | None) -> AttentionKind:
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


def _mlp(model: PlainDecoder, *, experts: bool) -> MlpKind:
    moe = model.experts
    if moe is None or not experts:
        return DenseMlp(model.d_ff)
    return ExpertMlp(moe.num_experts, moe.experts_per_token, moe.d_ff, moe.d_ff_shared, bias=moe.bias)
