"""Memory of one GPU by use, and whether a batch fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..base.arrays import as_floats
from ..hardware.profile import HardwareProfile
from ..models.transformer import TransformerConfig
from ..passes.cache import kv_bytes_per_gpu, state_bytes_per_gpu
from ..passes.forward import LOGITS_BYTES, Array, BoolArray
from .drafts import NO_DRAFT, Draft, draft_memory

USABLE_FRACTION = 0.95  # of the datasheet GB (closer to GiB on HBM parts); the rest is for driver, CUDA graphs and fragmentation


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU by use; arrays broadcast. [bytes]

    Attributes:
        weights_bytes: Weights of the target.
        kv_bytes: KV cache of the target, and its recurrent states: one, and one more for each draft token.
        draft_weights_bytes: A smaller draft model, a prediction head, or a compressed copy of the target.
        draft_kv_bytes: The draft's own KV cache, or its copy of the entries it reads, including the index.
        activations_bytes: Largest activations of a verification pass, and its logits.
    """

    weights_bytes: Array
    kv_bytes: Array
    draft_weights_bytes: Array
    draft_kv_bytes: Array
    activations_bytes: Array

    @property
    def total_bytes(self) -> Array:
        """Sum of all parts. [bytes]"""
        return self.weights_bytes + self.kv_bytes + self.draft_weights_bytes + self.draft_kv_bytes + self.activations_bytes

    def fits(self, hardware: HardwareProfile) -> BoolArray:
        """True where the total fits in the usable memory of one GPU."""
        return np.asarray(self.total_bytes <= usable_bytes(hardware))


def usable_bytes(hardware: HardwareProfile) -> float:
    """Memory of one GPU that an engine can use. [bytes]"""
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

    Not modelled: prefill activations beyond one chunk, and fragmentation.

    Args:
        target: The served model.
        batch_size: Sequences of the replica.
        max_context_len: Longest context. [tokens]
        gamma: Draft tokens per round. [tokens]
        kv_budget: KV entries the draft reads; inf for all. [tokens]
        tensor_parallel: GPUs that share the target.
        draft: The draft.
        head_sharded: The LM head is split over the GPUs; otherwise each GPU holds all of it.
    """
    given = {"batch_size": batch_size, "context_len": max_context_len, "gamma": gamma, "kv_budget": kv_budget}
    b, s, g, k = (as_floats(name, value) for name, value in given.items())
    per_sequence, draft_weights = draft_memory(
        draft,
        target,
        max_context_len=s,
        kv_budget=k,
        gamma=g,
        tensor_parallel=tensor_parallel,
        head_sharded=head_sharded,
    )
    widest = max(target.widest_mlp / tensor_parallel, 4 * target.d_model) * target.bytes_per_element
    states = (g + 1) * state_bytes_per_gpu(target, tensor_parallel)
    return Memory(
        weights_bytes=np.asarray(target.weight_bytes_per_gpu(tensor_parallel, head_sharded=head_sharded)),
        kv_bytes=b * (kv_bytes_per_gpu(target, s + g, tensor_parallel) + states),
        draft_weights_bytes=np.asarray(draft_weights),
        draft_kv_bytes=b * per_sequence,
        activations_bytes=b * (g + 1) * (widest + target.vocab_size * LOGITS_BYTES),
    )
