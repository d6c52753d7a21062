"""Dimensions, dtypes, layers and weight matrices of a decoder-only transformer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from ..layers.attention import AttentionKind
from ..layers.dtypes import BYTES_PER_ELEMENT, smaller
from ..layers.layer import Layer, LayerGroup, merged
from ..layers.weights import Matrix, Operator, Weight
from .architecture import Experts, LatentAttention, RopeScaling, StoredWeights
from .plain import plain_layers

if TYPE_CHECKING:
    from ..layers.recurrent import Recurrent

KindT = TypeVar("KindT")
__all__ = ["BYTES_PER_ELEMENT", "MODEL_TITLES", "Matrix", "Operator", "TransformerConfig", "model_kind"]
MODEL_TITLES = {
    "dense": "dense models",
    "experts": "mixtures of experts",
    "recurrent": "models with recurrent layers",
}


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer: a list of layers between an embedding and a head.

    A plain decoder is described by a few numbers, which the executor reads. Any other model has its layers in `groups`; those
    numbers then describe its usual layer, and everything that is counted comes from the layers.

    Attributes:
        name: Display name.
        family: Model type of Hugging Face.
        num_layers: Decoder layers.
        d_model: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: KV heads; fewer than `num_heads` with grouped-query attention.
        head_dim: Width of one head.
        d_ff: Hidden width of a dense MLP.
        vocab_size: Rows of the embedding.
        max_context_len: Longest supported context. [tokens]
        tied_embeddings: Whether the LM head shares the embedding matrix.
        qkv_bias, o_bias: Whether the projections have a bias.
        qk_norm: Whether query and key heads are RMS-normalised.
        attention_sinks: Whether each head has a learned attention sink.
        norms_per_layer: RMS norms over the residual stream, per layer.
        sliding_window: Attention window; None for full attention. [tokens]
        num_window_layers: Layers with this window, the others have full attention; None for all layers.
        experts: Mixture of experts, if any.
        latent: Latent attention, if any; `num_kv_heads` and `head_dim` then describe the expanded keys.
        dtype: Dtype of activations, and default of the next four.
        embedding_dtype: Dtype of embedding and LM head.
        linear_dtype: Dtype of projections and dense MLPs.
        expert_dtype: Dtype of the experts.
        kv_dtype: Dtype of the KV cache.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: RoPE scaling, if any.
        norm_eps: Epsilon of the RMS norms.
        groups: Layers, where they are not those of a plain decoder.
        extra: Matrices outside the layers, beside the head.
        extra_vectors: Parameters outside the layers that are no matrices, beside the final norm.
        lookup_params: Parameters of further tables of which a token reads one row.
        vision_params: Parameters of encoders for images or sound: in memory, not in decoding.
        mtp: Layers of one multi-token-prediction module of the checkpoint: a draft, not a part of the target.
        num_mtp: Such modules in the checkpoint.
        head_dtype: Dtype of an LM head that is not stored as the embedding is; None for the same.
        state_dtype: Dtype of recurrent states; None for that of the activations.
        notes: What a reader of the numbers must know about how the model was read.
        stored: What its weight files hold, if they were read; sizes are then exact.
    """

    name: str
    family: str
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_context_len: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    attention_sinks: bool = False
    norms_per_layer: int = 2
    sliding_window: int | None = None
    num_window_layers: int | None = None
    experts: Experts | None = None
    latent: LatentAttention | None = None
    dtype: str = "bfloat16"
    embedding_dtype: str | None = None
    linear_dtype: str | None = None
    expert_dtype: str | None = None
    kv_dtype: str | None = None
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    groups: tuple[LayerGroup, ...] = ()
    extra: tuple[Weight, ...] = ()
    extra_vectors: int = 0
    lookup_params: int = 0
    vision_params: int = 0
    mtp: tuple[LayerGroup, ...] = ()
    num_mtp: int = 0
    head_dtype: str | None = None
    state_dtype: str | None = None
    notes: tuple[str, ...] = ()
    stored: StoredWeights | None = None

    @cached_property
    def layers(self) -> tuple[LayerGroup, ...]:
        """All layers, equal ones grouped."""
        return self.groups or plain_layers(self)

    @cached_property
    def attentions(self) -> tuple[tuple[AttentionKind, int], ...]:
        """Each kind of attention, and how many layers have it."""
        return _counted((group.layer.attention, group.count) for group in self.layers)

    @cached_property
    def recurrents(self) -> tuple[tuple[Recurrent, int], ...]:
        """Each kind of recurrent layer, and how many layers have it."""
        return _counted((group.layer.recurrent, group.count) for group in self.layers)

    @property
    def num_mixers(self) -> int:
        """Layers that mix tokens."""
        return sum(group.count for group in self.layers if group.layer.attention or group.layer.recurrent)

    @property
    def num_mlps(self) -> int:
        """Layers with an MLP or experts."""
        return sum(group.count for group in self.layers if group.layer.mlp)

    @cached_property
    def num_expert_layers(self) -> int:
        """Layers with routed experts."""
        return sum(group.count for group in self.layers if any(weight.experts > 1 for weight in group.layer.mlps(self.d_model)))

    @cached_property
    def widest_mlp(self) -> int:
        """Elements of the widest activation of an MLP, per token."""
        if not self.groups:
            return 3 * self.d_ff
        return max((group.layer.mlp.widest for group in self.layers if group.layer.mlp), default=0)

    @property
    def d_attention(self) -> int:
        """Total width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Total width of all key (or value) heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def bytes_per_element(self) -> float:
        """Size of one activation. [bytes]"""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def kv_bytes_per_element(self) -> float:
        """Size of one element of the KV cache. [bytes]"""
        return BYTES_PER_ELEMENT[self.kv_dtype or self.dtype]

    @property
    def embedding_params(self) -> int:
        """Parameters of the token embedding; an untied LM head has as many."""
        return self.vocab_size * self.d_model

    @property
    def embedding_bytes(self) -> float:
        """Size of the token embedding. [bytes]"""
        return self.embedding_params * BYTES_PER_ELEMENT[self.embedding_dtype or self.dtype]

    @cached_property
    def _matrices(self) -> dict[int, tuple[Matrix, ...]]:
        return {}

    def matrices(self, tensor_parallel: int = 1) -> tuple[Matrix, ...]:
        """Return the matrices on one GPU, the LM head last. If there are more GPUs than KV heads, KV heads are replicated."""
        if tensor_parallel not in self._matrices:
            counts: dict[tuple[Weight, str], int] = {}
            for part in (Layer.mixers, Layer.mlps):
                for group in self.layers:
                    stored = dict(group.stored)
                    for weight in part(group.layer, self.d_model):
                        key = (weight, stored.get(weight.name) or self._dtype_of(weight))
                        counts[key] = counts.get(key, 0) + group.count
            for weight in self.extra:
                counts[weight, self._dtype_of(weight)] = 1
            found = [weight.on_gpu(tensor_parallel, layers, dtype) for (weight, dtype), layers in counts.items()]
            self._matrices[tensor_parallel] = (*found, self._head(tensor_parallel))
        return self._matrices[tensor_parallel]

    def _dtype_of(self, weight: Weight) -> str:
        stored = {"linear": self.linear_dtype, "expert": self.expert_dtype, "router": None}[weight.role]
        return stored or self.dtype

    def _head(self, tensor_parallel: int) -> Matrix:
        dtype = self.head_dtype or self.embedding_dtype or self.dtype
        return Matrix("head", "head", self.vocab_size / tensor_parallel, self.d_model, 1, dtype)

    @cached_property
    def _vector_params(self) -> int:
        """Parameters of norms, biases, convolutions and sinks: stored, but too small to affect step times."""
        layers = sum(group.count * group.layer.vector_params(self.d_model) for group in self.layers)
        return layers + self.d_model + self.extra_vectors

    @cached_property
    def params(self) -> int:
        """Number of parameters of the decoder, without encoders and prediction modules."""
        matrices = sum(matrix.params for matrix in self.matrices())
        tables = self.lookup_params + (0 if self.tied_embeddings else self.embedding_params)
        return int(matrices) + self._vector_params + tables

    @cached_property
    def active_params(self) -> int:
        """Parameters that one token is multiplied with: no idle experts, and no table of which it reads one row."""
        idle = sum(matrix.params * (1 - matrix.used / matrix.experts) for matrix in self.matrices())
        idle += sum(group.count * group.layer.mlp.idle_vector_params(self.d_model) for group in self.layers if group.layer.mlp)
        tables = self.lookup_params + (0 if self.tied_embeddings else self.embedding_params)
        return self.params - round(idle) - tables

    def weight_bytes_per_gpu(self, tensor_parallel: int = 1, *, head_sharded: bool = True) -> float:
        """Size of the weights on one GPU, encoders included; norms and biases are replicated. [bytes]

        Args:
            tensor_parallel: GPUs that share the model.
            head_sharded: Embedding and LM head are split over the GPUs; otherwise each GPU holds all of them.
        """
        *layers, head = self.matrices(tensor_parallel)
        embeddings = (head if head_sharded else self._head(1)).bytes
        if not self.tied_embeddings:
            embeddings += self.embedding_bytes / (tensor_parallel if head_sharded else 1)
        others = (self.lookup_params + self.vision_params) / tensor_parallel * self.bytes_per_element
        others += self.stored.unlisted_bytes / tensor_parallel if self.stored else 0.0
        return sum(matrix.bytes for matrix in layers) + embeddings + self._vector_params * self.bytes_per_element + others

    @cached_property
    def weight_bytes(self) -> float:
        """Size of all weights. [bytes]"""
        return self.weight_bytes_per_gpu()

    def kv_heads_per_gpu(self, tensor_parallel: int) -> float:
        """KV heads per GPU, at least one (replicated if needed); a latent cache counts as one head."""
        return 1.0 if self.latent else max(self.num_kv_heads / tensor_parallel, 1.0)

    def kv_width_per_gpu(self, tensor_parallel: int = 1) -> float:
        """Cached elements per token and layer on one GPU, keys and values together, of the usual layer."""
        if self.latent is not None:
            return self.latent.cached_width
        return 2 * self.kv_heads_per_gpu(tensor_parallel) * self.head_dim

    @property
    def scored_width(self) -> int:
        """Elements of one KV entry that enter the attention score of a query head; all of a latent entry."""
        return self.latent.cached_width if self.latent is not None else self.head_dim

    @property
    def kv_bytes_per_token(self) -> float:
        """Size of the KV cache per token, over all layers, for contexts within the sliding window. [bytes/token]

        Index keys count; recurrent layers do not. Not modelled: paging and alignment overhead of real allocators.
        """
        return sum(layers * kind.bytes_per_token(self.kv_bytes_per_element) for kind, layers in self.attentions)

    @property
    def growing_kv_bytes_per_token(self) -> float:
        """The same, of layers that keep every token. [bytes/token]"""
        element = self.kv_bytes_per_element
        return sum(layers * kind.bytes_per_token(element) for kind, layers in self.attentions if kind.limit is None)

    @property
    def attention_windows(self) -> tuple[tuple[int, int | None], ...]:
        """(number of layers, window) of each kind of attention layer; None for full attention. [tokens]"""
        counts: dict[int | None, int] = {}
        for kind, layers in self.attentions:
            counts[kind.limit] = counts.get(kind.limit, 0) + layers
        return tuple((layers, window) for window, layers in counts.items())

    @property
    def state_bytes_per_sequence(self) -> float:
        """Size of the recurrent states of one sequence, over all layers: the same for any context. [bytes]"""
        state = BYTES_PER_ELEMENT[self.state_dtype or self.dtype]
        return float(
            sum(
                layers * (kind.state_elements * state + kind.conv_elements * self.bytes_per_element)
                for kind, layers in self.recurrents
            )
        )

    def with_dtype(self, dtype: str) -> TransformerConfig:
        """Return the model with all weights, activations, states and the KV cache in one dtype."""
        return replace(
            self,
            dtype=dtype,
            embedding_dtype=None,
            linear_dtype=None,
            expert_dtype=None,
            kv_dtype=None,
            head_dtype=None,
            state_dtype=None,
            groups=merged(self.groups),
            mtp=merged(self.mtp),
            stored=None,
        )

    def compressed(self, *, weight_dtype: str | None = None, kv_dtype: str | None = None) -> TransformerConfig:
        """Return the model with layer weights or KV cache in a smaller dtype; a dtype that is not smaller is ignored.

        Args:
            weight_dtype: Dtype of the matrices, LM head and routers excluded; None for no change.
            kv_dtype: Dtype of the KV cache; None for no change. Recurrent states keep theirs.
        """

        def shrunk(group: LayerGroup) -> LayerGroup:
            return replace(
                group, stored=tuple((name, smaller(dtype, dtype, weight_dtype) or dtype) for name, dtype in group.stored)
            )

        return replace(
            self,
            linear_dtype=smaller(self.linear_dtype, self.dtype, weight_dtype),
            expert_dtype=smaller(self.expert_dtype, self.dtype, weight_dtype),
            kv_dtype=smaller(self.kv_dtype, self.dtype, kv_dtype),
            groups=tuple(shrunk(group) for group in self.groups),
            mtp=tuple(shrunk(group) for group in self.mtp),
            stored=None if weight_dtype is not None else self.stored,
        )


def _counted(pairs: Iterable[tuple[KindT | None, int]]) -> tuple[tuple[KindT, int], ...]:
    """Add up the counts of equal kinds, in the order in which they first appear."""
    counts: dict[KindT, int] = {}
    for kind, count in pairs:
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + count
    return tuple(counts.items())


def model_kind(model: TransformerConfig) -> str:
    """What sets a model apart for kernels and engines, one of `MODEL_TITLES`."""
    return "experts" if model.num_expert_layers else "recurrent" if model.recurrents else "dense"
