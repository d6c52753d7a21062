"""Models of families that no reader knows, counted from the modules that transformers builds for them.

Nothing is loaded and nothing is run: the modules are built on the meta device, from transformers' own classes only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.hf.patterns import EXPERT_COUNTS
from magicdec.costmodel.layers.attention import Attention
from magicdec.costmodel.layers.layer import Counted, Layer, grouped
from magicdec.costmodel.layers.weights import Weight
from magicdec.costmodel.models.transformer import TransformerConfig

_LAYER = re.compile(r"(?:^|.*\.)(?:layers|h|blocks|layer)\.(\d+)\.(.*)")
_EXPERT = re.compile(r"(.*experts)\.\d+\.(.*)")
_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "num_selected_experts", "moe_top_k")


def counted_model(raw: Mapping[str, object], *, where: str, name: str, error: InputError) -> TransformerConfig:
    """Build the modules of a config on the meta device and count them.

    Args:
        raw: The parsed `config.json`.
        where: The file, for error messages.
        name: Display name of the model.
        error: What to raise where transformers is missing, or does not know the `model_type` as a decoder.

    Raises:
        InputError: `error`, or transformers cannot build the model from this config.
    """
    model = _built(raw, where, error)
    text: Any = model.config.get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", False))
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    outside: dict[str, tuple[int, ...]] = {}
    linear = _linear_modules(model)
    for parameter, value in model.named_parameters():
        found = _LAYER.fullmatch(parameter)
        if found is None or any(part in parameter for part in ("vision", "audio", "encoder")):
            outside[parameter] = tuple(value.shape)
        else:
            layers.setdefault(int(found[1]), {})[found[2]] = tuple(value.shape)
    if not layers:
        raise error
    used, notes = int(_first(text, _USED) or 1), list[str]()
    width = int(_number(text, "hidden_size") or 0)
    built = [_layer(shapes, linear, text, i, used, notes) for i, shapes in sorted(layers.items())]
    embedding = model.get_input_embeddings().weight.shape
    head = model.get_output_embeddings()
    separate = head is not None and head.weight is not model.get_input_embeddings().weight
    params = sum(value.numel() for value in model.parameters())
    dtype = str(getattr(text, "dtype", None) or "bfloat16").removeprefix("torch.")
    heads = int(_number(text, "num_attention_heads") or 1)
    config = TransformerConfig(
        name=name,
        family=str(raw.get("model_type")),
        num_layers=len(built),
        d_model=width or int(embedding[-1]),
        num_heads=heads,
        num_kv_heads=int(_number(text, "num_key_value_heads") or heads),
        head_dim=_head_dim(text, heads),
        d_ff=int(_number(text, "intermediate_size") or 4 * width),
        vocab_size=int(embedding[0]),
        max_context_len=int(_number(text, "max_position_embeddings") or 2**20),
        tied_embeddings=tied and not separate,
        dtype=dtype if dtype in ("float64", "float32", "bfloat16", "float16") else "bfloat16",
        groups=grouped((layer, {}) for layer in built),
        notes=("counted from the modules of transformers: no reader knows this family", *dict.fromkeys(notes)),
    )
    # Everything outside the layers that is no embedding and no head: norms, projections, encoders.
    return _balanced(config, params)


def _balanced(config: TransformerConfig, params: int) -> TransformerConfig:
    from dataclasses import replace

    return replace(config, extra_vectors=config.extra_vectors + params - config.params)


def _built(raw: Mapping[str, object], where: str, error: InputError) -> Any:
    try:
        import torch
        import transformers
    except ImportError:
        raise error from None
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in kinds:
        if isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING:
            expected = "a causal language model, or a wrapper around one with a `text_config`"
            raise bad(where, "model_type", expected, f"{model_type}, which transformers knows as something else")
        raise error
    given = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map", "quantization_config")}
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    builder: Any = transformers.AutoModelForCausalLM
    try:
        config = transformers.AutoConfig.for_model(model_type, **given)
        with torch.device("meta"):
            model = builder.from_config(config, trust_remote_code=False)
    except Exception as problem:  # what transformers raises for a bad config is of any kind
        reason = str(problem).strip().splitlines()
        raise bad(
            where, "", f"a config that transformers builds {model_type} from", reason[0] if reason else type(problem).__name__
        ) from None
    if getattr(config, "is_encoder_decoder", False):
        raise bad(where, "model_type", "a decoder", f"{model_type}, which has an encoder too")
    return model


def _linear_modules(model: Any) -> dict[str, bool]:
    """Names of matrices within their layer that are multiplied with activations; True for those stored the other way round."""
    found = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        inside = _LAYER.fullmatch(f"{name}.weight")
        if inside is not None and kind != "Embedding" and getattr(module, "weight", None) is not None and module.weight.ndim == 2:
            found[inside[2]] = kind == "Conv1D"
    return found


def _layer(
    shapes: Mapping[str, tuple[int, ...]], linear: Mapping[str, bool], text: Any, index: int, used: int, notes: list[str]
) -> Layer:
    experts: dict[tuple[str, tuple[int, ...]], int] = {}
    weights, vectors, count = list[Weight](), 0, int(_first(text, EXPERT_COUNTS) or 1)
    for name, shape in shapes.items():
        expert = _EXPERT.fullmatch(name)
        size = 1
        for length in shape:
            size *= length
        if expert is not None and len(shape) == 2:
            key = (f"{expert[1]}.{expert[2]}", shape)
            experts[key] = experts.get(key, 0) + 1
        elif len(shape) == 3 and "experts" in name:
            weights.append(Weight(name, shape[1], shape[2], "mlp", experts=shape[0], used=min(used, shape[0]), role="expert"))
        elif len(shape) == 2 and "experts" in name and count > 1 and shape[0] % count == 0 and shape[0] > count:
            weights.append(Weight(name, shape[0] // count, shape[1], "mlp", experts=count, used=min(used, count), role="expert"))
        elif len(shape) == 2 and (name in linear or name.endswith("proj")):
            outputs, inputs = (shape[1], shape[0]) if linear.get(name) else shape
            operator = "projections" if "att" in name else "mlp"
            weights.append(Weight(name, outputs, inputs, operator, "inputs" if _goes_back(name) else "outputs"))  # type: ignore[arg-type]
        else:
            vectors += size
    for (name, shape), copies in experts.items():
        weights.append(Weight(name, shape[0], shape[1], "mlp", experts=copies, used=min(used, copies), role="expert"))
    attention = _attention(shapes, linear, text, index)
    if attention is None:
        notes.append("what some layers keep between tokens could not be told: KV and state are too small")
    return Layer(attention, mlp=Counted(tuple(weights), vectors, "MLP or experts, as counted"), norms=0)


def _goes_back(name: str) -> bool:
    return any(part in name for part in ("o_proj", "down_proj", "out_proj", "c_proj", "dense_4h_to_h", "fc2", "w2"))


def _attention(shapes: Mapping[str, tuple[int, ...]], linear: Mapping[str, bool], text: Any, index: int) -> Attention | None:
    """What a layer caches, by the widths of the projections to keys and values."""
    heads = int(_number(text, "num_attention_heads") or 0)
    if not heads:
        return None
    widths = {name: shape[1] if linear.get(name) else shape[0] for name, shape in shapes.items() if len(shape) == 2}
    keys = next((width for name, width in widths.items() if re.search(r"\b(k_proj|key|wk)\.weight$", name)), None)
    values = next((width for name, width in widths.items() if re.search(r"\b(v_proj|value|wv)\.weight$", name)), None)
    head_dim = _head_dim(text, heads)
    if keys is None or values is None:
        fused = next((w for n, w in widths.items() if re.search(r"(qkv_proj|qkv|c_attn|query_key_value|Wqkv)\.weight$", n)), None)
        if fused is None or (fused - heads * head_dim) % (2 * head_dim) or fused <= heads * head_dim:
            return None
        keys = values = (fused - heads * head_dim) // 2
    if keys % head_dim or heads % max(keys // head_dim, 1):
        return None
    kv_heads = keys // head_dim
    types = getattr(text, "layer_types", None)
    sliding = isinstance(types, list | tuple) and index < len(types) and types[index] == "sliding_attention"
    window = _number(text, "sliding_window") if sliding else None
    value_dim = values // kv_heads
    return Attention(
        heads, kv_heads, head_dim, value_dim if value_dim != head_dim else None, window=int(window) if window else None
    )


def _head_dim(text: Any, heads: int) -> int:
    return int(_number(text, "head_dim") or max(int(_number(text, "hidden_size") or heads) // heads, 1))


def _first(text: Any, names: Sequence[str]) -> float | None:
    """The first of several numbers that a config, or its part for the MLP, has."""
    parts = (text, getattr(text, "ffn_config", None))
    return next((value for part in parts for name in names if part is not None and (value := _number(part, name))), None)


def _number(text: Any, name: str) -> float | None:
    try:
        value = getattr(text, name, None)
    except Exception:  # a value that differs between layers is refused with an error of transformers' own
        return None
    return value if isinstance(value, int | float) and value > 0 else None
