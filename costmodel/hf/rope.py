"""Rotary embeddings: only the executor needs them; other families' variants are read over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .keys import Keys

Kind = Literal["linear", "llama3", "yarn"]


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

    kind: Kind
    factor: float
    original_context_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


def rope_of(keys: Keys, context: int, *, executable: bool) -> tuple[float | None, RopeScaling | None]:
    """Read the base of the rotary frequencies, and their scaling.

    Args:
        keys: The config.
        context: Longest supported context. [tokens]
        executable: The executor can run the family, so that a variant it does not know is refused.
    """
    rope = keys.part("rope_parameters", "rope_scaling")
    if rope is None:
        return None, None
    nested = [value for value in rope.raw.values() if isinstance(value, Mapping)]
    if nested and "factor" not in rope.raw and "rope_theta" not in rope.raw:
        if executable:
            rope.wrong("", "one set of rotary frequencies", "several")
        return None, None  # one set per kind of layer
    theta = rope.number(0.0, "rope_theta") or None
    kinds: dict[str, Kind] = {"linear": "linear", "llama3": "llama3", "yarn": "yarn"}
    word = rope.word("rope_type") or "default"
    key = "rope_type" if word != "default" else "type"
    word = rope.word("type") or "default" if word == "default" else word
    if executable:
        if rope.first("mscale", "mscale_all_dim") is not None:
            keys.wrong("rope_scaling", "no mscale: this variant of YaRN is not supported")
        if rope.raw.get("truncate") is False:
            keys.wrong("rope_scaling", "truncate true: the other variant of YaRN is not supported")
        if word not in (*kinds, "default", "mrope"):
            rope.wrong(key, "'default', 'linear', 'llama3' or 'yarn'")
    if word not in kinds:
        return theta, None
    if rope.first("factor") is None:
        rope.wrong("factor", "a value")
    factor = rope.number(1.0, "factor")
    if factor < 1:
        rope.wrong("factor", "at least 1")
    attention_factor = rope.number(0.0, "attention_factor", positive=False) if rope.first("attention_factor") else None
    return theta, RopeScaling(
        kind=kinds[word],
        factor=factor,
        original_context_len=rope.whole_or(None, "original_max_position_embeddings") or context,
        low_freq_factor=rope.number(1.0, "low_freq_factor"),
        high_freq_factor=rope.number(4.0, "high_freq_factor"),
        beta_fast=rope.number(32.0, "beta_fast", positive=False),
        beta_slow=rope.number(1.0, "beta_slow", positive=False),
        attention_factor=attention_factor,
    )
