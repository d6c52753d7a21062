"""Parts in which transformers differ: stretched positions, experts, latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context a model was first trained on.

    Attributes:
        kind: `linear`, `llama3` or `yarn`.
        factor: Stretch of the context.
        original_context_len: Context before stretching. [tokens]
        low_freq_factor, high_freq_factor: Llama 3 only: where the blend between kept and stretched frequencies lies.
        beta_fast, beta_slow: YaRN only: the same, in rotations over the original context.
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
    """Layers whose MLP is a mixture of experts.

    Attributes:
        num_experts: Experts of a layer.
        experts_per_token: How many of them a token passes through.
        d_ff: Width of one expert.
        d_ff_shared: Width of the experts that every token passes through besides; 0 for none.
        num_dense_layers: Layers that have a plain MLP instead.
        bias: Router and experts have biases.
    """

    num_experts: int
    experts_per_token: int
    d_ff: int
    d_ff_shared: int = 0
    num_dense_layers: int = 0
    bias: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: keys and values are expanded from a small vector per token, which is what the cache holds.

    Attributes:
        kv_rank: Width of that vector.
        rope_dim: Width of the key part that carries the position, shared by all heads and cached too.
        nope_dim: Width of the other part of a head's key.
        value_dim: Width of a head's value.
        q_rank: Width that queries are compressed to; None for no compression.

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
        """Elements the cache holds per token and layer."""
        return self.kv_rank + self.rope_dim
