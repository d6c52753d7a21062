"""FLOP and bytes of one forward pass on each GPU, by operator; independent of the hardware.

A pass is described by (batch_size, query_len, context_len): prefill is (B, prompt_len, 0), decoding (B, 1, S), verification
(B, gamma + 1, S). A sparse draft step is a decoding step that reads at most the KV budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..layers.dtypes import BYTES_PER_ELEMENT
from ..layers.weights import Matrix, Operator
from ..models.transformer import TransformerConfig
from .attention_work import NO_WORK, AttentionWork, PassShape, Work, attention_works
from .attention_work import Array as Array
from .cache import state_bytes_per_gpu

BoolArray = NDArray[np.bool_]
__all__ = ["Array", "AttentionWork", "BoolArray", "Cost", "Products", "Work", "experts_touched", "forward_cost", "whole_power"]
# Tokens choose experts alike: n tokens reach as many as n^EXPONENT independent ones, and a further token of the same sequence
# counts as a share of one of another sequence (docs/method.md).
ROUTING_EXPONENT, SAME_SEQUENCE = 0.7, 0.6
SCAN_CHUNK = 64  # tokens that kernels of linear attention process at a time
SCAN_PASSES = 4  # the convolution reads and writes its channels, the recurrence reads them and writes its output
LOGITS_BYTES = 4.0  # engines hold logits in float32


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
        return m.layers * self.copies * (m.outputs * m.inputs * BYTES_PER_ELEMENT[m.dtype]) + self.activation_bytes

    @property
    def activation_bytes(self) -> Array:
        """Inputs and outputs. [bytes]"""
        m = self.matrix
        return m.layers * self.copies * self.rows * ((m.outputs + m.inputs) * self.activation_bytes_per_element)


@dataclass(frozen=True, eq=False)
class Scan:
    """Recurrence over a prompt: chunks of tokens one after the other, heads and sequences side by side.

    Attributes:
        layers: Number of layers.
        heads: Heads on this GPU, of all sequences.
        chunks: Chunks of each sequence.
    """

    layers: int
    heads: Array
    chunks: Array


@dataclass(frozen=True, eq=False)
class Cost:
    """Cost of one forward pass on one GPU; arrays broadcast.

    Attributes:
        products: Matrix products with weights.
        attentions: Attention, by kind; indexers are kinds of their own.
        elementwise: Activation traffic of embedding, norms, rotary embedding and residuals; FLOP are not counted.
        logits_bytes: Size of the logits. [bytes]
        allreduce_bytes: Payload of one all-reduce. [bytes]
        num_allreduces: All-reduces per pass; 0 without tensor parallelism.
        num_layers: Number of layers; one with only attention or only an MLP counts as half.
        num_expert_layers: Layers with routed experts.
        state: Products with recurrent states, and reading and writing them.
        num_state_layers: Layers with a recurrent state.
        query_len: New tokens per sequence. [tokens]
        scans: Recurrences over prompts, which are sequential.
    """

    products: tuple[Products, ...]
    attentions: tuple[AttentionWork, ...]
    elementwise: Work
    logits_bytes: Array
    allreduce_bytes: Array
    num_allreduces: int
    num_layers: float
    num_expert_layers: int
    state: Work = NO_WORK
    num_state_layers: int = 0
    query_len: Array = field(default_factory=lambda: np.ones(()))
    scans: tuple[Scan, ...] = ()

    def without_head(self) -> Cost:
        """The same pass without LM head and logits."""
        layers = tuple(products for products in self.products if products.matrix.operator != "head")
        return replace(self, products=layers, logits_bytes=np.zeros(()))

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
        return _total(self.products).flop + self.attention.flop + self.state.flop

    @property
    def bytes(self) -> Array:
        """Total memory traffic. [bytes]"""
        moved = _total(self.products).bytes + self.attention.bytes + self.elementwise.bytes + self.logits_bytes
        return moved + self.state.bytes

    @property
    def arithmetic_intensity(self) -> Array:
        """FLOP per byte. [FLOP/byte]"""
        return self.flop / self.bytes


def _total(parts: Iterable[Products | AttentionWork]) -> Work:
    works = [(part.flop, part.bytes) for part in parts]
    if not works:
        return NO_WORK
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
    shape = PassShape(b, q, s, budget, b * q, tensor_parallel)
    ends = q if logits_len is None else np.asarray(logits_len, np.float64)
    rows, logit_rows = shape.rows, b * ends
    *layer_matrices, head = model.matrices(tensor_parallel)
    if not head_sharded:
        head = model.matrices()[-1]
    found = [attention_works(kind, layers, model, shape) for kind, layers in model.attentions]
    expansion = [extra for _, extra in found if extra is not None]
    apart = np.power(np.maximum(b * (1 + SAME_SEQUENCE * (q - 1)), 1.0), ROUTING_EXPONENT)
    products = [_products(matrix, rows, model.bytes_per_element, apart) for matrix in layer_matrices]
    if expansion:
        products = [replace(one, rows=expansion[0]) if one.matrix.name == "kv_up" else one for one in products]
    halves, width = model.num_mixers + model.num_mlps, model.d_model * model.bytes_per_element
    return Cost(
        products=(*products, _products(head, logit_rows, model.bytes_per_element, logit_rows)),
        attentions=tuple(work for works, _ in found for work in works),
        state=_state(model, shape, ends),
        elementwise=Work(np.zeros_like(rows), rows * (1 + 4 * halves) * width),
        logits_bytes=LOGITS_BYTES * logit_rows * head.outputs,
        allreduce_bytes=rows * width,
        num_allreduces=halves if tensor_parallel > 1 else 0,
        num_layers=halves / 2,
        num_expert_layers=model.num_expert_layers,
        num_state_layers=sum(layers for _, layers in model.recurrents),
        query_len=q,
        scans=tuple(Scan(n, np.ceil(b * kind.heads / tensor_parallel), np.floor(q / SCAN_CHUNK)) for kind, n in model.recurrents),
    )


def _state(model: TransformerConfig, shape: PassShape, ends: Array) -> Work:
    """Recurrent states: read once per sequence, and written after every token at which generation may go on.

    Those are the positions with logits: one of a prompt, all of a verification, whose draft tokens may be taken back.
    """
    if not model.recurrents:
        return NO_WORK
    flop = sum(layers * kind.flop_per_token for kind, layers in model.recurrents) / shape.gpus
    held = state_bytes_per_gpu(model, shape.gpus)
    channels = sum(layers * kind.conv_channels for kind, layers in model.recurrents) / shape.gpus
    return Work(shape.rows * flop, shape.b * held * (1 + ends) + shape.rows * (SCAN_PASSES * channels * model.bytes_per_element))


def _products(matrix: Matrix, rows: Array, element: float, apart: Array) -> Products:
    if matrix.experts == 1:
        return Products(matrix, rows, np.ones_like(rows), element)
    copies = experts_touched(apart, matrix.experts, matrix.used)
    return Products(matrix, rows * matrix.used / np.maximum(copies, 1.0), copies, element)


def experts_touched(tokens: ArrayLike, num_experts: int, experts_per_token: int) -> Array:
    """Expected number of distinct experts, if tokens choose independently and uniformly.

    Args:
        tokens: Number of tokens; that of independent ones that reach as many experts, where tokens choose alike.
        num_experts: Experts per layer.
        experts_per_token: Experts chosen by each token.

    >>> float(experts_touched(1, 128, 8))
    8.0
    """
    return np.asarray(num_experts * (1 - np.power(1 - experts_per_token / num_experts, np.asarray(tokens, np.float64))))


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
