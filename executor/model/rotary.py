"""Rotary position embedding and its stretching for long contexts.

Shapes: B batch, T query tokens, N heads, H head dim, P positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from magicdec.costmodel.models.architecture import RopeScaling
from magicdec.costmodel.models.transformer import TransformerConfig


def rotate(x_BNTH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Apply the rotary embedding, in the half-split layout of Hugging Face checkpoints.

    Args:
        x_BNTH: Queries or keys.
        cos_BTH, sin_BTH: Rows of the rotary tables at the positions of the tokens.

    Source:
        RoFormer (arXiv 2104.09864), eq. 34.
    """
    cos, sin = cos_BTH.unsqueeze(-3), sin_BTH.unsqueeze(-3)
    first, second = x_BNTH.chunk(2, dim=-1)
    return x_BNTH * cos + torch.cat((-second, first), dim=-1) * sin


def rope_tables(config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position up to the model's maximum context, each [P, H] in float64."""
    frequencies, factor = rope_frequencies(config)
    angles_PH = torch.outer(torch.arange(config.max_context_len, dtype=torch.float64), frequencies).repeat(1, 2)
    return (angles_PH.cos() * factor), (angles_PH.sin() * factor)


def rope_frequencies(config: TransformerConfig) -> tuple[Tensor, float]:
    """Angular frequency of each pair of dimensions, and the factor on cosine and sine.

    Returns:
        Frequencies of shape [H / 2] [rad/token], and the factor.

    Source:
        RoFormer (arXiv 2104.09864); Llama 3.1 and YaRN (arXiv 2309.00071) scaling as in Hugging Face transformers.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    unscaled = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return unscaled, 1.0
    if scaling.kind == "linear":
        return unscaled / scaling.factor, 1.0
    original_len = scaling.original_context_len or config.max_context_len
    if scaling.kind == "llama3":
        periods = original_len * unscaled / (2 * math.pi)
        kept = (periods - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = kept.clamp(0, 1)
        return unscaled * kept + unscaled / scaling.factor * (1 - kept), 1.0
    return _yarn_frequencies(config, scaling, unscaled, original_len)


def _yarn_frequencies(config: TransformerConfig, scaling: RopeScaling, unscaled: Tensor, original_len: int) -> tuple[Tensor, float]:
    """YaRN keeps the high frequencies, divides the low ones by the factor, and blends between the two."""

    def dimension_of(periods: float) -> float:
        """The dimension that turns so many times over the original context."""
        return config.head_dim * math.log(original_len / (periods * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), config.head_dim - 1)
    ramp = (torch.arange(config.head_dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
    kept = 1 - ramp.clamp(0, 1)
    factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    return unscaled * kept + unscaled / scaling.factor * (1 - kept), factor
