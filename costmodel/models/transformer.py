"""Dimensions, dtypes and weight matrices of a decoder-only transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from .architecture import Experts, LatentAttention, RopeScaling

# int4 and mxfp4 include the scale shared by each group of 128 or 32 elements.
BYTES_PER_ELEMENT = {
    "float64": 8.0,
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 2 / 128,
    "mxfp4": 0.5 + 1 / 32,
}
Family = Literal["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "gemma3"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Operator = Literal["projections", "mlp", "head"]


@dataclass(frozen=True)
class Matrix:
    """A weight matrix on one GPU.

    Attributes:
        name: Name of the matrix.
        operator: Operator class.
        outputs, inputs: Dimensions.
        layers: Number of layers that have this matrix.
        dtype: Storage dtype.
        experts: Copies per layer, one per expert; 1 without experts.
        used: Copies used by each token.
    """

    name: str
    operator: Operator
    outputs: float
    inputs: float
    layers: int
    dtype: str
    experts: int = 1
    used: int = 1

    @property
    def params(self) -> float:
        """Parameters, over all layers and experts."""
        return self.outputs * self.inputs * self.layers * self.experts

    @property
    def bytes(self) -> float:
        """Size, over all layers and experts. [bytes]"""
        return self.params * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer.

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
    """

    name: str
    family: Family
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

    def matrices(self, tensor_parallel: int = 1) -> tuple[Matrix, ...]:
        """Return the matrices on one GPU, the LM head last. If there are more GPUs than KV heads, KV heads are replicated."""
        return (*self._attention_matrices(tensor_parallel), *self._mlp_matrices(tensor_parallel), self._head(tensor_parallel))

    def _head(self, tensor_parallel: int) -> Matrix:
        return Matrix("head", "head", self.vocab_size / tensor_parallel, self.d_model, 1, self.embedding_dtype or self.dtype)

    def _attention_matrices(self, gpus: int) -> tuple[Matrix, ...]:
        def projection(name: str, outputs: float, inputs: float) -> Matrix:
            return Matrix(name, "projections", outputs, inputs, self.num_layers, self.linear_dtype or self.dtype)

        heads, latent = self.num_heads / gpus, self.latent
        if latent is None:
            kv_width = 2 * self.kv_heads_per_gpu(gpus) * self.head_dim
            return (
                projection("qkv", heads * self.head_dim + kv_width, self.d_model),
                projection("o", self.d_model, heads * self.head_dim),
            )
        query_width = heads * (latent.nope_dim + latent.rope_dim)
        queries = [projection("q", query_width, self.d_model)]
        if latent.q_rank is not None:
            queries = [projection("q_down", latent.q_rank, self.d_model), projection("q_up", query_width, latent.q_rank)]
        return (
            *queries,
            projection("kv_down", latent.cached_width, self.d_model),
            projection("kv_up", heads * (latent.nope_dim + latent.value_dim), latent.kv_rank),
            projection("o", self.d_model, heads * latent.value_dim),
        )

    def _mlp_matrices(self, gpus: int) -> tuple[Matrix, ...]:
        def gated(name: str, width: float, layers: int, dtype: str | None, experts: int = 1, used: int = 1) -> tuple[Matrix, ...]:
            stored = dtype or self.dtype
            return (
                Matrix(f"{name}gate_up", "mlp", 2 * width / gpus, self.d_model, layers, stored, experts, used),
                Matrix(f"{name}down", "mlp", self.d_model, width / gpus, layers, stored, experts, used),
            )

        moe = self.experts
        if moe is None:
            return gated("", self.d_ff, self.num_layers, self.linear_dtype)
        layers = self.num_layers - moe.num_dense_layers
        dense = gated("", self.d_ff, moe.num_dense_layers, self.linear_dtype) if moe.num_dense_layers else ()
        shared = gated("shared_", moe.d_ff_shared, layers, self.linear_dtype) if moe.d_ff_shared else ()
        return (
            *dense,
            Matrix("router", "mlp", moe.num_experts, self.d_model, layers, self.dtype),
            *shared,
            *gated("expert_", moe.d_ff, layers, self.expert_dtype, moe.num_experts, moe.experts_per_token),
        )

    @property
    def _vector_params(self) -> int:
        """Parameters of norms, biases and sinks: stored, but too small to affect step times."""
        latent = self.latent
        per_layer = self.norms_per_layer * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        per_layer += (latent.kv_rank + (latent.q_rank or 0)) if latent else 0
        per_layer += (self.d_attention + 2 * self.d_kv) if self.qkv_bias else 0
        per_layer += (self.d_model if self.o_bias else 0) + (self.num_heads if self.attention_sinks else 0)
        return self.num_layers * per_layer + self.d_model + self._expert_bias_params

    @property
    def _expert_bias_params(self) -> int:
        """Biases of routers and experts."""
        moe = self.experts
        if moe is None or not moe.bias:
            return 0
        return (self.num_layers - moe.num_dense_layers) * moe.num_experts * (1 + 2 * moe.d_ff + self.d_model)

    @cached_property
    def params(self) -> int:
        """Number of parameters."""
        matrices = sum(matrix.params for matrix in self.matrices())
        return int(matrices) + self._vector_params + (0 if self.tied_embeddings else self.embedding_params)

    def weight_bytes_per_gpu(self, tensor_parallel: int = 1, *, head_sharded: bool = True) -> float:
        """Size of the weights on one GPU; norms and biases are replicated. [bytes]

        Args:
            tensor_parallel: GPUs that share the model.
            head_sharded: Embedding and LM head are split over the GPUs; otherwise each GPU holds all of them.
        """
        *layers, head = self.matrices(tensor_parallel)
        embeddings = (1 if self.tied_embeddings else 2) * (head if head_sharded else self._head(1)).bytes
        return sum(matrix.bytes for matrix in layers) + embeddings + self._vector_params * self.bytes_per_element

    @cached_property
    def weight_bytes(self) -> float:
        """Size of all weights. [bytes]"""
        return self.weight_bytes_per_gpu()

    def kv_heads_per_gpu(self, tensor_parallel: int) -> float:
        """KV heads per GPU, at least one (replicated if needed); a latent cache counts as one head."""
        return 1.0 if self.latent else max(self.num_kv_heads / tensor_parallel, 1.0)

    def kv_width_per_gpu(self, tensor_parallel: int = 1) -> float:
        """Cached elements per token and layer on one GPU, keys and values together."""
        if self.latent is not None:
            return self.latent.cached_width
        return 2 * self.key_width_per_gpu(tensor_parallel)

    @property
    def scored_width(self) -> int:
        """Elements of one KV entry that enter the attention score of a query head; all of a latent entry."""
        return self.latent.cached_width if self.latent is not None else self.head_dim

    def key_width_per_gpu(self, tensor_parallel: int = 1) -> float:
        """Elements per token and layer on one GPU that enter attention scores."""
        return self.kv_heads_per_gpu(tensor_parallel) * self.scored_width

    @property
    def kv_bytes_per_token(self) -> float:
        """Size of the KV cache per token, over all layers, for contexts within the sliding window. [bytes/token]

        Not modelled: paging and alignment overhead of real allocators.
        """
        return self.num_layers * self.kv_width_per_gpu() * self.kv_bytes_per_element

    @property
    def attention_windows(self) -> tuple[tuple[int, int | None], ...]:
        """(number of layers, window) of each kind of attention layer; None for full attention. [tokens]"""
        if self.sliding_window is None:
            return ((self.num_layers, None),)
        windowed = self.num_layers if self.num_window_layers is None else self.num_window_layers
        kinds = ((self.num_layers - windowed, None), (windowed, self.sliding_window))
        return tuple((layers, window) for layers, window in kinds if layers)

    def with_dtype(self, dtype: str) -> TransformerConfig:
        """Return the model with all weights, activations and the KV cache in one dtype."""
        return replace(self, dtype=dtype, embedding_dtype=None, linear_dtype=None, expert_dtype=None, kv_dtype=None)

    def compressed(self, *, weight_dtype: str | None = None, kv_dtype: str | None = None) -> TransformerConfig:
        """Return the model with layer weights or KV cache in a smaller dtype; a dtype that is not smaller is ignored.

        Args:
            weight_dtype: Dtype of the matrices, LM head excluded; None for no change.
            kv_dtype: Dtype of the KV cache; None for no change.
        """
        return replace(
            self,
            linear_dtype=_smaller(self.linear_dtype, self.dtype, weight_dtype),
            expert_dtype=_smaller(self.expert_dtype, self.dtype, weight_dtype),
            kv_dtype=_smaller(self.kv_dtype, self.dtype, kv_dtype),
        )


def _smaller(stored: str | None, default: str, wanted: str | None) -> str | None:
    """The wanted dtype, or the stored one if it is as small."""
    if wanted is None or BYTES_PER_ELEMENT[stored or default] <= BYTES_PER_ELEMENT[wanted]:
        return stored
    return wanted
