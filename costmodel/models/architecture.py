"""Optional parts of a transformer: RoPE scaling, mixture of experts, latent attention."""

from __future__ import annotations

from dataclasses import dataclass

from ..hf.rope import RopeScaling

__all__ = ["Experts", "LatentAttention", "RopeScaling", "StoredWeights"]


@dataclass(frozen=True)
class Experts:
    """Mixture of experts in place of the MLP.

    Attributes:
        num_experts: Routed experts per layer.
        experts_per_token: Routed experts that process each token.
        d_ff: Hidden width of one expert.
        d_ff_shared: Total hidden width of the shared experts, which process every token; 0 for none.
        num_dense_layers: Layers with a dense MLP instead.
        bias: Whether router and experts have biases.
    """

    num_experts: int
    experts_per_token: int
    d_ff: int
    d_ff_shared: int = 0
    num_dense_layers: int = 0
    bias: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: the cache holds one small latent vector per token, from which keys and values are computed.

    Attributes:
        kv_rank: Width of the latent vector.
        rope_dim: Width of the rotary part of the key, shared by all heads and cached too.
        nope_dim: Width of the non-rotary part of each head's key.
        value_dim: Width of each head's value.
        q_rank: Width of the compressed query; None for no compression.

    Source:
        DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None

    @property
    def cached_width(self) -> int:
        """Cached elements per token and layer."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True)
class StoredWeights:
    """What the weight files of a checkpoint hold, prediction modules left out.

    Attributes:
        bytes_by_type: Size of the tensors by storage type; empty if only their total is known. [bytes]
        unlisted_bytes: What they have beyond the matrices and vectors that the layers list, such as scales; negative where a part
            of a matrix is stored in a smaller type than the rest. [bytes]
    """

    bytes_by_type: tuple[tuple[str, float], ...] = ()
    unlisted_bytes: float = 0.0
