"""The language model's part of a multimodal config, and the sizes that published ones leave to the defaults of transformers.

Source: the configuration classes of transformers, https://github.com/huggingface/transformers/tree/main/src/transformers/models.
Only families are listed whose published checkpoints leave some out: LLaVA, Pixtral, Mistral Small 3, PaliGemma,
Gemma 3, Qwen2-Audio.
"""

from __future__ import annotations

from collections.abc import Mapping

from .families import family_name
from .keys import Keys

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": dict(zip(SIZES, (4096, 11008, 32, 32, 32000, 2048), strict=True)),
    "mistral": {**dict(zip(SIZES, (4096, 14336, 32, 32, 32000, 131072), strict=True)), "num_key_value_heads": 8},
    "qwen2": {**dict(zip(SIZES, (4096, 22016, 32, 32, 151936, 32768), strict=True)), "num_key_value_heads": 32},
    "gemma": {**dict(zip(SIZES, (3072, 24576, 28, 16, 256000, 8192), strict=True)), "num_key_value_heads": 16},
    "gemma2": {
        **dict(zip(SIZES, (2304, 9216, 26, 8, 256000, 8192), strict=True)),
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        **dict(zip(SIZES, (2304, 9216, 26, 8, 262208, 131072), strict=True)),
        **{"num_key_value_heads": 4, "sliding_window": 4096},
    },
}


def left_out(text: Mapping[str, object]) -> dict[str, int]:
    """Sizes that the part of a language model leaves to the defaults of its class; what is given as null stays so.

    Args:
        text: The part, such as `text_config`.
    """
    usual = DEFAULTS.get(str(text.get("model_type")), {})
    return {key: value for key, value in usual.items() if key not in text}


def text_part(whole: Keys) -> tuple[Keys, list[Keys], dict[str, int]]:
    """The keys of the language model of a multimodal config, all quantisation blocks, and sizes that are defaults of its family.

    A wrapper's own keys count where the language model's are missing. If its part has a `model_type` that is known, that is its
    family; else the wrapper's.
    """
    raw, text = whole.raw, None
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        part = whole.part(name)
        if part is not None:
            text, prefix = part, f"{name}."
            if name == "thinker_config" and (inner := part.part("text_config")) is not None:
                text, prefix = inner, f"{name}.text_config."
            break
    blocks = [block for block in (whole.part("quantization_config", "quantization"),) if block is not None]
    if text is None:
        return whole, blocks, {}
    if (block := text.part("quantization_config")) is not None:
        blocks.append(block)
    outer = {key: value for key, value in raw.items() if not isinstance(value, Mapping)}
    defaults = left_out({**outer, **text.raw})
    merged = {**outer, **defaults, **text.raw}
    own, wrapper = text.raw.get("model_type"), raw.get("model_type")
    assistant = isinstance(wrapper, str) and wrapper.endswith("_assistant")  # a draft around such a model, with parts of its own
    if (assistant or not isinstance(own, str) or family_name(own) is None) and isinstance(wrapper, str):
        merged["model_type"] = wrapper
    return Keys(merged, whole.where, whole.problems, prefix), blocks, defaults
