"""Which kind each layer is, by the many keys that say so."""

from __future__ import annotations

from typing import Literal, get_args

from .families import Family
from .keys import Keys

LayerType = Literal["full", "window", "chunk", "linear", "chosen", "nothing"]
LAYER_TYPES: tuple[LayerType, ...] = get_args(LayerType)

# What configs call the kinds of `layer_types`.
TYPE_NAMES: dict[str, LayerType] = {
    "full_attention": "full",
    "attention": "full",
    "global_attention": "full",
    "sliding_attention": "window",
    "sliding_window": "window",
    "local_attention": "window",
    "chunked_attention": "chunk",
    "linear_attention": "linear",
    "mamba": "linear",
    "conv": "linear",
    "indexed_attention": "full",  # latent attention with an indexer: that it has one is said elsewhere
    "deepseek_sparse_attention": "full",
    "minimax_m3_sparse": "chosen",
}


def layer_types(keys: Keys, layers: int, family: Family) -> list[LayerType]:
    """Return the kind of attention or state of each layer."""
    named = keys.words("layer_types", layers, more=modules_of_prediction(keys))
    if named is not None:
        unknown = sorted(set(named) - set(TYPE_NAMES))
        if unknown:
            keys.wrong("layer_types", f"{' or '.join(TYPE_NAMES)} for each of the {layers} layers", unknown[0])
            return ["full"] * layers
        return [TYPE_NAMES[name] for name in named]
    if keys.first("layer_types") is not None:
        return ["full"] * layers  # it is wrong, and noted
    for rule in (_by_list, _by_pattern):
        found = rule(keys, layers, family)
        if found is not None:
            return found
    return ["window" if family.window == "all" else "full"] * layers


def _by_list(keys: Keys, layers: int, family: Family) -> list[LayerType] | None:
    """Kinds that a list of numbers gives."""
    if (pattern := keys.wholes("hybrid_layer_pattern", layers, below=2)) is not None:
        return ["window" if value else "full" for value in pattern]
    if (pattern := keys.wholes("attn_type_list", layers, below=2)) is not None:
        return ["full" if value else "linear" for value in pattern]
    if (sparse := keys.part("sparse_attention_config")) is not None:
        chosen = sparse.wholes("sparse_attention_freq", layers, below=2)
        if chosen is not None:
            return ["chosen" if value else "full" for value in chosen]
    if (linear := keys.part("linear_attn_config")) is not None:
        full = linear.wholes("full_attn_layers", below=layers + 1)
        if full is not None:  # counted from 1
            return ["full" if i + 1 in full else "linear" for i in range(layers)]
    if (rope := keys.wholes("no_rope_layers", below=2)) and keys.first("attention_chunk_size"):
        return ["chunk" if value else "full" for value in rope[:layers]] if len(rope) >= layers else None
    if (full := keys.wholes("full_attn_idxs", below=layers)) is not None and family.linear != "none":
        return ["full" if i in full else "linear" for i in range(layers)]
    return None


def _by_pattern(keys: Keys, layers: int, family: Family) -> list[LayerType] | None:
    """Kinds that repeat every few layers."""
    other: LayerType = "linear" if family.linear != "none" else "window"
    if other == "linear":
        period = keys.whole_or(None, "full_attention_interval", "layer_group_size")
        if period is None and family.linear == "delta":
            period = 4
        if period is not None:
            rest = layers - layers % period if family.linear == "lightning" else layers  # an incomplete group at the end is full
            return ["full" if (i + 1) % period == 0 or i >= rest else "linear" for i in range(layers)]
        return None
    if keys.first("attention_chunk_size") and keys.first("no_rope_layer_interval", "interleave_moe_layer_step"):
        period = keys.whole_or(4, "no_rope_layer_interval") or 4
        return ["full" if (i + 1) % period == 0 else "chunk" for i in range(layers)]
    if keys.first("use_sliding_window"):
        if not keys.flag(False, "use_sliding_window"):
            return ["full"] * layers
        first = keys.count("max_window_layers")
        return ["window" if i >= first else "full" for i in range(layers)]
    if family.window != "types":
        return None
    word = keys.raw.get("sliding_window_pattern")
    if isinstance(word, str):
        if not word or set(word) - set("LG"):
            keys.wrong("sliding_window_pattern", "L for a window and G for full attention")
            return None
        kinds: list[LayerType] = ["window" if word[i % len(word)] == "L" else "full" for i in range(layers)]
        return [*kinds[:-1], "full"]
    period = keys.whole_or(
        family.window_pattern or None, "sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"
    )
    if period is None or (keys.first("sliding_window") is None and "sliding_window" in keys.raw and not family.window_pattern):
        return None
    return ["full" if (i + 1) % period == 0 else "window" for i in range(layers)]


def expert_layers(keys: Keys, layers: int, family: Family) -> list[bool]:
    """Return for each layer whether it has a mixture of experts."""
    name = keys.first(*EXPERT_COUNTS)
    optional = family.builder == "blocks" and (name is None or keys.raw[name] in (0, 1))
    if not family.experts or optional:
        return [False] * layers
    if family.paired:
        return [i % 2 == 0 for i in range(layers)]
    named = keys.words("mlp_layer_types", layers, more=modules_of_prediction(keys))
    if named is not None:
        return [name != "dense" for name in named]
    if isinstance(keys.raw.get("moe_layer_freq"), list):
        listed = keys.wholes("moe_layer_freq", layers, below=2)
        return [bool(value) for value in listed or [1] * layers]
    if (enum := keys.raw.get("moe_layers_enum")) is not None:
        words = enum.split(",") if isinstance(enum, str) else []
        if not words or not all(word.strip().isdigit() for word in words):
            keys.wrong("moe_layers_enum", "layer numbers, separated by commas")
            return [True] * layers
        chosen = {int(word) for word in words}
        return [i in chosen for i in range(layers)]
    if (listed := keys.wholes("moe_layers", below=layers)) is not None:
        return [i in listed for i in range(layers)]
    return _expert_rule(keys, layers, family)


def _expert_rule(keys: Keys, layers: int, family: Family) -> list[bool]:
    """Layers with experts by the rules that families have for them."""
    if (step := keys.whole_or(None, "interleave_moe_layer_step")) is not None:
        return [(i + 1) % step == 0 for i in range(layers)]
    if (period := keys.whole_or(None, "expert_layer_period")) is not None:
        offset = keys.count("expert_layer_offset")
        return [i % period == offset for i in range(layers)]
    if keys.first("moe_layer_start_index", "moe_layer_interval"):
        start = keys.wholes("moe_layer_start_index") if isinstance(keys.raw.get("moe_layer_start_index"), list) else None
        first, interval = start[0] if start else keys.count("moe_layer_start_index"), keys.whole_or(1, "moe_layer_interval") or 1
        last = (
            keys.whole_or(None, "moe_layer_end_index", ge=-1) if not isinstance(keys.raw.get("moe_layer_end_index"), list) else None
        )
        stop = layers - 1 if last is None or last < 0 else last
        return [first <= i <= stop and (i + 1) % interval == 0 for i in range(layers)]
    dense = keys.whole_or(None, "first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped", ge=0)
    if dense is None:
        dense = family.first_dense if keys.first("first_k_dense_replace") is None else 0
    if dense > layers:
        keys.wrong("first_k_dense_replace", f"at most num_hidden_layers ({layers})")
    step = keys.whole_or(1, "decoder_sparse_step", "moe_layer_freq") or 1
    skipped = keys.wholes("mlp_only_layers", below=layers) or []
    if len(set(skipped)) < len(skipped):
        keys.wrong("mlp_only_layers", "distinct layers")
    every = [i for i in range(layers) if (i % step == 0 if keys.first("moe_layer_freq") else (i + 1) % step == 0)]
    return [i in every and i >= dense and i not in skipped for i in range(layers)]


PREDICTION_COUNTS = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers", "mtp_num_layers", "num_mtp_layers")


def modules_of_prediction(keys: Keys) -> int:
    """Number of multi-token-prediction modules, which some lists have entries for."""
    return keys.count(*PREDICTION_COUNTS)


EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
