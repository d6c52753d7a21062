"""Model families: what the architecture of each has that its `config.json` does not say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..layers.attention import QkNorm

Linear = Literal["none", "delta", "kimi", "lightning", "mamba1", "mamba2", "convolution"]
Pattern = Literal["none", "all", "types"]


@dataclass(eq=False, repr=False)  # not frozen: ninety of them are made at every start
class Family:
    """Architecture of a model family, where it differs from Llama and `config.json` does not say so.

    Where a bias is a text, it is the key that says whether there is one.

    Attributes:
        qkv_bias, o_bias, mlp_bias: The projections have biases.
        bias_default: What such a key is if it is not given.
        qk_norm: Norms of query and key heads.
        qk_norm_key: Key that switches these norms on; empty for always.
        norms: Norms per layer, in vectors of the model's width: a layer norm with a bias is two.
        final_norms: The same, of the norm before the head.
        gated: MLP and experts have a gate.
        window: Which layers have a sliding window: as `layer_types` or a pattern says, or all.
        window_pattern: Every so many layers one has full attention, if no key says otherwise.
        sinks: Layers whose heads have a learned sink: none, all, or those with a window.
        gate: Gate on the output of attention: an element per head dimension, per head, or none.
        tied: Head and embedding are one matrix, if no key says otherwise.
        experts: The MLP is a mixture of experts.
        expert_width: Keys with the hidden width of an expert.
        dense_width: Keys with the hidden width of a dense layer.
        first_dense: Dense layers before those with experts, if no key says otherwise.
        expert_bias: Router and experts have biases.
        shared_gate: A scalar gate weighs the shared experts.
        router_vector: The router has a learned bias per expert.
        latent: Full attention is latent attention.
        linear: Kind of layers with a state.
        builder: Which function builds the layers.
        shared_experts: Shared experts, if no key says how many.
        head_bias: The LM head has a bias, or the key that says so.
        layer_vectors: Further parameters of each layer that are no matrices.
        positions: Positions are learned: a table beside the embedding.
        head_dim: Width of a head, if no key says so; 0 for the model's width over the heads.
        query_rank: Queries are computed through a narrow normed projection, keys and values are not (Step-3).
        executable: The executor can run the family.
    """

    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    bias_default: bool = False
    qk_norm: QkNorm = "none"
    qk_norm_key: str = ""
    norms: int = 2
    final_norms: int = 1
    gated: bool = True
    window: Pattern = "none"
    window_pattern: int = 0
    sinks: Literal["none", "all", "window"] = "none"
    gate: Literal["none", "element", "head"] = "none"
    tied: bool = False
    experts: bool = False
    expert_width: tuple[str, ...] = ("moe_intermediate_size",)
    dense_width: tuple[str, ...] = ("intermediate_size", "ffn_hidden_size", "n_inner")
    first_dense: int = 0
    expert_bias: bool = False
    shared_gate: bool = False
    router_vector: bool = False
    latent: bool = False
    linear: Linear = "none"
    builder: Literal["decoder", "blocks", "gemma", "deepseek_v4", "nas", "parallel", "mamba"] = "decoder"
    shared_experts: int = 0
    head_bias: bool | str = False
    layer_vectors: int = 0
    positions: bool = False
    head_dim: int = 0
    query_rank: bool = False
    paired: bool = False
    executable: bool = False


LLAMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
QWEN3 = Family(qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias", window="types")
WIDTH = ("intermediate_size", "ffn_hidden_size")
DEEPSEEK = Family(experts=True, latent=True)
QWEN_HYBRID = Family(qk_norm="head", gate="element", linear="delta", window="types")
QWEN_HYBRID_MOE = replace(QWEN_HYBRID, experts=True, shared_gate=True)
GLM_MOE = Family(qkv_bias="attention_bias", qk_norm="head", qk_norm_key="use_qk_norm", experts=True)
GRANITE = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
GRANITE_MOE = replace(GRANITE, experts=True, expert_width=WIDTH)
GEMMA3 = Family(qk_norm="head", norms=4, window="types", window_pattern=6, tied=True, head_dim=256)
KIMI = Family(experts=True, latent=True, linear="kimi")
MAMBA2_HYBRID = Family(linear="mamba2", builder="blocks")
MISTRAL = Family(window="all", executable=True)

FAMILIES: dict[str, Family] = {
    "llama": replace(LLAMA, executable=True),
    "mistral": MISTRAL,
    "qwen2": Family(qkv_bias=True, window="types", executable=True),
    "qwen3": replace(QWEN3, executable=True),
    "mixtral": Family(window="all", experts=True, expert_width=WIDTH),
    "qwen3_moe": replace(QWEN3, experts=True),
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        bias_default=True,
        sinks="all",
        window="types",
        window_pattern=2,
        experts=True,
        expert_width=WIDTH,
        expert_bias=True,
    ),
    "gemma3": GEMMA3,
    # The same architectures under other names, and their neighbours.
    "arcee": Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", gated=False),
    "afmoe": Family(
        qk_norm="head", norms=4, window="types", window_pattern=4, gate="element", experts=True, first_dense=1, router_vector=True
    ),
    "apertus": Family(layer_vectors=2, qk_norm="head", gated=False, qkv_bias="attention_bias", o_bias="attention_bias"),
    "bailing_moe": Family(experts=True),
    "bailing_moe_v2": Family(experts=True, qk_norm="head", first_dense=1),
    "bailing_moe_linear": Family(experts=True, qk_norm="head", first_dense=1, linear="lightning"),
    "bamba": MAMBA2_HYBRID,
    "chatglm": Family(
        qkv_bias="add_qkv_bias",
        o_bias="add_bias_linear",
        mlp_bias="add_bias_linear",
        dense_width=("ffn_hidden_size",),
        head_dim=128,
    ),
    "cohere": Family(
        norms=1, tied=True, qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all", qk_norm_key="use_qk_norm"
    ),
    "cohere2": Family(norms=1, tied=True, qkv_bias="attention_bias", o_bias="attention_bias", window="types", window_pattern=4),
    "deepseek": Family(experts=True),
    "deepseek_v2": DEEPSEEK,
    "deepseek_v32": DEEPSEEK,
    "deepseek_v4": Family(experts=True, builder="deepseek_v4"),
    "deepseek_ref": Family(experts=True, builder="deepseek_v4"),
    "dots1": Family(qk_norm="head", experts=True, window="types"),
    "ernie4_5": Family(tied=True, qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias"),
    "ernie4_5_moe": Family(
        tied=True, qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", experts=True, router_vector=True
    ),
    "ernie4_5_vl_moe": Family(tied=True, experts=True, router_vector=True),
    "exaone4": Family(qk_norm="head", window="types"),
    "exaone_moe": Family(qk_norm="head", window="types", experts=True),
    "falcon_h1": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias", linear="mamba2", builder="parallel"
    ),
    "falcon_mamba": Family(norms=1, tied=True, linear="mamba1", builder="mamba"),
    "flex_olmo": Family(qk_norm="all", experts=True, expert_width=WIDTH),
    "gemma": Family(tied=True, qkv_bias="attention_bias", o_bias="attention_bias", head_dim=256),
    "gemma2": Family(
        norms=4, tied=True, window="types", window_pattern=2, qkv_bias="attention_bias", o_bias="attention_bias", head_dim=256
    ),
    "gemma3n": replace(GEMMA3, window_pattern=5, builder="gemma"),
    "gemma4": replace(GEMMA3, builder="gemma"),
    "glm": Family(qkv_bias="attention_bias", bias_default=True, head_dim=128),
    "glm4": Family(qkv_bias="attention_bias", bias_default=True, norms=4, head_dim=128),
    "glm4_moe": GLM_MOE,
    "glm4v_moe": GLM_MOE,
    "glm4_moe_lite": replace(DEEPSEEK, first_dense=1),
    "glm_moe_dsa": DEEPSEEK,
    "gpt2": Family(positions=True, qkv_bias=True, o_bias=True, mlp_bias=True, norms=4, final_norms=2, gated=False, tied=True),
    "gpt_neox": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", bias_default=True, mlp_bias=True, norms=4, final_norms=2, gated=False
    ),
    "granite": GRANITE,
    "granitemoe": GRANITE_MOE,
    "granitemoeshared": GRANITE_MOE,
    "granitemoehybrid": replace(GRANITE_MOE, linear="mamba2", builder="blocks"),
    "grok-1": Family(experts=True, norms=4),
    "helium": replace(LLAMA, head_dim=128),
    "hunyuan_v1_dense": Family(qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias"),
    "hunyuan_v1_moe": Family(
        shared_experts=1,
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        experts=True,
        expert_width=("moe_intermediate_size", *WIDTH),
    ),
    "hy_v3": Family(qk_norm="head", qkv_bias="attention_bias", o_bias="attention_bias", experts=True, first_dense=1),
    "internlm2": Family(qkv_bias="bias", o_bias="bias"),
    "internlm3": Family(qkv_bias="qkv_bias", o_bias="bias", mlp_bias="bias", head_dim=128),
    "iquestcoder": LLAMA,
    "jamba": Family(linear="mamba1", experts=True, expert_width=WIDTH, builder="blocks"),
    "kimi_linear": KIMI,
    "lfm2": Family(qk_norm="head", linear="convolution", tied=True),
    "lfm2_moe": Family(qk_norm="head", linear="convolution", tied=True, experts=True, first_dense=2),
    "llama4": Family(shared_experts=1, experts=True, expert_width=WIDTH, dense_width=("intermediate_size_mlp",), window="types"),
    "longcat_flash": Family(
        experts=True,
        latent=True,
        paired=True,
        expert_width=("expert_ffn_hidden_size",),
        dense_width=("ffn_hidden_size",),
    ),
    "mamba": Family(norms=1, tied=True, linear="mamba1", builder="mamba"),
    "mamba2": Family(norms=1, linear="mamba2", builder="mamba"),
    "mimo": Family(qkv_bias=True),
    "mimo_v2_flash": Family(window="types", sinks="window", experts=True),
    "minicpm": LLAMA,
    "minicpm3": Family(latent=True, tied=True),
    "minicpmv": Family(),
    "minimax": Family(experts=True, expert_width=WIDTH, linear="lightning"),
    "minimax_m2": Family(qk_norm="all", experts=True, expert_width=WIDTH),
    "minimax_m3": Family(
        qk_norm="head", experts=True, expert_width=("moe_intermediate_size", *WIDTH), dense_width=("dense_intermediate_size",)
    ),
    "ministral": Family(window="types", head_dim=128),
    "ministral3": Family(window="all", head_dim=128),
    "nanochat": Family(gated=False, norms=0, final_norms=0),
    "nemotron": Family(
        gated=False, norms=4, final_norms=2, qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "nemotron_h": Family(
        gated=False, norms=1, linear="mamba2", experts=True, builder="blocks", qkv_bias="attention_bias", o_bias="attention_bias"
    ),
    "nemotron-nas": Family(builder="nas"),
    "olmo": Family(norms=0, final_norms=0, qkv_bias="attention_bias", o_bias="attention_bias"),
    "olmo2": Family(qk_norm="all", qkv_bias="attention_bias", o_bias="attention_bias"),
    "olmo3": Family(qk_norm="all", window="types", window_pattern=4, qkv_bias="attention_bias", o_bias="attention_bias"),
    "olmoe": Family(qk_norm="all", experts=True, expert_width=WIDTH, qkv_bias="attention_bias", o_bias="attention_bias"),
    "PanguProMoE": Family(experts=True, qkv_bias=True),
    "phi": Family(head_bias=True, qkv_bias=True, o_bias=True, mlp_bias=True, norms=2, final_norms=2, gated=False, qk_norm="none"),
    "phi3": Family(window="all"),
    "phimoe": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        norms=4,
        final_norms=2,
        head_bias="lm_head_bias",
        experts=True,
        expert_width=WIDTH,
        window="all",
    ),
    "qwen2_moe": Family(qkv_bias=True, window="types", experts=True, shared_gate=True),
    "qwen3_5": QWEN_HYBRID,
    "qwen3_5_moe": QWEN_HYBRID_MOE,
    "qwen3_next": QWEN_HYBRID_MOE,
    "seed_oss": Family(
        qkv_bias="attention_bias", o_bias="attention_out_bias", mlp_bias="mlp_bias", bias_default=True, head_dim=128
    ),
    "smollm3": replace(LLAMA, window="types", tied=True),
    "solar_open": Family(experts=True, head_dim=128, qkv_bias="attention_bias"),
    "stablelm": Family(norms=4, final_norms=2, qkv_bias="use_qkv_bias"),
    "starcoder2": Family(
        norms=4,
        final_norms=2,
        gated=False,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        bias_default=True,
        window="all",
        tied=True,
    ),
    "step3_text": Family(experts=True, query_rank=True),
    "step3p5": Family(qk_norm="head", gate="head", window="types", experts=True, first_dense=3, dense_width=("intermediate_size",)),
}

# Other names of the same architecture.
ALIASES = {
    "baichuan": "llama",
    "interns1_text": "qwen3_moe",
    "ernie4_5_moe_vl": "ernie4_5_vl_moe",
    "ernie4_5_vl_moe_text": "ernie4_5_vl_moe",
    "minicpmo": "minicpmv",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "solar": "llama",
    "apertus1p5_text": "apertus",
    "cwm": "llama",
    "cohere2_vision": "cohere2",
    "deepseek_vl_v2": "deepseek_v2",
    "exaone4_5": "exaone4",
    "exaone4_5_text": "exaone4",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gemma4_unified": "gemma4",
    "gemma4_unified_text": "gemma4",
    "glm4v": "glm4",
    "glm4v_text": "glm4",
    "glm4v_moe_text": "glm4v_moe",
    "hunyuan": "hunyuan_v1_moe",
    "hunyuan_dense": "hunyuan_v1_dense",
    "kimi_k2": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_linear",
    "llama4_text": "llama4",
    "minimax_m1": "minimax",
    "minimax_m3_vl": "minimax_m3",
    "minimax_m3_vl_text": "minimax_m3",
    "minimax_text_01": "minimax",
    "mistral3": "mistral",
    "mixtral_moe": "mixtral",
    "phi4mm": "phi3",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
    "step3_7": "step3p5",
    "step3p7": "step3p5",
    "smolvlm": "llama",
    "sarvam_mla": "deepseek_v3",
    "youtu": "deepseek_v3",
}
EXECUTABLE_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.executable)


def family_name(model_type: str) -> str | None:
    """Name of the family that reads this `model_type`; None if there is none."""
    return model_type if model_type in FAMILIES else ALIASES.get(model_type)
