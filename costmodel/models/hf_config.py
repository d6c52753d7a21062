"""Conversion of a Hugging Face `config.json` to a TransformerConfig; rejects features that the cost model does not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..base.files import read_text
from ..base.json_text import load_json_object
from .architecture import Experts, LatentAttention, RopeScaling
from .hf_schema import KINDS, HfConfig, Kind, trusted_config
from .transformer import TransformerConfig

ValueT = TypeVar("ValueT")
EXECUTABLE_FAMILIES = tuple(family for family, kind in KINDS.items() if kind.executable)


def parse_hf_config(raw: object, *, where: str, name: str) -> TransformerConfig:
    """Validate and convert a parsed Hugging Face `config.json`.

    Args:
        raw: The parsed JSON.
        where: The file, for error messages.
        name: Display name of the model.

    Raises:
        InputError: A key is missing or has the wrong type, or the model family is not supported.
    """
    from ..base.validation import validate_mapping  # pydantic is slow to import

    return _convert(validate_mapping(HfConfig, _text_part(raw), where), name)


def shipped_config(raw: Mapping[str, object], *, name: str) -> TransformerConfig:
    """Convert the `config.json` of a built-in model. Tests validate all of them, so that a start does not have to.

    Args:
        raw: The parsed JSON.
        name: Display name of the model.
    """
    return _convert(trusted_config(_text_part(raw)), name)


def _convert(hf: HfConfig, name: str) -> TransformerConfig:
    kind = KINDS[hf.model_type]
    quantised = hf.quantization_config.quant_method if hf.quantization_config else None
    window_layers = (hf.layer_types or []).count("sliding_attention") if kind.window == "some" else None
    biases = kind.qkv_bias and not (kind.bias_as_said and hf.attention_bias is False)
    latent = _latent(hf) if kind.latent else None
    head_dim = latent.nope_dim + latent.rope_dim if latent else hf.head_dim or hf.hidden_size // hf.num_attention_heads
    return TransformerConfig(
        name=name,
        family=hf.model_type,
        num_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads or hf.num_attention_heads,
        head_dim=head_dim,
        d_ff=hf.intermediate_size,
        vocab_size=hf.vocab_size,
        max_context_len=hf.max_position_embeddings,
        tied_embeddings=hf.tie_word_embeddings,
        qkv_bias=biases,
        o_bias=kind.o_bias and biases,
        qk_norm=kind.qk_norm,
        attention_sinks=kind.sinks,
        norms_per_layer=kind.norms,
        sliding_window=hf.sliding_window if kind.window != "none" else None,
        num_window_layers=window_layers,
        experts=_experts(hf, kind) if kind.experts else None,
        latent=latent,
        dtype=hf.dtype or hf.torch_dtype or "bfloat16",
        linear_dtype="fp8" if quantised == "fp8" else None,
        expert_dtype=quantised,
        rope_theta=float(hf.rope.rope_theta or hf.rope_theta),
        rope_scaling=_rope_scaling(hf),
        norm_eps=float(hf.rms_norm_eps),
    )


def _text_part(raw: Any) -> Any:
    """Extract the language model of a multimodal `config.json`; it keeps the family of the whole model."""
    if isinstance(raw, dict) and isinstance(raw.get("text_config"), dict):
        raw = {**raw, **raw["text_config"]}
    if isinstance(raw, dict) and raw.get("model_type") == "gemma3_text":
        known = {"tie_word_embeddings": True, "hidden_act": "silu"}  # Gemma sets gelu under another key; the cost is the same
        raw = {**known, **raw, "model_type": "gemma3"}
    return raw


def _latent(hf: HfConfig) -> LatentAttention:
    return LatentAttention(
        kv_rank=_given(hf.kv_lora_rank),
        rope_dim=_given(hf.qk_rope_head_dim),
        nope_dim=_given(hf.qk_nope_head_dim),
        value_dim=_given(hf.v_head_dim),
        q_rank=hf.q_lora_rank,
    )


def _given(value: ValueT | None) -> ValueT:
    """Assert that a value is present; the validator has checked the keys that each family needs."""
    assert value is not None
    return value


def _experts(hf: HfConfig, kind: Kind) -> Experts:
    width = hf.intermediate_size if kind.expert_width == "intermediate_size" else _given(hf.moe_intermediate_size)
    return Experts(
        num_experts=_given(hf.experts),
        experts_per_token=_given(hf.num_experts_per_tok),
        d_ff=width,
        d_ff_shared=hf.n_shared_experts * width,
        num_dense_layers=hf.first_k_dense_replace + len(hf.mlp_only_layers),
        bias=kind.expert_bias,
    )


def _rope_scaling(hf: HfConfig) -> RopeScaling | None:
    rope = hf.rope
    kind = rope.kind
    if kind == "default":
        return None
    return RopeScaling(
        kind=kind,
        factor=float(rope.factor),
        original_context_len=rope.original_max_position_embeddings or hf.max_position_embeddings,
        low_freq_factor=float(rope.low_freq_factor),
        high_freq_factor=float(rope.high_freq_factor),
        beta_fast=float(rope.beta_fast),
        beta_slow=float(rope.beta_slow),
        attention_factor=None if rope.attention_factor is None else float(rope.attention_factor),
    )


def load_config(path: str | Path, *, name: str | None = None) -> TransformerConfig:
    """Read a `config.json`, or the one in a checkpoint directory.

    Args:
        path: The file or the directory.
        name: Display name of the model; the directory name by default.

    Raises:
        InputError: The file cannot be read or is not JSON, or the model is not supported.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    raw = load_json_object(read_text(file, "config.json"), str(file), "config.json", finite=False)
    return parse_hf_config(raw, where=str(file), name=name or (path.name if path.is_dir() else path.parent.name))
