"""FLOP and bytes of attention in one pass, by kind of attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..layers.attention import Attention, AttentionKind, Compressed, Index, Latent
from ..layers.dtypes import BYTES_PER_ELEMENT
from ..models.transformer import TransformerConfig

Array = NDArray[np.float64]
SCORE_BYTES = 8.0  # a score of an indexer, written and read in float32


@dataclass(frozen=True, eq=False)
class Work:
    """FLOP and memory traffic.

    Attributes:
        flop: Matrix products only, 2 FLOP per multiply-add. [FLOP]
        bytes: Bytes read and written. [bytes]
    """

    flop: Array
    bytes: Array


NO_WORK = Work(np.zeros(()), np.zeros(()))


@dataclass(frozen=True, eq=False)
class AttentionWork:
    """Attention over all layers of one kind.

    Attributes:
        layers: Number of layers.
        flop: Products with keys and values, causal pairs only, over all layers. [FLOP]
        bytes: KV entries read and written, over all layers. [bytes]
        query_bytes: Queries read and outputs written, over all layers. [bytes]
        sequences: Sequences in the batch.
        kv_heads: KV heads on this GPU.
        query_len: New tokens per sequence. [tokens]
        query_rows: Query rows that share one read of a (sequence, KV head) pair: query_len x group.
        group: Query heads per KV head.
        read_len: KV entries read per sequence. [tokens]
        dtype: Dtype of the products, where it is not that of the activations.
    """

    layers: int
    flop: Array
    bytes: Array
    query_bytes: Array
    sequences: Array
    kv_heads: float
    query_len: Array
    query_rows: Array
    group: float
    read_len: Array
    dtype: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PassShape:
    """The shape of a pass; arrays broadcast.

    Attributes:
        b: Sequences in the batch.
        q: New tokens per sequence. [tokens]
        s: Tokens already in the KV cache, per sequence. [tokens]
        budget: Maximum number of cached entries read, per sequence. [tokens]
        rows: New tokens of all sequences. [tokens]
        gpus: GPUs that share the pass.
    """

    b: Array
    q: Array
    s: Array
    budget: Array
    rows: Array
    gpus: int


def attention_works(
    kind: AttentionKind, layers: int, model: TransformerConfig, shape: PassShape
) -> tuple[tuple[AttentionWork, ...], Array | None]:
    """Work of all layers with one kind of attention; for latent attention also the rows that pass the `kv_up` matrix.

    An indexer is work of its own: it reads every index key once and scores it for each query. The attention behind it reads the
    entries that its queries choose: as many as all of them together choose at most; with latent attention, each query on its own.
    """
    q, s, budget = shape.q, shape.s, shape.budget
    if isinstance(kind, Compressed):
        read, pairs = _compressed(kind, shape)
    elif isinstance(kind, Attention) and kind.chunk is not None:
        read, pairs = _chunked(kind.chunk, shape)
    else:
        reach = np.inf if kind.limit is None else float(kind.limit) - 1  # the window includes the token itself
        if kind.index is not None:
            read = np.minimum(np.minimum(s, budget), kind.index.chosen * q)
            reach = float(kind.index.chosen) - 1
        else:
            read = np.minimum(np.minimum(s, budget), reach)
        before = np.minimum(read, reach)
        beyond = np.maximum(before + q - 1 - reach, 0)  # causal pairs outside the window
        pairs = shape.b * (q * before + q * (q + 1) / 2 - beyond * (beyond + 1) / 2)
    heads, expanded_rows = kind.heads / shape.gpus, None
    if isinstance(kind, Latent):
        flop, expanded_rows = _latent_flop(kind, heads, pairs, shape.rows, shape.b * (read + q))
        value_width = kind.kv_rank
    elif isinstance(kind, Compressed):
        flop, value_width = pairs * 4 * heads * kind.head_dim, kind.head_dim
    else:
        flop, value_width = pairs * 2 * heads * (kind.head_dim + kind.value_width), kind.value_width
    kv_heads = kind.kv_heads_on(shape.gpus)
    written = 0 if kind.shares_kv else q
    work = AttentionWork(
        layers=layers,
        flop=layers * flop,
        bytes=layers * shape.b * (read + written) * kind.read_width_on(shape.gpus) * model.kv_bytes_per_element,
        query_bytes=layers * shape.rows * 2 * heads * value_width * model.bytes_per_element,
        sequences=shape.b,
        kv_heads=kv_heads,
        query_len=q,
        query_rows=q * heads / kv_heads,
        group=heads / kv_heads,
        read_len=read + q,
    )
    if isinstance(kind, Latent) and kind.index is not None:
        work = _gathered(work, shape, kind.read_width_on(shape.gpus) * model.kv_bytes_per_element, pairs)
    if kind.index is None or not kind.index.computed:
        return (work,), expanded_rows
    ratio = kind.ratio if isinstance(kind, Compressed) else 1
    return (work, _scores(kind.index, ratio, layers, model, shape)), expanded_rows


def _gathered(work: AttentionWork, shape: PassShape, entry_bytes: float, pairs: Array) -> AttentionWork:
    """Work of attention to chosen entries: every query gathers its own, and shares no read with others."""
    return replace(
        work,
        bytes=work.layers * entry_bytes * (pairs + shape.rows),
        sequences=shape.rows,
        query_len=np.ones_like(shape.q),
        query_rows=np.full_like(shape.q, work.group),
        read_len=pairs / shape.rows,
    )


def _compressed(kind: Compressed, shape: PassShape) -> tuple[Array, Array]:
    """Entries read per sequence, and pairs of query and entry: in the window, and compressed ones beyond it."""
    q, reach = shape.q, float(kind.window) - 1
    near = np.minimum(shape.s, reach)
    beyond = np.maximum(near + q - 1 - reach, 0)
    pairs = q * near + q * (q + 1) / 2 - beyond * (beyond + 1) / 2
    if not kind.ratio:
        return near, shape.b * pairs
    each = (shape.s + q / 2) / kind.ratio  # the last token of a long prompt reads more than the first
    older, chosen = shape.s / kind.ratio, np.inf if kind.index is None else float(kind.index.chosen)
    read = np.minimum(np.minimum(older, chosen * q), shape.budget)
    return near + read, shape.b * (pairs + q * np.minimum(np.minimum(each, chosen), shape.budget))


def _chunked(chunk: int, shape: PassShape) -> tuple[Array, Array]:
    """Entries read per sequence, and pairs; beyond the first chunk a token reads half of its chunk, on average."""
    q, s = shape.q, shape.s
    within = s + q <= chunk
    read = np.minimum(np.where(within, s, np.minimum(s, (chunk - 1) / 2)), shape.budget)
    mean = np.minimum((chunk - 1) / 2, shape.budget) + 1
    return read, shape.b * np.where(within, q * read + q * (q + 1) / 2, q * mean)


def _scores(index: Index, ratio: int, layers: int, model: TransformerConfig, shape: PassShape) -> AttentionWork:
    """Work of an indexer, on every GPU alike: one score per query, head and cached entry.

    The scores of a query, summed over its heads, are written in float32 and read by the kernel that chooses the best.
    """
    entries, new = shape.s / ratio, shape.q / ratio
    pairs = shape.b * (shape.q * entries + shape.q * (new + 1 / ratio) / 2)
    key_bytes = index.bytes_per_entry(model.kv_bytes_per_element)
    query_bytes = model.bytes_per_element if index.scored_dtype is None else BYTES_PER_ELEMENT[index.scored_dtype]
    return AttentionWork(
        layers=layers,
        flop=layers * pairs * 2 * index.heads * index.head_dim,
        bytes=layers * shape.b * (entries + new) * key_bytes,
        query_bytes=layers * (shape.rows * index.heads * index.head_dim * query_bytes + pairs * SCORE_BYTES),
        sequences=shape.b,
        kv_heads=1.0,
        query_len=shape.q,
        query_rows=shape.q * index.heads,
        group=float(index.heads),
        read_len=entries + new,
        dtype=index.scored_dtype,
    )


def _latent_flop(kind: Latent, heads: float, pairs: Array, rows: Array, entries: Array) -> tuple[Array, Array]:
    """FLOP of one layer of latent attention, and the rows that pass `kv_up`, for the cheaper of two algorithms.

    Decoding attends in the latent space: queries and outputs pass `kv_up`, and all heads read the same latent entries. For
    long prompts it is cheaper to expand the entries to keys and values of each head first.
    """
    per_row = 2 * heads * kind.kv_rank * (kind.nope_dim + kind.value_dim)
    absorbed = pairs * 2 * heads * (2 * kind.kv_rank + kind.rope_dim)
    expanded = pairs * 2 * heads * (kind.nope_dim + kind.rope_dim + kind.value_dim)
    expands = expanded + entries * per_row < absorbed + rows * per_row
    return np.where(expands, expanded, absorbed), np.where(expands, entries, rows)
