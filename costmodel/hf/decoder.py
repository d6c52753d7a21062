"""The layers of most decoders: one attention or state and one MLP each, as family, patterns and keys say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..layers.attention import Attention, AttentionKind, Index, Latent
from ..layers.layer import Layer, LayerGroup
from ..layers.mlp import DenseMlp, ExpertMlp, MlpKind
from ..layers.weights import Weight
from .families import Family
from .keys import Keys
from .patterns import EXPERT_COUNTS, LayerType, expert_layers, layer_types

if TYPE_CHECKING:
    from ..layers.recurrent import Recurrent

USED_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
    "moe_top_k",
)
SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
SHARED_WIDTHS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "share_expert_dim",
    "moe_shared_intermediate_size",
)


@dataclass(eq=False, repr=False)
class Architecture:
    """What a config says about a model's layers, and what is outside them.

    Attributes:
        layers: Every layer, in order.
        extra: Matrices outside the layers, beside the head.
        extra_vectors: Parameters outside the layers that are no matrices, beside one final norm.
        lookup_params: Parameters of tables of which a token reads one row.
        mtp: Layers of one multi-token-prediction module.
        notes: What a reader must know.
    """

    layers: list[Layer]
    extra: tuple[Weight, ...] = ()
    extra_vectors: int = 0
    lookup_params: int = 0
    mtp: tuple[LayerGroup, ...] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class Sizes:
    """Sizes that every decoder has.

    Attributes:
        layers: Number of layers.
        d_model: Width of the residual stream.
        heads, kv_heads: Query and KV heads of the usual layer.
        head_dim: Width of a head.
    """

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int


def sizes_of(keys: Keys, family: Family) -> Sizes:
    """Read the sizes that every decoder has."""
    layers = 2 * keys.whole("num_layers") if family.paired and keys.first("num_layers") else _number_of_layers(keys)
    d_model = keys.whole("hidden_size", "n_embd", "d_model")
    if family.builder == "mamba":
        return Sizes(layers, d_model, 1, 1, 1)
    before = len(keys.problems)
    heads = keys.whole("num_attention_heads", "n_head")
    kv_names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_attention_groups", "multi_query_group_num")
    kv_heads = heads
    if not isinstance(keys.raw.get("num_key_value_heads"), list):
        kv_heads = keys.whole_or(heads, *kv_names) or heads
    if heads % kv_heads and len(keys.problems) == before:
        keys.wrong("num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})")
    head_dim = keys.whole_or(family.head_dim or None, "head_dim", "attention_head_dim", "kv_channels")
    if head_dim is None:
        head_dim = max(d_model // heads, 1)
        if d_model % heads and not family.latent and keys.raw.get("hidden_size") == d_model and heads > 1:
            keys.wrong("hidden_size", f"a multiple of num_attention_heads ({heads}) where head_dim is not given")
    return Sizes(layers, d_model, heads, kv_heads, head_dim)


def _number_of_layers(keys: Keys) -> int:
    if keys.first("num_hidden_layers", "n_layer", "num_layers") is None:
        for name in ("layers_block_type", "block_configs", "hybrid_override_pattern"):
            found = keys.raw.get(name)
            if isinstance(found, list | str) and 0 < len(found) <= 4096:
                return len(found)
    return keys.whole("num_hidden_layers", "n_layer", "num_layers")


def decoder(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Build the layers of a decoder."""
    types, sparse = layer_types(keys, sizes.layers, family), expert_layers(keys, sizes.layers, family)
    norms, found = family.norms, list[Layer]()
    dense_widths = dense_width(keys, family, sizes) if not all(sparse) else [1] * sizes.layers
    experts = experts_of(keys, family) if any(sparse) else None
    for i, kind in enumerate(types):
        mlp: MlpKind = DenseMlp(dense_widths[i], family.gated, bias(keys, family.mlp_bias, family))
        if experts is not None and sparse[i]:
            mlp = experts
        if kind == "linear":
            found.append(Layer(recurrent=state_of(keys, family, sizes), mlp=mlp, norms=norms))
        else:
            found.append(Layer(attention_of(keys, family, sizes, kind, i), mlp=mlp, norms=norms))
    if family.layer_vectors:
        found = [replace(layer, extra_vectors=family.layer_vectors) for layer in found]
    vectors = (family.final_norms - 1) * sizes.d_model
    if bias(keys, family.head_bias, family):
        vectors += keys.whole("vocab_size")
    table = keys.whole("n_positions", "max_position_embeddings") * sizes.d_model if family.positions else 0
    if experts is not None:
        table += sum(sparse) * _experts_for_images(keys, family, sizes.d_model)
    return Architecture(found, extra_vectors=vectors, lookup_params=table)


def bias(keys: Keys, said: bool | str, family: Family) -> bool:
    """Whether a projection has a bias."""
    return keys.flag(family.bias_default, said) if isinstance(said, str) else said


def attention_of(keys: Keys, family: Family, sizes: Sizes, kind: LayerType, layer: int) -> AttentionKind:
    """Build the attention of one layer."""
    if family.latent and not (
        keys.raw.get("use_mla") is False or ("kv_lora_rank" in keys.raw and keys.raw["kv_lora_rank"] is None)
    ):
        return latent_of(keys, sizes, layer)
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    value_dim = keys.whole_or(None, "v_head_dim") if keys.raw.get("v_head_dim") else None
    sliding = kind == "window"
    window = chunk = None
    if sliding:
        window = keys.whole_or(None, "sliding_window", "sliding_window_size", "window_size", ge=1)
        if window is None and family.window != "all":
            keys.wrong("sliding_window", "the window of the sliding_attention layers, in tokens")
        heads = keys.whole_or(heads, "swa_num_attention_heads", "num_sliding_attention_heads") or heads
        kv_heads = keys.whole_or(kv_heads, "swa_num_key_value_heads") or kv_heads
        head_dim = keys.whole_or(head_dim, "swa_head_dim") or head_dim
        value_dim = keys.whole_or(value_dim, "swa_v_head_dim")
        if (other := keys.part("attention_other_setting")) is not None:
            heads = other.whole_or(heads, "num_attention_heads") or heads
            kv_heads = other.whole_or(kv_heads, "num_attention_groups") or kv_heads
    if kind == "chunk":
        chunk = keys.whole("attention_chunk_size")
    normed = family.qk_norm
    if family.qk_norm_key:
        normed = family.qk_norm if keys.flag(False, family.qk_norm_key) else "none"
    gate = {"none": 0, "element": head_dim, "head": 1}[family.gate]
    if family.gate == "element" and not keys.flag(True, "attn_output_gate"):
        gate = 0
    every = keys.part("per_layer_config")
    own = every.part(str(layer), f"{layer:02d}", f"{layer:03d}") if every is not None else None
    if own is not None:
        heads = own.whole_or(heads, "num_attention_heads") or heads
        kv_heads = own.whole_or(kv_heads, "num_key_value_heads") or kv_heads
        head_dim = own.whole_or(head_dim, "head_dim") or head_dim
        value_dim = own.whole_or(value_dim, "v_head_dim")
    shared = keys.whole_or(2, "cla_share_factor") or 1 if keys.flag(False, "use_cla") else 1
    sinks = family.sinks == "all" or (family.sinks == "window" and sliding)
    qkv_bias = bias(keys, family.qkv_bias, family)
    return Attention(
        heads,
        kv_heads,
        head_dim,
        value_dim if value_dim != head_dim else None,
        window=window,
        chunk=chunk,
        index=block_index(keys, sizes) if kind == "chosen" else None,
        q_rank=keys.whole("share_q_dim") if family.query_rank else None,
        shares_kv=layer % shared > 0,
        gate=gate,
        qkv_bias=qkv_bias,
        o_bias=bias(keys, family.o_bias, family),
        qk_norm=normed,
        sinks=sinks,
    )


def block_index(keys: Keys, sizes: Sizes) -> Index:
    """Build an indexer that chooses blocks of entries."""
    part = keys.part("sparse_attention_config") or keys
    head_dim = part.whole("sparse_index_dim", "index_head_dim")
    return Index(
        heads=part.whole("sparse_num_index_heads", "index_n_heads"),
        head_dim=head_dim,
        chosen=part.whole("sparse_topk_blocks", "index_topk_blocks") * part.whole("sparse_block_size", "index_block_size"),
        query_inputs=sizes.d_model,
        weights_heads=False,
        vectors=2 * head_dim,
        scored_dtype=None,
    )


def latent_of(keys: Keys, sizes: Sizes, layer: int) -> Latent:
    """Build the latent attention of one layer."""
    q_rank = keys.whole_or(None, "q_lora_rank")
    index = None
    if keys.first("index_topk") is not None:
        shared = keys.words("indexer_types", sizes.layers)
        index = Index(
            heads=keys.whole("index_n_heads"),
            head_dim=keys.whole("index_head_dim"),
            chosen=keys.whole("index_topk"),
            query_inputs=q_rank or sizes.d_model,
            vectors=2 * keys.whole("index_head_dim"),
            computed=shared is None or shared[layer] != "shared",
        )
    return Latent(
        heads=sizes.heads,
        kv_rank=keys.whole("kv_lora_rank"),
        rope_dim=keys.whole("qk_rope_head_dim"),
        nope_dim=keys.whole("qk_nope_head_dim"),
        value_dim=keys.whole("v_head_dim"),
        q_rank=q_rank,
        index=index,
        gate=keys.flag(False, "mla_use_output_gate"),
        bias=keys.flag(False, "attention_bias"),
    )


def state_of(keys: Keys, family: Family, sizes: Sizes) -> Recurrent:
    """Build the recurrent part of one layer."""
    from ..layers.recurrent import gated_delta_net, kimi_delta, lightning, mamba1, mamba2, short_convolution

    d_model = sizes.d_model
    match family.linear:
        case "delta":
            return gated_delta_net(
                d_model,
                key_heads=keys.whole("linear_num_key_heads"),
                value_heads=keys.whole("linear_num_value_heads"),
                key_dim=keys.whole("linear_key_head_dim"),
                value_dim=keys.whole("linear_value_head_dim"),
                kernel=keys.whole("linear_conv_kernel_dim"),
            )
        case "kimi":
            part = keys.part("linear_attn_config") or keys
            return kimi_delta(
                d_model,
                heads=part.whole("num_heads", "linear_num_heads"),
                head_dim=part.whole("head_dim", "linear_head_dim") if part is not keys else keys.whole("linear_head_dim"),
                kernel=part.whole("short_conv_kernel_size", "linear_conv_kernel_dim"),
                full_rank_gate=part.flag(False, "use_full_rank_gate"),
            )
        case "lightning":
            return lightning(d_model, heads=sizes.heads, head_dim=sizes.head_dim)
        case "convolution":
            return short_convolution(d_model, kernel=keys.whole("conv_L_cache"), bias=keys.flag(False, "conv_bias"))
        case "mamba1":
            inner = keys.whole_or(None, "intermediate_size") if family.builder == "mamba" else None
            inner = inner or (keys.whole_or(2, "mamba_expand", "expand") or 2) * d_model
            rank = -(-d_model // 16)
            if keys.raw.get("mamba_dt_rank", keys.raw.get("time_step_rank")) != "auto":
                rank = keys.whole_or(rank, "mamba_dt_rank", "time_step_rank") or rank
            return mamba1(
                d_model,
                inner=inner,
                state=keys.whole("mamba_d_state", "state_size"),
                kernel=keys.whole("mamba_d_conv", "conv_kernel"),
                rank=rank,
                conv_bias=keys.flag(True, "mamba_conv_bias", "use_conv_bias"),
                bias=keys.flag(False, "mamba_proj_bias", "use_bias"),
                norms=family.builder == "blocks",
            )
        case "mamba2" | "none":
            heads = keys.whole("mamba_num_heads", "mamba_n_heads", "num_heads")
            head_dim = keys.raw.get("mamba_d_head")
            own = "mamba_head_dim" if family.builder != "mamba" else "head_dim"
            inner = keys.whole_or(None, "mamba_d_ssm") or (keys.whole_or(2, "mamba_expand", "expand") or 2) * d_model
            return mamba2(
                d_model,
                heads=heads,
                head_dim=inner // heads if head_dim == "auto" else keys.whole("mamba_d_head", own),
                groups=keys.whole("n_groups", "mamba_n_groups"),
                state=keys.whole("ssm_state_size", "mamba_d_state", "state_size"),
                kernel=keys.whole("conv_kernel", "mamba_d_conv"),
                conv_bias=keys.flag(True, "use_conv_bias", "mamba_conv_bias"),
                bias=keys.flag(False, "mamba_proj_bias", "use_bias"),
                norm=keys.flag(False, "mamba_rms_norm") if family.builder == "parallel" else True,
            )


def dense_width(keys: Keys, family: Family, sizes: Sizes) -> list[int]:
    """Read the hidden width of the dense MLP of each layer."""
    if family.linear == "convolution" and keys.flag(True, "block_auto_adjust_ff_dim") and not keys.first("num_experts"):
        width = int(2 * keys.whole("intermediate_size", "block_ff_dim") / 3)
        width = int(keys.number(1.0, "block_ffn_dim_multiplier") * width)
        multiple = keys.whole_or(256, "block_multiple_of") or 256
        return [multiple * -(-width // multiple)] * sizes.layers
    name = keys.first(*family.dense_width)
    if name is None and "n_inner" in family.dense_width and keys.first("n_embd"):
        return [4 * sizes.d_model] * sizes.layers
    return keys.each(*family.dense_width, layers=sizes.layers)


def experts_of(keys: Keys, family: Family) -> ExpertMlp:
    """Build a mixture of experts."""
    num_experts = _for_text(keys, *EXPERT_COUNTS)[0]
    used = _same(keys, *USED_EXPERTS)
    if used > num_experts:
        keys.wrong(keys.first(*USED_EXPERTS) or USED_EXPERTS[0], f"at most num_experts ({num_experts})")
    width = _for_text(keys, *family.expert_width)[0]
    shared_width = keys.count(*SHARED_WIDTHS)
    shared = _same(keys, *SHARED_COUNTS, ge=0) if keys.first(*SHARED_COUNTS) else family.shared_experts
    if keys.first("shared_intermediate_size"):
        shared_width = keys.count("shared_intermediate_size") * (shared or 1)
    elif not keys.first(*SHARED_WIDTHS):
        shared_width = shared * width
    if keys.flag(False, "residual_moe") or family.paired:
        shared_width = keys.whole(*family.dense_width)
    if (zero := keys.count("zero_expert_num")) and used <= num_experts:  # of those that a token takes, on average as many are empty
        used = max(used * num_experts // (num_experts + zero), 1)
    if keys.flag(True, "use_mixed_mlp_moe") is False:
        shared_width = 0
    return ExpertMlp(
        num_experts,
        used,
        width,
        shared_width,
        gated=family.gated,
        bias=family.expert_bias,
        router_vectors=num_experts if family.router_vector else 0,
        shared_gate=family.shared_gate and shared_width > 0,
        latent=keys.whole_or(None, "moe_latent_size", "routed_expert_hidden_size"),
    )


def _for_text(keys: Keys, *names: str) -> list[int]:
    """A number for text, and one for images where the family has experts for each (ERNIE VL)."""
    name = keys.first(*names)
    listed = keys.raw[name] if name is not None else None
    if name is None or not isinstance(listed, list) or len(listed) != 2 or not keys.first("moe_layer_interval", "vision_config"):
        return [_same(keys, *names)]
    found = keys.wholes(name) or [1, 1]
    if not all(found):
        keys.wrong(name, "numbers of at least 1")
    return found


def _experts_for_images(keys: Keys, family: Family, d_model: int) -> int:
    """Parameters of the experts for images in one layer, which text does not read."""
    counts, widths = _for_text(keys, *EXPERT_COUNTS), _for_text(keys, *family.expert_width)
    return (counts[-1] if len(widths) > 1 else 0) * (widths[-1] * 3 + 1) * d_model


def _same(keys: Keys, *names: str, ge: int = 1) -> int:
    """A number that may be given as a list of one number per layer, all of them equal."""
    name = keys.first(*names)
    listed = keys.wholes(name) if name is not None and isinstance(keys.raw[name], list) else None
    if listed is None:
        return keys.whole(*names, ge=ge) if ge else keys.count(*names)
    if not listed or len(set(listed)) > 1 or listed[0] < ge:
        keys.wrong(name or names[0], "one number for all layers")
        return 1
    return listed[0]
