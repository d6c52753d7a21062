"""What a model is: the facts of a decoder-only transformer that costs and execution follow from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from .architecture import Experts, LatentAttention, RopeScaling

# int4 and mxfp4 with the scale that a group of 128 or 32 elements shares
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
    """A weight matrix, as one GPU holds it.

    Attributes:
        name: What it does.
        operator: Class of operators it belongs to.
        outputs, inputs: Its dimensions.
        layers: Layers that have it.
        dtype: Type it is stored in.
        experts: Copies in a layer, of which a token uses `used`; 1 for a matrix that every token uses.
        used: Copies that a token uses.
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
        """Parameters over all layers and experts."""
        return self.outputs * self.inputs * self.layers * self.experts

    @property
    def bytes(self) -> float:
        """Size over all layers and experts. [bytes]"""
        return self.params * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer.

    Attributes:
        name: As shown to people.
        family: Architecture, as Hugging Face names it.
        num_layers: Decoder layers.
        d_model: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; fewer than `num_heads` under grouped-query attention.
        head_dim: Width of one head.
        d_ff: Width of the gated MLP, of those layers that have a plain one.
        vocab_size: Rows of the embedding.
        max_context_len: Positions the model knows. [tokens]
        tied_embeddings: The LM head is the embedding.
        qkv_bias, o_bias: The projections have a bias.
        qk_norm: Each q and k head is RMS-normalised.
        attention_sinks: Each head has a learned sink.
        norms_per_layer: RMS norms over the residual stream, per layer.
        sliding_window: Attention reaches back this far; None for all the way. [tokens]
        num_window_layers: Layers with that window, the others reach all the way; None for all layers.
        experts: The mixture of experts, if the model is one.
        latent: Its latent attention, if it has one; `num_kv_heads` and `head_dim` are those of the expanded keys.
        dtype: Type of activations, and of what the next four do not name.
        embedding_dtype: Type of embeddings and LM head, where it is another.
        linear_dtype: Type of the projections and MLPs, where it is another.
        expert_dtype: Type of the experts, where it is another.
        kv_dtype: Type of the KV cache, where it is another.
        rope_theta: Base of the rotary frequencies.
        rope_scaling: How they are stretched, if at all.
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
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        """Width of all key (or value) heads together."""
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
        """Parameters of the token embedding; the LM head has as many, shared with it when tied."""
        return self.vocab_size * self.d_model

    @property
    def embedding_bytes(self) -> float:
        """Size of the token embedding. [bytes]"""
        return self.embedding_params * BYTES_PER_ELEMENT[self.embedding_dtype or self.dtype]

    def matrices(self, tensor_parallel: int = 1) -> tuple[Matrix, ...]:
        """The matrices of one GPU, LM head included; KV heads that are fewer than the GPUs are replicated."""
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
            found = dtype or self.dtype
            return (
                Matrix(f"{name}gate_up", "mlp", 2 * width / gpus, self.d_model, layers, found, experts, used),
                Matrix(f"{name}down", "mlp", self.d_model, width / gpus, layers, found, experts, used),
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
        """Norms, biases and sinks: read once a pass, too small to price."""
        latent, moe = self.latent, self.experts
        per_layer = self.norms_per_layer * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        per_layer += (latent.kv_rank + (latent.q_rank or 0)) if latent else 0
        per_layer += (self.d_attention + 2 * self.d_kv) if self.qkv_bias else 0
        per_layer += (self.d_model if self.o_bias else 0) + (self.num_heads if self.attention_sinks else 0)
        router_biases = moe.num_experts if moe is not None and moe.bias else 0
        return self.num_layers * per_layer + self.d_model + self._moe_layers * router_biases + self._expert_biases(used=False)

    @property
    def _moe_layers(self) -> int:
        return 0 if self.experts is None else self.num_layers - self.experts.num_dense_layers

    def _expert_biases(self, *, used: bool) -> int:
        """Biases of all experts, or of those that a token uses."""
        moe = self.experts
        if moe is None or not moe.bias:
            return 0
        return self._moe_layers * (moe.experts_per_token if used else moe.num_experts) * (2 * moe.d_ff + self.d_model)

    @cached_property
    def params(self) -> int:
        """All parameters, each stored once."""
        matrices = sum(matrix.params for matrix in self.matrices())
        return int(matrices) + self._vector_params + (0 if self.tied_embeddings else self.embedding_params)

    @cached_property
    def active_params(self) -> int:
        """Parameters that one token meets."""
        idle = sum(matrix.params * (1 - matrix.used / matrix.experts) for matrix in self.matrices())
        idle += self._expert_biases(used=False) - self._expert_biases(used=True)
        return self.params - round(idle)

    def weight_bytes_per_gpu(self, tensor_parallel: int = 1, *, head_sharded: bool = True) -> float:
        """Weights that one GPU holds; what the LM head's engine does not shard, and the small vectors, whole. [bytes]"""
        *layers, head = self.matrices(tensor_parallel)
        embeddings = (1 if self.tied_embeddings else 2) * (head if head_sharded else self._head(1)).bytes
        return sum(matrix.bytes for matrix in layers) + embeddings + self._vector_params * self.bytes_per_element

    @cached_property
    def weight_bytes(self) -> float:
        """Size of all weights in memory. [bytes]"""
        return self.weight_bytes_per_gpu()

    def kv_heads_per_gpu(self, tensor_parallel: int) -> float:
        """KV heads whose entries one GPU holds; those that cannot be split are replicated, and a latent cache is one head."""
        return 1.0 if self.latent else max(self.num_kv_heads / tensor_parallel, 1.0)

    def kv_width_per_gpu(self, tensor_parallel: int = 1) -> float:
        """Elements of keys and values that one GPU holds per token and layer."""
        if self.latent is not None:
            return self.latent.cached_width
        return 2 * self.key_width_per_gpu(tensor_parallel)

    @property
    def scored_width(self) -> int:
        """Elements that a query head is multiplied with for the score of one entry; of a latent entry, all."""
        return self.latent.cached_width if self.latent is not None else self.head_dim

    def key_width_per_gpu(self, tensor_parallel: int = 1) -> float:
        """Elements of a layer's KV entry on one GPU that scores are made with."""
        return self.kv_heads_per_gpu(tensor_parallel) * self.scored_width

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token over all layers, where all keep it. [bytes/token]

        Left out: paging and alignment waste of real allocators.
        """
        return self.num_layers * self.kv_width_per_gpu() * self.kv_bytes_per_element

    @property
    def reaches(self) -> tuple[tuple[int, int | None], ...]:
        """(layers, window) of each kind of attention layer; None for a window that reaches all the way. [tokens]"""
        if self.sliding_window is None:
            return ((self.num_layers, None),)
        windowed = self.num_layers if self.num_window_layers is None else self.num_window_layers
        kinds = ((self.num_layers - windowed, None), (windowed, self.sliding_window))
        return tuple((layers, window) for layers, window in kinds if layers)

    def with_dtype(self, dtype: str) -> TransformerConfig:
        """The same model stored and computed in one other type."""
        return replace(self, dtype=dtype, embedding_dtype=None, linear_dtype=None, expert_dtype=None, kv_dtype=None)

    def compressed(self, *, weight_dtype: str | None = None, kv_dtype: str | None = None) -> TransformerConfig:
        """The same model with the matrices of its layers, or its KV cache, stored in a type, where that is smaller."""
        return replace(
            self,
            linear_dtype=_smaller(self.linear_dtype, self.dtype, weight_dtype),
            expert_dtype=_smaller(self.expert_dtype, self.dtype, weight_dtype),
            kv_dtype=_smaller(self.kv_dtype, self.dtype, kv_dtype),
        )


def _smaller(stored: str | None, default: str, wanted: str | None) -> str | None:
    """A type to store in: the wanted one, unless what is stored is as small already."""
    if wanted is None or BYTES_PER_ELEMENT[stored or default] <= BYTES_PER_ELEMENT[wanted]:
        return stored
    return wanted
