"""Counts: what one forward pass computes and moves on each GPU, by class of operator. Knows no hardware.

One pass shape describes every phase: prefill is (B, prompt_len, 0), decode (B, 1, S), verify (B, gamma + 1, S),
a sparse draft step is decode whose read context is capped at the KV budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.transformer import TransformerConfig

Array = NDArray[np.float64]
MATRIX_CLASSES = ("projections", "mlp", "head")


@dataclass(frozen=True)
class Work:
    """What one class of operators does in a pass, on one GPU.

    Attributes:
        flop: Matrix products only, 2 per multiply-add. [FLOP]
        bytes: Read and written. [bytes]
    """

    flop: Array
    bytes: Array


@dataclass(frozen=True)
class Cost:
    """One forward pass on one of `tensor_parallel` GPUs; every field broadcasts over the pass shapes.

    Attributes:
        projections: q, k, v and o projections.
        mlp: Gate, up and down projections.
        head: LM head, and the logits it writes.
        attention: Products with cached and new keys and values, causal pairs only; bytes are the KV entries read and written.
        elementwise: Embedding rows, norms, rotary, residuals: traffic of activations, no FLOP counted.
        attention_blocks: Independent (sequence, KV head) pairs that an attention kernel can place on different processors.
        query_len: New tokens per sequence. [tokens]
        query_rows: Queries that share one read of a (sequence, KV head): query_len times query heads per KV head.
        read_len: KV entries read per sequence. [tokens]
        allreduce_bytes: Payload of one all-reduce. [bytes]
        num_allreduces: All-reduces in the pass; 0 without tensor parallelism.
        num_layers: Layers passed, for overhead per layer.
    """

    projections: Work
    mlp: Work
    head: Work
    attention: Work
    elementwise: Work
    attention_blocks: Array
    query_len: Array
    query_rows: Array
    read_len: Array
    allreduce_bytes: Array
    num_allreduces: int
    num_layers: int

    @property
    def flop(self) -> Array:
        """All matrix products. [FLOP]"""
        return self.projections.flop + self.mlp.flop + self.head.flop + self.attention.flop

    @property
    def bytes(self) -> Array:
        """All traffic. [bytes]"""
        matrices = self.projections.bytes + self.mlp.bytes + self.head.bytes
        return matrices + self.attention.bytes + self.elementwise.bytes

    @property
    def arithmetic_intensity(self) -> Array:
        """FLOP per byte of the pass. [FLOP/byte]"""
        return self.flop / self.bytes


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
    """FLOP and bytes of one forward pass on one GPU.

    Counts matrix products only, 2*m*k*n FLOP each, and of attention only the pairs that causality allows.
    Weights are read once a pass, KV entries once a pass whatever `query_len` is: how often a kernel really
    reads them is a matter of price. Left out: softmax, norms, rotary embedding and sampling FLOP.

    Args:
        model: The transformer.
        batch_size: Sequences decoded together.
        query_len: New tokens per sequence. [tokens]
        context_len: Tokens already in the KV cache, per sequence. [tokens]
        kv_budget: Most cached entries that are read, per sequence. [tokens]
        logits_len: Positions whose logits are computed; None for all new ones. [tokens]
        tensor_parallel: GPUs that share the pass. Where there are fewer KV heads than GPUs they are replicated.
        head_sharded: The LM head is split over the GPUs too, not replicated.

    Returns:
        Cost by operator class; each field broadcasts over the inputs. [FLOP, bytes]

    Source:
        MagicDec (arXiv 2408.11049), section 3.
    """
    b, q, s = (np.asarray(x, dtype=np.float64) for x in (batch_size, query_len, context_len))
    b, q, s = np.broadcast_arrays(b, q, s)
    reach = np.inf if model.sliding_window is None else float(model.sliding_window) - 1  # a token's own is within the window
    read = np.minimum(np.minimum(s, np.asarray(kv_budget, dtype=np.float64)), reach)
    beyond = np.maximum(read + q - 1 - reach, 0)  # pairs that causality allows and the window does not
    pairs = q * read + q * (q + 1) / 2 - beyond * (beyond + 1) / 2
    element = model.bytes_per_element
    layers, tp = model.num_layers, tensor_parallel
    rows = b * q
    kv_heads = max(model.num_kv_heads / tp, 1.0)
    kv_width = kv_heads * model.head_dim
    query_width = model.d_attention / tp
    attention_params = model.d_model * (2 * query_width + 2 * kv_width)
    head_params = model.embedding_params / (tp if head_sharded else 1)
    logit_rows = rows if logits_len is None else b * np.asarray(logits_len, dtype=np.float64)

    def matrix(params: float, rows: Array, activation_width: float) -> Work:
        return Work(2 * rows * params, params * element + 0 * rows + rows * activation_width * element)

    return Cost(
        projections=matrix(layers * attention_params, rows, layers * 2 * (query_width + kv_width)),
        mlp=matrix(layers * model.mlp_params / tp, rows, layers * 3 * model.d_ff / tp),
        head=matrix(head_params, logit_rows, head_params / model.d_model),
        attention=Work(
            flop=layers * b * pairs * 4 * query_width,
            bytes=layers * b * (read + q) * 2 * kv_width * element,
        ),
        elementwise=Work(0 * rows, rows * (1 + 8 * layers) * model.d_model * element),
        attention_blocks=b * kv_heads,
        query_len=q + 0 * read,
        query_rows=q * (model.num_heads / tp / kv_heads),
        read_len=read + q,
        allreduce_bytes=rows * model.d_model * element,
        num_allreduces=2 * layers if tp > 1 else 0,
        num_layers=layers,
    )
