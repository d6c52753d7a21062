"""Optional parts of a transformer: RoPE scaling, mixture of experts, latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling: extends rotary embeddings beyond the original training context.

    Attributes:
        kind: `linear`, `llama3` or `yarn`.
        factor: Context extension factor.
        original_context_len: Context before scaling. [tokens]
        low_freq_factor, high_freq_factor: Llama 3 only: bounds of the blend between original and scaled frequencies.
        beta_fast, beta_slow: YaRN only: the same bounds, in rotations over the original context.
        attention_factor: YaRN only: factor on cosine and sine; None for 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


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
