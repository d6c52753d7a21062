"""What fits: memory of one GPU, by what it is spent on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costmodel.forward import Array
from costmodel.hardware import HardwareProfile
from costmodel.transformer import TransformerConfig

USABLE_FRACTION = 0.95  # of the datasheet's GB, which on HBM parts are nearer GiB; the rest goes to driver, graphs and gaps
LOGITS_BYTES = 4.0  # engines hold logits in float32


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU by use. [bytes]

    Attributes:
        weights_bytes: Target.
        kv_bytes: Target's KV cache.
        draft_weights_bytes: A smaller draft model.
        draft_kv_bytes: The draft's own KV: a whole cache, or the copy of the entries it reads.
        activations_bytes: Widest intermediate results of a verification, and its logits.
    """

    weights_bytes: Array
    kv_bytes: Array
    draft_weights_bytes: Array
    draft_kv_bytes: Array
    activations_bytes: Array

    @property
    def total_bytes(self) -> Array:
        """All of it. [bytes]"""
        return self.weights_bytes + self.kv_bytes + self.draft_weights_bytes + self.draft_kv_bytes + self.activations_bytes

    def fits(self, hardware: HardwareProfile) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Whether it goes into the usable part of one GPU's memory."""
        return np.asarray(self.total_bytes <= USABLE_FRACTION * hardware.peak.memory_bytes)


def memory_of(
    target: TransformerConfig,
    *,
    batch_size: ArrayLike,
    max_context_len: ArrayLike,
    gamma: ArrayLike = 0,
    kv_budget: ArrayLike = np.inf,
    tensor_parallel: int = 1,
    draft: TransformerConfig | None = None,
    draft_tensor_parallel: int = 1,
    drafts: bool = False,
    head_sharded: bool = True,
) -> Memory:
    """Memory of one GPU while a batch is decoded.

    Args:
        target: The model that is served.
        batch_size: Sequences on these `tensor_parallel` GPUs.
        max_context_len: Longest context that is reached. [tokens]
        gamma: Draft tokens per round. [tokens]
        kv_budget: Entries a sparse draft reads, of which it keeps a copy; inf for all. [tokens]
        tensor_parallel: GPUs that share the target.
        draft: A smaller draft model, or None.
        draft_tensor_parallel: GPUs that share it.
        drafts: Something is drafted at all.
        head_sharded: The LM head is split over the GPUs too, not held by each.

    Left out: a prefill's activations beyond one chunk, fragmentation.
    """
    b, s, g, k = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (batch_size, max_context_len, gamma, kv_budget)))
    drafter = draft or target
    drafter_gpus = draft_tensor_parallel if draft else tensor_parallel
    sparse = np.isfinite(k)
    draft_tokens = np.where(sparse, np.minimum(s, k) + g, s + g if draft else 0.0) if drafts else 0 * s
    width = max(3 * target.d_ff / tensor_parallel, 4 * target.d_model)
    return Memory(
        weights_bytes=_weight_bytes_per_gpu(target, tensor_parallel, head_sharded) + 0 * s,
        kv_bytes=b * (s + g) * kv_bytes_per_token_per_gpu(target, tensor_parallel),
        draft_weights_bytes=(_weight_bytes_per_gpu(draft, draft_tensor_parallel, head_sharded) if draft else 0.0) + 0 * s,
        draft_kv_bytes=b * draft_tokens * kv_bytes_per_token_per_gpu(drafter, drafter_gpus),
        activations_bytes=b * (g + 1) * (width * target.bytes_per_element + target.vocab_size * LOGITS_BYTES),
    )


def _weight_bytes_per_gpu(model: TransformerConfig, tensor_parallel: int, head_sharded: bool) -> float:
    """Share of the weights that one GPU holds. [bytes]"""
    whole = 0.0 if head_sharded else model.embedding_params * model.bytes_per_element
    return whole + (model.weight_bytes - whole) / tensor_parallel


def kv_bytes_per_token_per_gpu(model: TransformerConfig, tensor_parallel: int) -> float:
    """Share of a token's keys and values that one GPU holds; heads that cannot be split are replicated. [bytes/token]"""
    heads = max(model.num_kv_heads / tensor_parallel, 1.0)
    return model.kv_bytes_per_token * heads / model.num_kv_heads
