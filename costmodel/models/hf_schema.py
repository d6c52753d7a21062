"""The keys of a Hugging Face `config.json` that are read, and checks that they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..base.errors import InputError, Problem
from ..base.limits import MAX_TOKENS
from ..base.records import Limits
from .transformer import Family

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
RopeType = Literal["default", "linear", "llama3", "yarn"]
# Far beyond any model; products of sizes stay within a float64.
MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000
Size = Annotated[int, Limits(gt=0, le=MAX_SIZE)]
# Other keys are ignored; those that are read are not converted.
STRICT_KEYS: dict[str, object] = {"extra": "ignore", "strict": True}


@dataclass(frozen=True, eq=False, repr=False)
class Kind:
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


KINDS: dict[Family, Kind] = {
    "llama": Kind(executable=True),
    "mistral": Kind(window="all", executable=True),
    "qwen2": Kind(qkv_bias=True, may_have_bias=True, executable=True),
    "qwen3": Kind(qk_norm=True, executable=True),
    "mixtral": Kind(window="all", experts=True),
    "qwen3_moe": Kind(qk_norm=True, experts=True, expert_width="moe_intermediate_size"),
    "deepseek_v3": Kind(experts=True, expert_width="moe_intermediate_size", latent=True, quantised=True),
    "gpt_oss": Kind(
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
    "gemma3": Kind(qk_norm=True, norms=4, window="some"),
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HfRope:
    """`rope_scaling`, called `rope_parameters` in newer checkpoints. `type` is the old name of `rope_type`."""

    rope_type: RopeType = "default"
    type: RopeType = "default"
    rope_theta: Annotated[float, Limits(gt=0.0)] | None = None
    factor: Annotated[float, Limits(ge=1.0)] = 1.0
    original_max_position_embeddings: Size | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    __pydantic_config__ = STRICT_KEYS

    @property
    def kind(self) -> RopeType:
        """The scaling, by its new or old key."""
        return self.type if self.rope_type == "default" else self.rope_type


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HfQuantization:
    """`quantization_config`, limited to the formats of the built-in models."""

    quant_method: Literal["fp8", "mxfp4"]

    __pydantic_config__ = STRICT_KEYS


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HfConfig:
    """The relevant keys of a `config.json`; all others are ignored.

    Raises:
        InputError: Keys contradict each other, or one that the family needs is missing.
    """

    model_type: Family
    num_hidden_layers: Annotated[int, Limits(gt=0, le=MAX_LAYERS)]
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Annotated[int, Limits(gt=0, le=MAX_TOKENS)]
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None
    mlp_bias: bool = False
    hidden_act: Literal["silu"] = "silu"
    sliding_window: Size | None = None
    use_sliding_window: bool = False
    layer_types: list[Literal["sliding_attention", "full_attention"]] | None = None
    torch_dtype: Dtype | None = None
    dtype: Dtype | None = None
    rope_theta: Annotated[float, Limits(gt=0.0)] = 10000.0
    rope_scaling: HfRope | None = None
    rope_parameters: HfRope | None = None
    rms_norm_eps: Annotated[float, Limits(gt=0.0)] = 1e-6
    quantization_config: HfQuantization | None = None
    num_experts: Size | None = None
    num_local_experts: Size | None = None  # another name of num_experts, as is the next one
    n_routed_experts: Size | None = None
    num_experts_per_tok: Size | None = None
    moe_intermediate_size: Size | None = None
    n_shared_experts: Annotated[int, Limits(ge=0, le=MAX_SIZE)] = 0
    first_k_dense_replace: Annotated[int, Limits(ge=0, le=MAX_SIZE)] = 0
    mlp_only_layers: list[Annotated[int, Limits(ge=0, le=MAX_SIZE)]] = field(default_factory=list)
    decoder_sparse_step: Literal[1] = 1
    kv_lora_rank: Size | None = None
    q_lora_rank: Size | None = None
    qk_rope_head_dim: Size | None = None
    qk_nope_head_dim: Size | None = None
    v_head_dim: Size | None = None

    __pydantic_config__ = STRICT_KEYS

    @property
    def rope(self) -> HfRope:
        """RoPE scaling, by its new or old key."""
        return self.rope_parameters or self.rope_scaling or HfRope()

    @property
    def experts(self) -> int | None:
        """Number of routed experts, by any of its names."""
        return self.num_experts or self.num_local_experts or self.n_routed_experts

    def __post_init__(self) -> None:
        kind = KINDS[self.model_type]
        problems: list[Problem] = []

        def wrong(key: str, expected: str) -> None:
            problems.append(Problem("config.json", key, expected, repr(getattr(self, key))))

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
            if (self.experts if key == "num_experts" else getattr(self, key)) is None:
                wrong(key, f"a value for model_type {self.model_type!r}")
        if (self.num_experts_per_tok or 0) > (self.experts or self.num_experts_per_tok or 0):
            wrong("num_experts_per_tok", f"at most num_experts ({self.experts})")
        if self.first_k_dense_replace > self.num_hidden_layers:
            wrong("first_k_dense_replace", f"at most num_hidden_layers ({self.num_hidden_layers})")
        if (
            len(set(self.mlp_only_layers)) != len(self.mlp_only_layers)
            or max(self.mlp_only_layers, default=0) >= self.num_hidden_layers
        ):
            wrong("mlp_only_layers", f"distinct layer indices below num_hidden_layers ({self.num_hidden_layers})")
        if problems:
            raise InputError(*problems)


def trusted_config(raw: Mapping[str, Any]) -> HfConfig:
    """Take the relevant keys of a shipped `config.json`, without validation of their types."""
    given = {key: raw[key] for key in HfConfig.__dataclass_fields__ if key in raw}
    for key in ("rope_scaling", "rope_parameters"):
        if given.get(key) is not None:
            given[key] = HfRope(**{part: given[key][part] for part in HfRope.__dataclass_fields__ if part in given[key]})
    if given.get("quantization_config") is not None:
        given["quantization_config"] = HfQuantization(quant_method=given["quantization_config"]["quant_method"])
    return HfConfig(**given)
