"""Layers that keep an entry per token: full, sliding, chunked, latent, indexed and compressed attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .dtypes import BYTES_PER_ELEMENT
from .weights import Weight

QkNorm = Literal["none", "head", "all"]


@dataclass(frozen=True, repr=False)
class Index:
    """An indexer: a small attention that scores every cached entry and lets each query read only the best ones.

    Attributes:
        heads: Query heads of the indexer.
        head_dim: Width of an index key; one is cached per token.
        chosen: Entries that each query reads. [entries]
        query_inputs: Width of what index queries are computed from.
        weights_heads: Whether a projection weights the heads.
        vectors: Parameters of its norms.
        computed: False if the layer takes the choice of an earlier layer: no weights, no index keys, no scores.
        scored_dtype: Dtype of index keys and queries in the kernel; None for those of cache and activations.

    Source:
        DeepSeek-V3.2 (arXiv 2512.02556), section 2.1: the indexer computes in FP8, whatever the type of the cache.
    """

    heads: int
    head_dim: int
    chosen: int
    query_inputs: int
    weights_heads: bool = True
    vectors: int = 0
    computed: bool = True
    scored_dtype: str | None = "fp8"

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer; each GPU holds all of them."""
        if not self.computed:
            return ()
        found = (
            Weight("index_q", self.heads * self.head_dim, self.query_inputs, split="none"),
            Weight("index_k", self.head_dim, d_model, split="none"),
        )
        return (*found, Weight("index_weights", self.heads, d_model, split="none", role="router")) if self.weights_heads else found

    def bytes_per_entry(self, element: float) -> float:
        """Size of the cached index key of an entry, its scale included. [bytes]

        Args:
            element: Size of an element of the KV cache. [bytes]
        """
        if not self.computed:
            return 0.0
        if self.scored_dtype is None:
            return self.head_dim * element
        return self.head_dim * BYTES_PER_ELEMENT[self.scored_dtype] + 4

    @property
    def vector_params(self) -> int:
        """Parameters of norms."""
        return self.vectors if self.computed else 0


@dataclass(frozen=True, repr=False)
class Attention:
    """Multi-head or grouped-query attention: full, or over a sliding window, over the own chunk, or over chosen entries.

    Attributes:
        heads: Query heads.
        kv_heads: KV heads.
        head_dim: Width of a query or key head.
        value_dim: Width of a value head; None for `head_dim`.
        window: Sliding window, the token itself included; None for none. [tokens]
        chunk: A token reads only its own chunk; None for no chunks. [tokens]
        index: Indexer, if any.
        gate: Elements per head by which a gate widens the query projection.
        keys_are_values: Values are computed from the keys' projection; both are cached.
        shares_kv: Reads the cache of an earlier layer: no keys, no values, no cache of its own.
        qkv_bias, o_bias: Whether the projections have a bias.
        qk_norm: Norm of queries and keys: per head with shared parameters, or over the whole width.
        sinks: Whether each head has a learned attention sink.
        extra_vectors: Other parameters that are no matrices.
        q_rank: Width of a projection that queries are computed through; None for none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    window: int | None = None
    chunk: int | None = None
    index: Index | None = None
    gate: int = 0
    keys_are_values: bool = False
    shares_kv: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm = "none"
    sinks: bool = False
    extra_vectors: int = 0
    q_rank: int | None = None

    @property
    def value_width(self) -> int:
        """Width of a value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def limit(self) -> int | None:
        """Entries that the cache keeps at most; None for all. [entries]"""
        return self.window if self.window is not None else self.chunk

    @property
    def cached_width(self) -> int:
        """Cached elements per token, without index keys."""
        return 0 if self.shares_kv else self.kv_heads * (self.head_dim + self.value_width)

    def bytes_per_token(self, element: float) -> float:
        """Cached per token of context, index keys included, where an element takes so many bytes. [bytes]"""
        return self.cached_width * element + (self.index.bytes_per_entry(element) if self.index else 0)

    def kv_heads_on(self, gpus: int) -> float:
        """KV heads per GPU, at least one: replicated if needed."""
        return max(self.kv_heads / gpus, 1.0)

    def read_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU, keys and values together."""
        return self.kv_heads_on(gpus) * (self.head_dim + self.value_width)

    def key_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU that enter attention scores."""
        return self.kv_heads_on(gpus) * self.head_dim

    @property
    def scored_width(self) -> int:
        """Elements of one entry that enter the score of a query head."""
        return self.head_dim

    @property
    def _projected_kv(self) -> int:
        if self.shares_kv:
            return 0
        return self.kv_heads * (self.head_dim + (0 if self.keys_are_values else self.value_width))

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        queries = self.heads * (self.head_dim + self.gate)
        first: tuple[Weight, ...] = (Weight("qkv", queries, d_model, kv_outputs=self._projected_kv, kv_heads=self.kv_heads),)
        if self.q_rank is not None:
            first = (
                Weight("q_down", self.q_rank, d_model, split="none", kv_outputs=self._projected_kv, kv_heads=self.kv_heads),
                Weight("q_up", queries, self.q_rank),
            )
        return (
            *first,
            Weight("o", d_model, self.heads * self.value_width, split="inputs"),
            *(self.index.weights(d_model) if self.index else ()),
        )

    def vector_params(self, d_model: int) -> int:
        """Parameters of biases, norms and sinks of one layer."""
        count = self.heads * (self.head_dim + self.gate) + self._projected_kv if self.qkv_bias else 0
        count += d_model if self.o_bias else 0
        if self.qk_norm == "head":
            count += self.head_dim * (1 if self.shares_kv else 2)
        elif self.qk_norm == "all":
            count += self.head_dim * (self.heads + (0 if self.shares_kv else self.kv_heads))
        count += self.index.vector_params if self.index else 0
        return count + (self.heads if self.sinks else 0) + self.extra_vectors + (self.q_rank or 0)

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        kind = "full attention"
        if self.window is not None:
            kind = f"sliding window of {self.window:,}"
        elif self.chunk is not None:
            kind = f"attention in chunks of {self.chunk:,}"
        elif self.index is not None:
            kind = f"attention to {self.index.chosen:,} chosen entries"
        return kind + (", cache of an earlier layer" if self.shares_kv else "")


@dataclass(frozen=True, repr=False)
class Latent:
    """Multi-head latent attention: one small vector per token, from which keys and values of all heads are computed.

    Attributes:
        heads: Query heads.
        kv_rank: Width of the latent vector.
        rope_dim: Width of the rotary part of the key, shared by all heads and cached too.
        nope_dim: Width of the other part of each head's key.
        value_dim: Width of each head's value.
        q_rank: Width of the compressed query; None for no compression.
        index: Indexer, if any.
        gate: Whether a gate of the output's width is projected from the input.
        bias: Whether the down-projections and the output projection have biases.

    Source:
        DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """

    heads: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None
    index: Index | None = None
    gate: bool = False
    bias: bool = False

    limit: None = None
    shares_kv: Literal[False] = False

    @property
    def cached_width(self) -> int:
        """Cached elements per token, without index keys."""
        return self.kv_rank + self.rope_dim

    def bytes_per_token(self, element: float) -> float:
        """Cached per token of context, index keys included, where an element takes so many bytes. [bytes]"""
        return self.cached_width * element + (self.index.bytes_per_entry(element) if self.index else 0)

    @property
    def scored_width(self) -> int:
        """Elements of one entry that enter the score of a query head: all of it."""
        return self.cached_width

    def kv_heads_on(self, gpus: int) -> float:
        """A latent cache counts as one head, which every GPU holds."""
        return 1.0

    def read_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU."""
        return float(self.cached_width)

    def key_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU that enter attention scores."""
        return float(self.cached_width)

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        query_width = self.heads * (self.nope_dim + self.rope_dim)
        queries: tuple[Weight, ...] = (Weight("q", query_width, d_model),)
        if self.q_rank is not None:
            queries = (Weight("q_down", self.q_rank, d_model, split="none"), Weight("q_up", query_width, self.q_rank))
        values = self.heads * self.value_dim
        return (
            *queries,
            Weight("kv_down", self.cached_width, d_model, split="none"),
            Weight("kv_up", self.heads * (self.nope_dim + self.value_dim), self.kv_rank),
            Weight("o", d_model, values, split="inputs"),
            *((Weight("o_gate", values, d_model),) if self.gate else ()),
            *(self.index.weights(d_model) if self.index else ()),
        )

    def vector_params(self, d_model: int) -> int:
        """Parameters of norms and biases of one layer."""
        biases = (self.q_rank or 0) + self.cached_width + d_model if self.bias else 0
        return self.kv_rank + (self.q_rank or 0) + biases + (self.index.vector_params if self.index else 0)

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        if self.index is None:
            return "latent attention"
        return f"latent attention to {self.index.chosen:,} chosen entries" + (
            "" if self.index.computed else ", as an earlier layer"
        )


@dataclass(frozen=True, repr=False)
class Compressed:
    """Attention over a sliding window and over older entries, of which each stands for several tokens.

    All heads share one entry, which is key and value at once.

    Attributes:
        heads: Query heads.
        head_dim: Width of an entry.
        q_rank: Width of the compressed query.
        o_groups, o_rank: The output projection goes through `o_groups` groups of `o_rank` elements.
        window: Sliding window. [tokens]
        ratio: Tokens per compressed entry; 0 if the layer reads only the window.
        overlap: Whether compressed entries overlap, which doubles the compressor.
        index: Indexer over the compressed entries, if any.
        sinks: Whether each head has a learned attention sink.

    Source:
        DeepSeek-V4, section 2.3: compressed sparse attention and heavily compressed attention.
    """

    heads: int
    head_dim: int
    q_rank: int
    o_groups: int
    o_rank: int
    window: int
    ratio: int = 0
    overlap: bool = False
    index: Index | None = None
    sinks: bool = True

    shares_kv: Literal[False] = False

    @property
    def limit(self) -> int | None:
        """Tokens that the cache keeps at most; None if it grows with the context. [entries]"""
        return None if self.ratio else self.window

    @property
    def cached_width(self) -> int:
        """Cached elements per entry, without index keys."""
        return self.head_dim

    def bytes_per_token(self, element: float) -> float:
        """Cached per token of context beyond the window, index keys included, where an element takes so many bytes. [bytes]"""
        return (self.head_dim * element + (self.index.bytes_per_entry(element) if self.index else 0)) / max(self.ratio, 1)

    @property
    def scored_width(self) -> int:
        """Elements of one entry that enter the score of a query head: all of it."""
        return self.head_dim

    def kv_heads_on(self, gpus: int) -> float:
        """The one head is on every GPU."""
        return 1.0

    def read_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU."""
        return float(self.head_dim)

    def key_width_on(self, gpus: int) -> float:
        """Elements per entry on one GPU that enter attention scores."""
        return float(self.head_dim)

    def weights(self, d_model: int) -> tuple[Weight, ...]:
        """Matrices of one layer."""
        width = self.heads * self.head_dim
        found = [
            Weight("q_down", self.q_rank, d_model, split="none"),
            Weight("q_up", width, self.q_rank),
            Weight("kv", self.head_dim, d_model, split="none"),
            Weight("o_down", self.o_groups * self.o_rank, width // self.o_groups),
            Weight("o", d_model, self.o_groups * self.o_rank, split="inputs"),
        ]
        if self.ratio:
            found.append(Weight("compressor", 2 * self._compressor_width, d_model, split="none"))
        if self.index is not None:
            found += [
                Weight("index_q", self.index.heads * self.index.head_dim, self.q_rank, split="none"),
                Weight("index_k", 4 * self.index.head_dim, d_model, split="none"),
                Weight("index_weights", self.index.heads, d_model, split="none", role="router"),
            ]
        return tuple(found)

    @property
    def _compressor_width(self) -> int:
        return self.head_dim * (2 if self.overlap else 1)

    def vector_params(self, d_model: int) -> int:
        """Parameters of norms, positions and sinks of one layer."""
        count = self.q_rank + self.head_dim + (self.heads if self.sinks else 0)
        if self.ratio:
            count += self.ratio * self._compressor_width + self.head_dim
        if self.index is not None:
            count += self.ratio * 2 * self.index.head_dim + self.index.head_dim
        return count

    @property
    def title(self) -> str:
        """Name of the kind, for people."""
        if not self.ratio:
            return f"sliding window of {self.window:,}"
        chosen = f", of which {self.index.chosen:,} are chosen" if self.index else ""
        return f"window of {self.window:,} and an entry per {self.ratio} older tokens{chosen}"


AttentionKind = Attention | Latent | Compressed
