"""Conversion of a Hugging Face `config.json` to a TransformerConfig; rejects features that the cost model does not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from ..base.errors import InputError, Problem, bad
from ..base.files import read_text
from ..base.validation import from_pydantic
from .architecture import Experts, LatentAttention, RopeScaling
from .transformer import Family, TransformerConfig

_Dtype = Literal["float64", "float32", "bfloat16", "float16"]
_Positive = pydantic.PositiveInt
ValueT = TypeVar("ValueT")


class _HfRope(pydantic.BaseModel):
    """`rope_scaling`, called `rope_parameters` in newer checkpoints."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, defer_build=True)

    rope_type: Literal["default", "linear", "llama3", "yarn"] = pydantic.Field(
        "default", validation_alias=pydantic.AliasChoices("rope_type", "type")
    )
    rope_theta: pydantic.PositiveFloat | None = None
    factor: float = pydantic.Field(1.0, ge=1.0)
    original_max_position_embeddings: _Positive | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class _HfQuantization(pydantic.BaseModel):
    """`quantization_config`, limited to the formats of the built-in models."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, defer_build=True)
    quant_method: Literal["fp8", "mxfp4"]


class _HfConfig(pydantic.BaseModel):
    """The relevant keys of a `config.json`; all others are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True, defer_build=True)

    model_type: Family
    num_hidden_layers: _Positive
    hidden_size: _Positive
    num_attention_heads: _Positive
    num_key_value_heads: _Positive | None = None
    head_dim: _Positive | None = None
    intermediate_size: _Positive
    vocab_size: _Positive
    max_position_embeddings: _Positive
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None
    mlp_bias: bool = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: _Positive | None = None
    use_sliding_window: bool = False
    layer_types: list[Literal["sliding_attention", "full_attention"]] | None = None
    torch_dtype: _Dtype | None = None
    dtype: _Dtype | None = None
    rope_theta: pydantic.PositiveFloat = 10000.0
    rope_scaling: _HfRope | None = None
    rope_parameters: _HfRope | None = None
    rms_norm_eps: pydantic.PositiveFloat = 1e-6
    quantization_config: _HfQuantization | None = None
    num_experts: _Positive | None = pydantic.Field(
        None, validation_alias=pydantic.AliasChoices("num_experts", "num_local_experts", "n_routed_experts")
    )
    num_experts_per_tok: _Positive | None = None
    moe_intermediate_size: _Positive | None = None
    n_shared_experts: pydantic.NonNegativeInt = 0
    first_k_dense_replace: pydantic.NonNegativeInt = 0
    mlp_only_layers: list[pydantic.NonNegativeInt] = []
    decoder_sparse_step: Literal[1] = 1
    kv_lora_rank: _Positive | None = None
    q_lora_rank: _Positive | None = None
    qk_rope_head_dim: _Positive | None = None
    qk_nope_head_dim: _Positive | None = None
    v_head_dim: _Positive | None = None

    @property
    def rope(self) -> _HfRope:
        return self.rope_parameters or self.rope_scaling or _HfRope.model_validate({})

    @pydantic.model_validator(mode="after")
    def _keys_agree(self) -> _HfConfig:
        kind = _KINDS[self.model_type]
        problems: list[Problem] = []

        def wrong(key: str, expected: str) -> None:
            problems.append(Problem("", key, expected, repr(getattr(self, key))))

        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            wrong("num_attention_heads", f"a multiple of num_key_value_heads ({self.num_key_value_heads})")
        if self.head_dim is None and not kind.latent and self.hidden_size % self.num_attention_heads:
            wrong("hidden_size", f"a multiple of num_attention_heads ({self.num_attention_heads}) where head_dim is not given")
        if not kind.may_have_bias and (self.attention_bias or self.mlp_bias):
            wrong("attention_bias" if self.attention_bias else "mlp_bias", f"false for model_type {self.model_type!r}")
        if self.model_type.startswith("qwen") and self.use_sliding_window:
            wrong("use_sliding_window", "false for Qwen models: sliding windows on some layers are not supported")
        if not kind.quantised and self.quantization_config is not None:
            wrong("quantization_config", f"none for model_type {self.model_type!r} (set `weight_dtype` instead)")
        if kind.window == "some" and len(self.layer_types or ()) != self.num_hidden_layers:
            wrong("layer_types", f"sliding_attention or full_attention for each of the {self.num_hidden_layers} layers")
        if kind.window == "some" and "sliding_attention" in (self.layer_types or ()) and self.sliding_window is None:
            wrong("sliding_window", "the window of the sliding_attention layers, in tokens")
        if kind.executable:
            if self.rope.mscale is not None or self.rope.mscale_all_dim is not None:
                wrong("rope_scaling", "no mscale: this variant of YaRN is not supported")
            if not self.rope.truncate:
                wrong("rope_scaling", "truncate true: the other variant of YaRN is not supported")
        needed: tuple[str, ...] = ("num_experts", "num_experts_per_tok") if kind.experts else ()
        needed += ("moe_intermediate_size",) if kind.expert_width == "moe_intermediate_size" else ()
        needed += ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim") if kind.latent else ()
        for key in needed:
            if getattr(self, key) is None:
                wrong(key, f"a value for model_type {self.model_type!r}")
        if (self.num_experts_per_tok or 0) > (self.num_experts or self.num_experts_per_tok or 0):
            wrong("num_experts_per_tok", f"at most num_experts ({self.num_experts})")
        if self.first_k_dense_replace > self.num_hidden_layers:
            wrong("first_k_dense_replace", f"at most num_hidden_layers ({self.num_hidden_layers})")
        if (
            len(set(self.mlp_only_layers)) != len(self.mlp_only_layers)
            or max(self.mlp_only_layers, default=0) >= self.num_hidden_layers
        ):
            wrong("mlp_only_layers", f"distinct layer indices below num_hidden_layers ({self.num_hidden_layers})")
        if problems:
            raise InputError(*problems)
        return self


@dataclass(frozen=True)
class _Kind:
    """Architecture of a model family, where it differs from Llama and config.json does not say so.

    Attributes:
        qkv_bias, o_bias: The projections have biases.
        sinks: Each head has a learned attention sink.
        qk_norm: Query and key heads are RMS-normalised.
        norms: RMS norms per layer.
        window: Layers with a sliding window.
        experts: The MLP is a mixture of experts.
        expert_width: Key with the hidden width of an expert.
        expert_bias: Router and experts have biases.
        latent: The attention is multi-head latent attention.
        may_have_bias: `attention_bias` may be true.
        bias_as_said: `attention_bias` false removes the biases.
        quantised: Checkpoints may be quantised.
        executable: The executor can run the family.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    sinks: bool = False
    qk_norm: bool = False
    norms: int = 2
    window: Literal["none", "all", "some"] = "none"
    experts: bool = False
    expert_width: Literal["intermediate_size", "moe_intermediate_size"] = "intermediate_size"
    expert_bias: bool = False
    latent: bool = False
    may_have_bias: bool = False
    bias_as_said: bool = False
    quantised: bool = False
    executable: bool = False


_KINDS: dict[Family, _Kind] = {
    "llama": _Kind(executable=True),
    "mistral": _Kind(window="all", executable=True),
    "qwen2": _Kind(qkv_bias=True, may_have_bias=True, executable=True),
    "qwen3": _Kind(qk_norm=True, executable=True),
    "mixtral": _Kind(window="all", experts=True),
    "qwen3_moe": _Kind(qk_norm=True, experts=True, expert_width="moe_intermediate_size"),
    "deepseek_v3": _Kind(experts=True, expert_width="moe_intermediate_size", latent=True, quantised=True),
    "gpt_oss": _Kind(
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        window="some",
        experts=True,
        expert_bias=True,
        may_have_bias=True,
        bias_as_said=True,
        quantised=True,
    ),
    "gemma3": _Kind(qk_norm=True, norms=4, window="some"),
}
EXECUTABLE_FAMILIES = tuple(family for family, kind in _KINDS.items() if kind.executable)


def parse_hf_config(raw: object, *, where: str, name: str) -> TransformerConfig:
    """Convert a parsed Hugging Face `config.json`.

    Args:
        raw: The parsed JSON.
        where: The file, for error messages.
        name: Display name of the model.

    Raises:
        InputError: A key is missing or has the wrong type, or the model family is not supported.
    """
    try:
        hf = _HfConfig.model_validate(_text_part(raw))
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    kind = _KINDS[hf.model_type]
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
        rope_theta=hf.rope.rope_theta or hf.rope_theta,
        rope_scaling=_rope_scaling(hf),
        norm_eps=hf.rms_norm_eps,
    )


def _text_part(raw: object) -> object:
    """Extract the language model of a multimodal `config.json`; it keeps the family of the whole model."""
    if isinstance(raw, dict) and isinstance(raw.get("text_config"), dict):
        raw = {**raw, **raw["text_config"]}
    if isinstance(raw, dict) and raw.get("model_type") == "gemma3_text":
        known = {"tie_word_embeddings": True, "hidden_act": "silu"}  # Gemma sets gelu under another key; the cost is the same
        raw = {**known, **raw, "model_type": "gemma3"}
    return raw


def _latent(hf: _HfConfig) -> LatentAttention:
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


def _experts(hf: _HfConfig, kind: _Kind) -> Experts:
    width = hf.intermediate_size if kind.expert_width == "intermediate_size" else _given(hf.moe_intermediate_size)
    return Experts(
        num_experts=_given(hf.num_experts),
        experts_per_token=_given(hf.num_experts_per_tok),
        d_ff=width,
        d_ff_shared=hf.n_shared_experts * width,
        num_dense_layers=hf.first_k_dense_replace + len(hf.mlp_only_layers),
        bias=kind.expert_bias,
    )


def _rope_scaling(hf: _HfConfig) -> RopeScaling | None:
    rope = hf.rope
    if rope.rope_type == "default":
        return None
    return RopeScaling(
        kind=rope.rope_type,
        factor=rope.factor,
        original_context_len=rope.original_max_position_embeddings or hf.max_position_embeddings,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        attention_factor=rope.attention_factor,
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
    text = read_text(file, "config.json")
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise bad(file, "", "JSON", error) from None
    return parse_hf_config(raw, where=str(file), name=name or (path.name if path.is_dir() else path.parent.name))
