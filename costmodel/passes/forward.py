"""FLOP and bytes of one forward pass on each GPU, by operator; independent of the hardware.

A pass is described by (batch_size, query_len, context_len): prefill is (B, prompt_len, 0), decoding (B, 1, S), verification
(B, gamma + 1, S). A sparse draft step is a decoding step that reads at most the KV budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..models.transformer import BYTES_PER_ELEMENT, Matrix, Operator, TransformerConfig

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
LOGITS_BYTES = 4.0  # engines hold logits in float32


@dataclass(frozen=True, eq=False)
class Work:
    """FLOP and memory traffic.

    Attributes:
        flop: Matrix products only, 2 FLOP per multiply-add. [FLOP]
        bytes: Bytes read and written. [bytes]
    """

    flop: Array
    bytes: Array


@dataclass(frozen=True, eq=False)
class Products:
    """Products with one weight matrix, over all its layers.

    Attributes:
        matrix: The weight matrix.
        rows: Rows multiplied with each copy of the matrix. [tokens]
        copies: Copies read per layer: the experts chosen by at least one token, or 1.
        activation_bytes_per_element: Element size of inputs and outputs. [bytes]
    """

    matrix: Matrix
    rows: Array
    copies: Array
    activation_bytes_per_element: float

    @property
    def flop(self) -> Array:
        """FLOP over all layers and copies. [FLOP]"""
        return 2.0 * self.matrix.outputs * self.matrix.inputs * self.matrix.layers * self.rows * self.copies

    @property
    def bytes(self) -> Array:
        """Weights, read once, plus inputs and outputs. [bytes]"""
        m = self.matrix
        weights = m.outputs * m.inputs * BYTES_PER_ELEMENT[m.dtype]
        return m.layers * self.copies * (weights + self.rows * (m.outputs + m.inputs) * self.activation_bytes_per_element)


@dataclass(frozen=True, eq=False)
class AttentionWork:
    """Attention over all layers with the same window.

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


@dataclass(frozen=True, eq=False)
class Cost:
    """Cost of one forward pass on one GPU; arrays broadcast.

    Attributes:
        products: Matrix products with weights.
        attentions: Attention, by window.
        elementwise: Activation traffic of embedding, norms, rotary embedding and residuals; FLOP are not counted.
        logits_bytes: Size of the logits. [bytes]
        allreduce_bytes: Payload of one all-reduce. [bytes]
        num_allreduces: All-reduces per pass; 0 without tensor parallelism.
        num_layers: Number of layers.
        num_expert_layers: Layers with routed experts.
    """

    products: tuple[Products, ...]
    attentions: tuple[AttentionWork, ...]
    elementwise: Work
    logits_bytes: Array
    allreduce_bytes: Array
    num_allreduces: int
    num_layers: int
    num_expert_layers: int

    def operator(self, name: Operator) -> Work:
        """Sum of the matrix products of one operator class."""
        return _total(products for products in self.products if products.matrix.operator == name)

    @property
    def attention(self) -> Work:
        """Attention over all layers."""
        return _total(self.attentions)

    @property
    def flop(self) -> Array:
        """Total FLOP. [FLOP]"""
        return _total(self.products).flop + self.attention.flop

    @property
    def bytes(self) -> Array:
        """Total memory traffic. [bytes]"""
        return _total(self.products).bytes + self.attention.bytes + self.elementwise.bytes + self.logits_bytes

    @property
    def arithmetic_intensity(self) -> Array:
        """FLOP per byte. [FLOP/byte]"""
        return self.flop / self.bytes


def _total(parts: Iterable[Products | AttentionWork]) -> Work:
    works = [(part.flop, part.bytes) for part in parts]
    flop, moved = (reduce(np.add, column) for column in zip(*works, strict=True))
    return Work(flop, moved)


def forward_cost(
    model: TransformerConfig,
    *,
    batch_size: ArrayLike,
    query_len: ArrayLike,
    context_len: ArrayLike,
    kv_budget: ArrayLike = np.inf,
    logits_len: ArrayLike | None = None,
    tensor_parallel: int = 1,
    head_sharded: bool = True,
) -> Cost:
    """Count FLOP and bytes of one forward pass on one GPU; array arguments broadcast.

    Only matrix products are counted, 2*m*k*n FLOP each, and only causal pairs of attention. Weights and KV entries count as
    read once per pass, for any `query_len`; how often a kernel really reads them is modelled in `roofline`. Of a mixture of
    experts, the weights of the experts chosen by at least one token (in expectation) are read. Not modelled: FLOP of softmax,
    norms, rotary embedding and sampling.

    Args:
        model: The transformer.
        batch_size: Sequences in the batch.
        query_len: New tokens per sequence. [tokens]
        context_len: Tokens already in the KV cache, per sequence. [tokens]
        kv_budget: Maximum number of cached entries read, per sequence. [tokens]
        logits_len: Positions with logits, per sequence; None for all new tokens. [tokens]
        tensor_parallel: GPUs that share the pass; KV heads are replicated if there are fewer than GPUs.
        head_sharded: The LM head is split over the GPUs; otherwise it is replicated.

    Returns:
        Counts by operator. Arrays omit axes that they do not depend on. [FLOP, bytes]

    Source:
        MagicDec (arXiv 2408.11049), section 3.
    """
    b, q, s, budget = (np.asarray(x, np.float64) for x in (batch_size, query_len, context_len, kv_budget))
    rows = b * q
    logit_rows = rows if logits_len is None else b * np.asarray(logits_len, np.float64)
    *layer_matrices, head = model.matrices(tensor_parallel)
    if not head_sharded:
        head = model.matrices()[-1]
    attentions = [
        _attention(model, layers, window, b, q, s, budget, tensor_parallel, rows) for layers, window in model.attention_windows
    ]
    expansion = [extra for _, extra in attentions if extra is not None]
    products = [_products(matrix, rows, model.bytes_per_element) for matrix in layer_matrices]
    if expansion:
        products = [replace(one, rows=expansion[0]) if one.matrix.name == "kv_up" else one for one in products]
    return Cost(
        products=(*products, _products(head, logit_rows, model.bytes_per_element)),
        attentions=tuple(work for work, _ in attentions),
        elementwise=Work(np.zeros_like(rows), rows * (1 + 8 * model.num_layers) * model.d_model * model.bytes_per_element),
        logits_bytes=LOGITS_BYTES * logit_rows * head.outputs,
        allreduce_bytes=rows * model.d_model * model.bytes_per_element,
        num_allreduces=2 * model.num_layers if tensor_parallel > 1 else 0,
        num_layers=model.num_layers,
        num_expert_layers=model.num_layers - model.experts.num_dense_layers if model.experts else 0,
    )


def _products(matrix: Matrix, rows: Array, element: float) -> Products:
    if matrix.experts == 1:
        return Products(matrix, rows, np.ones_like(rows), element)
    copies = experts_touched(rows, matrix.experts, matrix.used)
    return Products(matrix, rows * matrix.used / np.maximum(copies, 1.0), copies, element)


def experts_touched(tokens: ArrayLike, num_experts: int, experts_per_token: int) -> Array:
    """Expected number of distinct experts, if tokens choose independently and uniformly.

    This is an upper bound: real routers are uneven, and neighbouring tokens choose similar experts.

    Args:
        tokens: Number of tokens.
        num_experts: Experts per layer.
        experts_per_token: Experts chosen by each token.

    >>> float(experts_touched(1, 128, 8))
    8.0
    """
    return np.asarray(num_experts * (1 - whole_power(1 - experts_per_token / num_experts, tokens)))


def whole_power(base: ArrayLike, exponent: ArrayLike) -> Array:
    """Power with whole exponents, by repeated squaring. Unlike `np.power`, scalars and arrays round identically.

    Args:
        base: Base.
        exponent: Non-negative whole exponents.

    >>> whole_power(0.5, [0, 1, 3]).tolist()
    [1.0, 0.5, 0.125]
    """
    square, left = np.broadcast_arrays(np.asarray(base, np.float64), np.asarray(exponent, np.int64))
    power = np.ones(left.shape)
    while left.any():
        power = np.where(left % 2, power * square, power)
        square, left = square * square, left // 2
    return power


def _attention(
    model: TransformerConfig,
    layers: int,
    window: int | None,
    b: Array,
    q: Array,
    s: Array,
    budget: Array,
    tensor_parallel: int,
    rows: Array,
) -> tuple[AttentionWork, Array | None]:
    """Attention in layers with one window; for latent attention also the rows that pass the `kv_up` matrix."""
    reach = np.inf if window is None else float(window) - 1  # the window includes the token itself
    read = np.minimum(np.minimum(s, budget), reach)
    beyond = np.maximum(read + q - 1 - reach, 0)  # causal pairs outside the window
    pairs = b * (q * read + q * (q + 1) / 2 - beyond * (beyond + 1) / 2)
    heads, expanded_rows = model.num_heads / tensor_parallel, None
    if model.latent is None:
        flop = pairs * 4 * heads * model.head_dim
    else:
        flop, expanded_rows = _latent_attention_flop(model, heads, pairs, rows, b * (read + q))
    kv_heads = model.kv_heads_per_gpu(tensor_parallel)
    value_width = model.latent.kv_rank if model.latent else model.head_dim
    work = AttentionWork(
        layers=layers,
        flop=layers * flop,
        bytes=layers * b * (read + q) * model.kv_width_per_gpu(tensor_parallel) * model.kv_bytes_per_element,
        query_bytes=layers * rows * 2 * heads * value_width * model.bytes_per_element,
        sequences=b,
        kv_heads=kv_heads,
        query_len=q,
        query_rows=q * heads / kv_heads,
        group=heads / kv_heads,
        read_len=read + q,
    )
    return work, expanded_rows


def _latent_attention_flop(
    model: TransformerConfig, heads: float, pairs: Array, rows: Array, entries: Array
) -> tuple[Array, Array]:
    """FLOP of one layer of latent attention, and the rows that pass `kv_up`, for the cheaper of two algorithms.

    Decoding attends in the latent space: queries and outputs pass `kv_up`, and all heads read the same latent entries. For
    long prompts it is cheaper to expand the entries to keys and values of each head first.
    """
    latent = model.latent
    assert latent is not None
    per_row = 2 * heads * latent.kv_rank * (latent.nope_dim + latent.value_dim)
    absorbed = pairs * 2 * heads * (2 * latent.kv_rank + latent.rope_dim)
    expanded = pairs * 2 * heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
    expands = expanded + entries * per_row < absorbed + rows * per_row
    return np.where(expands, expanded, absorbed), np.where(expands, entries, rows)
