"""What fits: memory of one GPU, by what it is spent on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..hardware.profile import HardwareProfile
from ..models.transformer import TransformerConfig
from ..passes.forward import LOGITS_BYTES, Array
from .drafts import NO_DRAFT, Draft, draft_memory, kv_bytes_per_gpu

USABLE_FRACTION = 0.95  # of the datasheet's GB, which on HBM parts are nearer GiB; the rest goes to driver, graphs and gaps


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU by use; the arrays broadcast. [bytes]

    Attributes:
        weights_bytes: Target.
        kv_bytes: Target's KV cache.
        draft_weights_bytes: A smaller draft model, a prediction head, or a compressed copy of the target.
        draft_kv_bytes: The draft's own KV: a whole cache, or the copy of the entries it reads, and an index of them.
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
        return np.asarray(self.total_bytes <= usable_bytes(hardware))


def usable_bytes(hardware: HardwareProfile) -> float:
    """Memory of one GPU that an engine may fill. [bytes]"""
    return USABLE_FRACTION * hardware.peak.memory_bytes


def memory_of(
    target: TransformerConfig,
    *,
    batch_size: ArrayLike,
    max_context_len: ArrayLike,
    gamma: ArrayLike = 0,
    kv_budget: ArrayLike = np.inf,
    tensor_parallel: int = 1,
    draft: Draft = NO_DRAFT,
    head_sharded: bool = True,
) -> Memory:
    """Memory of one GPU while a batch is decoded.

    Args:
        target: The model that is served.
        batch_size: Sequences on these `tensor_parallel` GPUs.
        max_context_len: Longest context that is reached. [tokens]
        gamma: Draft tokens per round. [tokens]
        kv_budget: Entries a sparse draft reads; inf for all. [tokens]
        tensor_parallel: GPUs that share the target.
        draft: What drafts.
        head_sharded: The LM head is split over the GPUs too, not held by each.

    Left out: a prefill's activations beyond one chunk, fragmentation.
    """
    b, s, g, k = (np.asarray(x, np.float64) for x in (batch_size, max_context_len, gamma, kv_budget))
    per_sequence, draft_weights = draft_memory(
        draft,
        target,
        max_context_len=s,
        kv_budget=k,
        gamma=g,
        tensor_parallel=tensor_parallel,
        head_sharded=head_sharded,
    )
    widest = max(3 * target.d_ff / tensor_parallel, 4 * target.d_model) * target.bytes_per_element
    return Memory(
        weights_bytes=np.asarray(target.weight_bytes_per_gpu(tensor_parallel, head_sharded=head_sharded)),
        kv_bytes=b * kv_bytes_per_gpu(target, s + g, tensor_parallel),
        draft_weights_bytes=np.asarray(draft_weights),
        draft_kv_bytes=b * per_sequence,
        activations_bytes=b * (g + 1) * (widest + target.vocab_size * LOGITS_BYTES),
    )
