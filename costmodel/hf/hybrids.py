"""Decoders whose layers are built otherwise: blocks of one part, parallel parts, shared caches, compressed entries."""

from __future__ import annotations

from dataclasses import replace

from ..layers.attention import Attention, Compressed, Index
from ..layers.layer import Layer
from ..layers.mlp import DenseMlp, ExpertMlp, MlpKind
from ..layers.weights import Weight
from .decoder import Architecture, Sizes, attention_of, bias, decoder, dense_width, experts_of, state_of
from .families import Family
from .keys import Keys
from .patterns import expert_layers, layer_types, modules_of_prediction

# Letters of `hybrid_override_pattern`, and words of `layers_block_type`.
BLOCKS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
BLOCK_WORDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"} | {
    word: word for word in ("moe", "mlp")
}


def build(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Build the layers of any family."""
    match family.builder:
        case "decoder":
            return decoder(keys, family, sizes)
        case "blocks":
            return _one_part_blocks(keys, family, sizes) if _block_words(keys) else _mamba_hybrid(keys, family, sizes)
        case "parallel":
            mlp = DenseMlp(dense_width(keys, family, sizes)[0], bias=bias(keys, family.mlp_bias, family))
            layer = Layer(attention_of(keys, family, sizes, "full", 0), state_of(keys, family, sizes), mlp)
            return Architecture([layer] * sizes.layers)
        case "mamba":
            return Architecture([Layer(recurrent=state_of(keys, family, sizes), norms=1)] * sizes.layers)
        case "gemma":
            return _gemma(keys, family, sizes)
        case "deepseek_v4":
            return _deepseek_v4(keys, family, sizes)
        case "nas":
            return _nas(keys, family, sizes)


def _block_words(keys: Keys) -> bool:
    return keys.raw.get("model_type") == "nemotron_h"


def _one_part_blocks(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Nemotron-H: each layer is a state, an attention, an MLP or a mixture of experts."""
    parts = {
        "mamba": lambda: Layer(recurrent=state_of(keys, family, sizes), norms=1),
        "attention": lambda: Layer(attention_of(keys, family, sizes, "full", 0), norms=1),
        "mlp": lambda: Layer(mlp=DenseMlp(dense_width(keys, family, sizes)[0], False, keys.flag(False, "mlp_bias")), norms=1),
        "moe": lambda: Layer(mlp=experts_of(keys, family), norms=1),
    }
    words = block_kinds(keys, "layers_block_type", "hybrid_override_pattern")
    if words is None:
        keys.wrong("hybrid_override_pattern", "a value")
        return Architecture([])
    if len(words) != sizes.layers:
        name = keys.first("layers_block_type", "hybrid_override_pattern") or ""
        keys.wrong(name, f"one entry for each of the {sizes.layers} layers", f"{len(words)} entries")
        return Architecture([])
    built = {word: parts[word]() for word in dict.fromkeys(words)}
    return Architecture([built[word] for word in words])


def block_kinds(keys: Keys, listed: str, letters: str) -> list[str] | None:
    """Kinds of blocks, from a list of words or a string of letters."""
    words = keys.words(listed)
    if words is not None:
        if not words or set(words) - set(BLOCK_WORDS):
            keys.wrong(listed, " or ".join(BLOCK_WORDS))
            return None
        return [BLOCK_WORDS[word] for word in words]
    text = keys.word(letters)
    if text is None:
        return None
    if not text or set(text) - set(BLOCKS):
        keys.wrong(letters, "a letter of M, *, E and - for each layer")
        return None
    return [BLOCKS[letter] for letter in text]


def _mamba_hybrid(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Bamba, Granite 4, Jamba: a state or an attention, then an MLP or experts."""
    types = None
    for name in ("layer_types", "layers_block_type"):
        types = types or keys.words(name, sizes.layers)
    if types is None and (indices := keys.wholes("attn_layer_indices", below=sizes.layers)) is not None:
        types = ["attention" if i in indices else "mamba" for i in range(sizes.layers)]
    if types is None and keys.first("attn_layer_period") is not None:
        period, offset = keys.whole("attn_layer_period"), keys.count("attn_layer_offset")
        types = ["attention" if i % period == offset else "mamba" for i in range(sizes.layers)]
    if types is None and family.linear == "mamba2":
        types = ["mamba"] * sizes.layers
    if types is None:
        keys.wrong("layer_types", f"mamba or attention for each of the {sizes.layers} layers")
        return Architecture([])
    sparse = expert_layers(keys, sizes.layers, family)
    width = dense_width(keys, family, sizes)[0]
    dense: MlpKind = DenseMlp(keys.whole_or(width, "shared_intermediate_size") or width)
    mlps = [experts_of(keys, family) if one else dense for one in sparse]
    found = []
    for kind, mlp in zip(types, mlps, strict=True):
        if kind in ("mamba", "linear_attention"):
            found.append(Layer(recurrent=state_of(keys, family, sizes), mlp=mlp))
        else:
            found.append(Layer(attention_of(keys, family, sizes, "full", 0), mlp=mlp))
    return Architecture(found)


def _gemma(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Gemma 3n and 4: caches shared between layers, wider full attention, an input per layer, experts beside an MLP."""
    third = keys.raw.get("model_type") in ("gemma3n", "gemma3n_text")
    types = layer_types(keys, sizes.layers, family)
    first_shared = sizes.layers - keys.count("num_kv_shared_layers")
    if first_shared < 0:
        keys.wrong("num_kv_shared_layers", f"at most num_hidden_layers ({sizes.layers})")
    widths = dense_width(keys, family, sizes)
    per_layer = keys.count("hidden_size_per_layer_input")
    extra, vectors = _per_layer_input(sizes.d_model, per_layer)
    if third:
        altup, alt_vectors = _altup(keys, sizes.d_model)
        extra, vectors = (*extra, *altup), vectors + alt_vectors
    experts = _gemma_experts(keys, widths[0]) if keys.flag(False, "enable_moe_block") else None
    found = []
    for i, kind in enumerate(types):
        attention = attention_of(keys, family, sizes, kind, i)
        assert isinstance(attention, Attention)
        if kind == "full":
            attention = _global(keys, attention)
        attention = replace(attention, shares_kv=i >= first_shared)
        width = 2 * widths[i] if keys.flag(False, "use_double_wide_mlp") and i >= first_shared else widths[i]
        mlp = DenseMlp(width) if experts is None else experts
        more = 0 if experts is None else 4  # norms and a scale around the experts
        found.append(Layer(attention, mlp=mlp, norms=4 + more, extra=extra, extra_vectors=vectors))
    outer: list[Weight] = []
    if per_layer:
        outer.append(Weight("per_layer_projection", sizes.layers * per_layer, sizes.d_model, role="router"))
    if third:
        outer += [Weight("altup", sizes.d_model, sizes.d_model, split="none", role="router")] * 0
        count = 2 * (keys.whole("altup_num_inputs") - 1)
        outer.append(Weight("altup", count * sizes.d_model, sizes.d_model, split="none", role="router"))
    table = keys.whole_or(0, "vocab_size_per_layer_input", ge=0) or 0
    return Architecture(
        found, tuple(outer), extra_vectors=per_layer, lookup_params=table * sizes.layers * per_layer if per_layer else 0
    )


def _global(keys: Keys, attention: Attention) -> Attention:
    """The full attention of Gemma 4: its own heads, and values that are keys."""
    same = keys.flag(False, "attention_k_eq_v")
    kv_heads = keys.whole_or(None, "num_global_key_value_heads") if same else None
    head_dim = keys.whole_or(None, "global_head_dim")
    return replace(
        attention, kv_heads=kv_heads or attention.kv_heads, head_dim=head_dim or attention.head_dim, keys_are_values=same
    )


def _gemma_experts(keys: Keys, dense: int) -> ExpertMlp:
    num_experts = keys.whole("num_experts")
    return ExpertMlp(
        num_experts,
        keys.whole("top_k_experts", "num_experts_per_tok"),
        keys.whole("moe_intermediate_size", "expert_intermediate_size"),
        d_ff_dense=dense,
        router_vectors=num_experts,
    )


def _per_layer_input(d_model: int, width: int) -> tuple[tuple[Weight, ...], int]:
    if not width:
        return (), 0
    gate = Weight("per_layer_gate", width, d_model, "mlp", "none", role="router")
    return (gate, Weight("per_layer_out", d_model, width, "mlp", "none", role="router")), d_model


def _altup(keys: Keys, d_model: int) -> tuple[tuple[Weight, ...], int]:
    """Gemma 3n: several copies of the residual stream, and a low-rank path beside attention."""
    rank, copies = keys.whole("laurel_rank"), keys.whole("altup_num_inputs")
    weights = (
        Weight("altup_router", copies, d_model, "mlp", "none", role="router"),
        Weight("laurel_down", rank, d_model, "mlp", "none", role="router"),
        Weight("laurel_up", d_model, rank, "mlp", "none", role="router"),
    )
    return weights, copies * copies + copies * copies * copies + 3 * d_model


def _deepseek_v4(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """DeepSeek-V4: windows and compressed entries, several copies of the residual stream, experts in every layer."""
    ratios = keys.wholes("compress_ratios", sizes.layers, more=modules_of_prediction(keys))
    if ratios is None and (named := keys.words("layer_types", sizes.layers, more=modules_of_prediction(keys))) is not None:
        rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128, "sliding_attention": 0}
        if set(named) - set(rates):
            keys.wrong("layer_types", " or ".join(rates))
        ratios = [rates.get(name, 0) for name in named]
    if ratios is None:
        keys.wrong("compress_ratios", "a value")
        return Architecture([])
    experts, copies, d_model = experts_of(keys, family), keys.whole_or(1, "hc_mult") or 1, sizes.d_model
    index = Index(
        keys.whole("index_n_heads"), keys.whole("index_head_dim"), keys.whole("index_topk"), query_inputs=keys.whole("q_lora_rank")
    )
    mix = (2 + copies) * copies
    extra = (Weight("residual_mix", 2 * mix, copies * d_model, "mlp", "none", role="router"),) if copies > 1 else ()
    found = []
    for ratio in ratios:
        sparse = ratio == 4  # the small ratio has the indexer
        attention = Compressed(
            heads=sizes.heads,
            head_dim=sizes.head_dim,
            q_rank=keys.whole("q_lora_rank"),
            o_groups=keys.whole("o_groups"),
            o_rank=keys.whole("o_lora_rank"),
            window=keys.whole("sliding_window"),
            ratio=ratio,
            overlap=sparse,
            index=index if sparse else None,
        )
        found.append(Layer(attention, mlp=experts, extra=extra, extra_vectors=2 * (mix + 3) if extra else 0))
    outer = (Weight("residual_head", copies, copies * d_model, split="none", role="router"),) if copies > 1 else ()
    return Architecture(found, outer, extra_vectors=copies + 1 if outer else 0)


def _nas(keys: Keys, family: Family, sizes: Sizes) -> Architecture:
    """Nemotron NAS: every layer has its own number of KV heads and width, or leaves a part out."""
    blocks = keys.items("block_configs", sizes.layers)
    found = []
    for i, block in enumerate(blocks or []):
        part = Keys(block, keys.where, keys.problems, f"block_configs.{i}.") if isinstance(block, dict) else None
        attention, ffn = (part.part("attention"), part.part("ffn")) if part else (None, None)
        if part is None or attention is None or ffn is None:
            keys.wrong("block_configs", "a mapping with `attention` and `ffn` for each layer", block)
            break
        extra: tuple[Weight, ...] = ()
        mixer, mlp = None, None
        if attention.flag(False, "replace_with_linear"):
            extra += (Weight("linear", sizes.d_model, sizes.d_model),)
        elif not attention.flag(False, "no_op"):
            mixer = Attention(sizes.heads, max(sizes.heads // attention.whole("n_heads_in_group"), 1), sizes.head_dim)
        if ffn.flag(False, "replace_with_linear"):
            extra += (Weight("linear", sizes.d_model, sizes.d_model, "mlp"),)
        elif not ffn.flag(False, "no_op"):
            mlp = DenseMlp(_nas_width(ffn.number(1.0, "ffn_mult"), sizes.d_model))
        norms = (mixer is not None or attention.flag(False, "replace_with_linear")) + (
            mlp is not None or ffn.flag(False, "replace_with_linear")
        )
        found.append(Layer(mixer, mlp=mlp, norms=norms, extra=extra))
    if blocks is None:
        keys.wrong("block_configs", "a value")
    return Architecture(found)


def _nas_width(multiple: float, d_model: int) -> int:
    """Hidden width from a multiple, as the family's code rounds it: up to a multiple of 256."""
    width = int(2 * min(multiple, 1e6) * d_model / 3)
    return 256 * -(-width // 256)
