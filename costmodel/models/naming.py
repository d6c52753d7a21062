"""Names as people type them: which built-in model is meant, and which quantisation. A name that is not sure is not guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .transformer import TransformerConfig

# Parts of a name that say nothing of sizes or types.
WORDS = {"instruct", "chat", "hf", "base", "it", "gguf", "mlx", "unsloth", "imatrix", "i1", "ud", "safetensors", "latest", "think"}
VENDORS = {"meta", "nvidia", "google", "openai", "mistralai", "microsoft", "ibm"}
# Endings that name a quantisation, tried in this order.
ENDINGS: tuple[tuple[str, str], ...] = (
    (r"qat-q4-0-unquantized", "16"),
    (r"qat(?:-(?:q4-0|4bit|int4))?", "q4_0"),
    (r"(?:w8a8-)?fp8(?:-(?:dynamic|block|static|kv|ptpc|e4m3))*", "fp8"),
    (r"mxfp4(?:-moe|-q[48])?", "mxfp4"),
    (r"(?:nvfp4|fp4)(?:-kv|-v\d)?|nvfp4a16|w4a4", "nvfp4"),
    (r"(?:awq(?:-(?:4bit|int4|w4a16|w4a16-asym|g128|marlin))?|(?:4bit|int4|w4a16)-awq)", "w4g128z"),
    (
        r"(?:gptq(?:-v2)?(?:-(?:4bit|int4|w4a16|g128|marlin|128g))*|(?:4bit|int4|w4a16)-gptq|autoround(?:-int4)?|int4-autoround)",
        "w4g128",
    ),
    (r"(?:gptq-|bnb-)?(?:int8|8bit)|(?:quantized\.)?(?:w8a8|w8a16)|int8-w8a16", "int8"),
    (r"(?:quantized\.)?w4a16(?:-g128)?|int4(?:-w4a16)?", "w4g128"),
    (r"(?:dynamic-)?bnb-4bit|nf4", "nf4"),
    (r"4bit(?:-dwq(?:-[\da-z]+)?)?", "w4g32"),
    (r"3bit", "w3g32"),
    (r"5bit", "w5g32"),
    (r"6bit", "w6g32"),
    (r"q8-0|q8-k-xl", "q8_0"),
    (r"q6-k(?:-x?l)?", "q6_k"),
    (r"q5-k(?:-x?[lms])?", "q5_k"),
    (r"q4-k(?:-x?[lms])?", "q4_k"),
    (r"q3-k(?:-x?[lms])?", "q3_k"),
    (r"q2-k(?:-x?[lms])?", "q2_k"),
    (r"q5-0", "q5_0"),
    (r"q4-0", "q4_0"),
    (r"iq4-xs", "iq4_xs"),
    (r"iq4-nl", "iq4_nl"),
    (r"iq3-(?:xxs|xs|s|m)", "iq3_s"),
    (r"iq2-(?:xxs|xs|s|m)", "iq2_s"),
    (r"q8", "q8_0"),
    (r"q4", "q4_k"),
    (r"bf16|f16|fp16|bfloat16|float16", "16"),
)
# What llama.cpp stores the head in, where it is not a mix.
GGML_HEADS = {
    "q8_0": "q8_0",
    "q6_k": "q6_k",
    "q4_0": "q6_k",
    "q5_0": "q6_k",
    "iq4_xs": "q6_k",
    "iq4_nl": "q6_k",
    "q2_k": "q6_k",
} | {
    "iq3_s": "q6_k",
    "iq2_s": "q5_k",
}
TITLES = {
    "w4g128z": "AWQ in 4 bits",
    "w4g128": "4-bit integers",
    "w3g32": "3 bits",
    "w4g32": "4 bits",
    "w5g32": "5 bits",
    "w6g32": "6 bits",
    "nf4": "bitsandbytes in 4 bits",
    "16": "16 bits",
}
# Checkpoints with the layers of a built-in model: the model, the longest context if it differs, the quantisation if it has one.
# Source: the `config.json` of each on the Hub, where these keys are the same.
SAME: dict[str, tuple[str, int | None, str | None]] = {
    "deepseek-r1": ("DeepSeek-V3", None, None),
    "deepseek-r1-0528": ("DeepSeek-V3", None, None),
    "deepseek-r1-671b": ("DeepSeek-V3", None, None),
    "deepseek-v3-0324": ("DeepSeek-V3", None, None),
    "deepseek-v3-671b": ("DeepSeek-V3", None, None),
    "deepseek-v3.1": ("DeepSeek-V3", None, None),
    "deepseek-v3.1-terminus": ("DeepSeek-V3", None, None),
    "deepseek-v3.2-exp": ("DeepSeek-V3.2", None, None),
    "deepseek-r1-distill-llama-8b": ("Llama-3.1-8B", None, None),
    "deepseek-r1-distill-llama-70b": ("Llama-3.3-70B", None, None),
    "deepseek-r1-distill-qwen-14b": ("Qwen2.5-14B", 131_072, None),
    "deepseek-r1-distill-qwen-32b": ("Qwen2.5-32B", 131_072, None),
    "deepseek-r1-distill-qwen-7b": ("Qwen2.5-7B", 131_072, None),
    "deepseek-r1-0528-qwen3-8b": ("Qwen3-8B", 131_072, None),
    # As ollama calls them.
    "deepseek-r1-7b": ("Qwen2.5-7B", 131_072, None),
    "deepseek-r1-8b": ("Qwen3-8B", 131_072, None),
    "deepseek-r1-14b": ("Qwen2.5-14B", 131_072, None),
    "deepseek-r1-32b": ("Qwen2.5-32B", 131_072, None),
    "deepseek-r1-70b": ("Llama-3.3-70B", None, None),
    "deepseek-v3.1-671b": ("DeepSeek-V3", None, None),
    "llama3.3": ("Llama-3.3-70B", None, None),
    "command-r": ("Command-R-35B", None, None),
    "mistral-small": ("Mistral-Small-24B", None, None),
    "mistral-small3.1": ("Mistral-Small-24B", 131_072, None),
    "mistral-small3.1-24b": ("Mistral-Small-24B", 131_072, None),
    "mistral-small3.2": ("Mistral-Small-24B", 131_072, None),
    "mistral-small3.2-24b": ("Mistral-Small-24B", 131_072, None),
    "mixtral-8x22b": ("Mixtral-8x22B-v0.1", None, None),
    "nemotron-3-nano": ("Nemotron-3-Nano-30B-A3B-BF16", None, None),
    "phi4-14b": ("Phi-4", None, None),
    "qwq": ("Qwen2.5-32B", 131_072, None),
    "seed-oss": ("Seed-OSS-36B", None, None),
    "smollm3": ("SmolLM3-3B", None, None),
    "tinyllama": ("TinyLlama-1.1B", None, None),
    "glm-4.5": ("GLM-4.7", 131_072, None),
    "glm-4.6": ("GLM-4.7", None, None),
    "llama-4-maverick": ("Llama-4-Maverick-17B-128E", None, None),
    "llama-4-maverick-17b": ("Llama-4-Maverick-17B-128E", None, None),
    "llama-4-scout": ("Llama-4-Scout-17B-16E", None, None),
    "llama-4-scout-17b": ("Llama-4-Scout-17B-16E", None, None),
    "kimi-k2-0905": ("Kimi-K2", 262_144, None),
    "qwen3.8-27b": ("Qwen3.5-27B", None, None),  # 64 layers of the same kinds, by the reports on it
    "qwen3.6-27b": ("Qwen3.5-27B", None, None),
    "kimi-k2-thinking": ("Kimi-K2.5", None, None),
    "minimax-m2": ("MiniMax-M2.5", None, None),
    "minimax-m2.7": ("MiniMax-M2.5", 204_800, None),
    "mistral-small-24b-2501": ("Mistral-Small-24B", None, None),
    "mistral-small-3.1-24b-2503": ("Mistral-Small-24B", 131_072, None),
    "mistral-small-3.2-24b-2506": ("Mistral-Small-24B", 131_072, None),
    "devstral-2-123b-2512": ("Devstral-2-123B-FP8", None, "fp8"),
    "devstral-small-2-24b-2512": ("Devstral-Small-2-24B-FP8", None, "fp8"),
    "devstral-small-2507": ("Mistral-Small-24B", 131_072, None),
    "magistral-small-2509": ("Mistral-Small-24B", 131_072, None),
    "qwen3-coder-480b": ("Qwen3-Coder-480B-A35B", None, None),
    "qwen3-next-80b-a3b-thinking": ("Qwen3-Next-80B-A3B", None, None),
    "qwen3-coder-next": ("Qwen3-Next-80B-A3B", None, None),
    "qwen3-4b-2507": ("Qwen3-4B", 262_144, None),
    "qwen3-4b-thinking-2507": ("Qwen3-4B", 262_144, None),
    "qwen3-30b-a3b-2507": ("Qwen3-30B-A3B", 262_144, None),
    "qwen3-30b-a3b-thinking-2507": ("Qwen3-30B-A3B", 262_144, None),
    "qwen3-coder-30b-a3b": ("Qwen3-30B-A3B", 262_144, None),
    "qwen3-235b-a22b-2507": ("Qwen3-235B-A22B", 262_144, None),
    "qwen3-235b-a22b-thinking-2507": ("Qwen3-235B-A22B", 262_144, None),
    "qwq-32b": ("Qwen2.5-32B", 131_072, None),
    "qwen2.5-math-7b": ("Qwen2.5-7B", 4096, None),
    "qwen2.5-math-72b": ("Qwen2.5-72B", 4096, None),
    "qwen2.5-7b-1m": ("Qwen2.5-7B", 1_010_000, None),
    "qwen2.5-14b-1m": ("Qwen2.5-14B", 1_010_000, None),
    "llama-3-70b": ("Llama-3.1-70B", 8192, None),
    "llama-3.1-nemotron-70b": ("Llama-3.1-70B", None, None),
    "llama-3.3-nemotron-super-49b-v1.5": ("Llama-3.3-Nemotron-Super-49B-v1", None, None),
    "hermes-3-llama-3.1-8b": ("Llama-3.1-8B", None, None),
    "hermes-3-llama-3.1-70b": ("Llama-3.1-70B", None, None),
    "hermes-3-llama-3.1-405b": ("Llama-3.1-405B", None, None),
    "hermes-4-70b": ("Llama-3.1-70B", None, None),
    "hermes-4-405b": ("Llama-3.1-405B", None, None),
    "mistral-7b-v0.2": ("Mistral-7B-v0.3", None, None),
    "mixtral-8x7b-v0.1": ("Mixtral-8x7B", None, None),
    "magistral-small-2506": ("Mistral-Small-24B", 40_960, None),
    "magistral-small-2507": ("Mistral-Small-24B", 40_960, None),
    "devstral-small-2505": ("Mistral-Small-24B", 131_072, None),
    "qwen3-vl-8b-thinking": ("Qwen3-VL-8B", None, None),
    "qwen3-vl-32b-thinking": ("Qwen3-VL-32B", None, None),
    "qwen3-vl-30b-a3b-thinking": ("Qwen3-VL-30B-A3B", None, None),
    "qwen3-vl-235b-a22b-thinking": ("Qwen3-VL-235B-A22B", None, None),
} | {f"qwen2.5-coder-{size}": (f"Qwen2.5-{size.upper()}", None, None) for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b")}
_ACTIVE = re.compile(r"(?<=\db)a\d+(?:\.\d+)?b$")


@dataclass(frozen=True)
class Meaning:
    """What a name means.

    Attributes:
        builtin: The built-in model.
        quantisation: Storage type of its matrices; `16` for none; None for that of the built-in config.
        max_context_len: Longest context, where it is not that of the built-in config. [tokens]
        vague: The name says that there is a quantisation, but not which.
    """

    builtin: str
    quantisation: str | None = None
    max_context_len: int | None = None
    vague: bool = False


def spelling(name: str) -> str:
    """The name without differences of spelling: case, separators, and words such as `-hf` and `-instruct`."""
    name = re.sub(r"[^a-z0-9.]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-")
    name = re.sub(r"-(instruct|chat|hf|base|it)\b", "", name).removeprefix("meta-").removesuffix("-v1.0")
    return name.replace("-", "")


def base_name(name: str) -> str:
    """The name of a model without quantisation and differences of spelling; other names are left as they are."""
    return _parts(name)[0]


def meaning(name: str, known: Iterable[str]) -> Meaning | None:
    """Say which of the known models a name means; None if that is not sure.

    Args:
        name: What the user typed.
        known: Names of the built-in models.
    """
    rest, quantisation, gguf = _parts(name)
    by_base: dict[str, dict[str | None, str]] = {}
    for builtin in known:
        base, own, _ = _parts(builtin)
        by_base.setdefault(base, {})[own] = builtin
    same = {key.replace("-", ""): value for key, value in SAME.items()}
    vague = gguf and quantisation is None
    if rest not in by_base and rest not in same:
        # ollama and speech leave out how many parameters are active: qwen3:30b.
        whole = {base for base in (*by_base, *same) if _ACTIVE.sub("", base) == rest}
        rest = whole.pop() if len(whole) == 1 else rest
    if rest in by_base and (rest not in same or quantisation is not None):
        found = by_base[rest]
        if quantisation in found:
            return Meaning(found[quantisation], vague=vague)
        # A checkpoint in 16 bits may be built in under a quantised name only, and the reverse.
        return Meaning(found.get(None) or found.get("16") or next(iter(found.values())), quantisation or "16", vague=vague)
    if rest in same:
        builtin, context, own = same[rest]
        return Meaning(builtin, quantisation or own, context, vague=vague)
    return None


def _parts(name: str) -> tuple[str, str | None, bool]:
    """The name of the model without separators, its quantisation, and whether it is called GGUF."""
    text = re.sub(r"(?<![qQ])(\d)_(?=\d)", r"\1.", name.rsplit("/", 1)[-1])  # Llama-3_3
    text = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    text = re.sub(r"\.(?=(?:i?q\d|f16|bf16))", "-", text)  # model.Q4_K_M
    gguf = bool(re.search(r"(?:^|-)gguf(?:-|$)", text))
    words = [word for word in text.split("-") if word not in WORDS]
    while words and words[0] in VENDORS:
        words = words[1:]
    text, quantisation = "-".join(words), None
    for pattern, dtype in ENDINGS:
        found = re.search(rf"-(?:{pattern})$", text)
        if found is not None:
            text, quantisation = text[: found.start()], dtype
            break
    return text.removesuffix("-v1.0").replace("-", ""), quantisation, gguf


def applied(config: TransformerConfig, meant: Meaning, name: str) -> tuple[TransformerConfig, str]:
    """The model that is meant, and a sentence that says what was taken for what.

    Args:
        config: The built-in config.
        meant: What the name means.
        name: What the user typed.
    """
    text, dtype = f"{name} is taken for {meant.builtin}", meant.quantisation
    changed = config
    if dtype is not None and _usual_type(config) != dtype:
        plain = config.with_dtype(config.dtype)
        changed = replace(plain, state_dtype=config.state_dtype)
        if dtype != "16":
            changed = changed.compressed(weight_dtype=dtype)
            text += f" with all matrices of its layers in {TITLES.get(dtype, dtype)}"
        else:
            text += " in 16 bits"
        if dtype in ("q3_k", "q4_k", "q5_k"):
            changed = _mixed(changed)
            text += ", half of the down-projections and the head in q6_k; the file itself has the exact sizes"
        elif dtype in GGML_HEADS:
            changed = _with_head(changed, GGML_HEADS[dtype])
            text += f", the head in {GGML_HEADS[dtype]}"
        if changed.vision_params and dtype.startswith(("q", "iq")):
            changed = replace(changed, vision_params=0)
            text += "; its image encoder is a file of its own and is left out"
    if meant.max_context_len is not None:
        changed = replace(changed, max_context_len=meant.max_context_len)
        text += f", up to {meant.max_context_len:,} tokens"
    if meant.vague:
        text += "; which GGUF type is not said, so weights count as in its config"
    if changed != config:
        changed = replace(changed, name=name)
    return changed, text


def _usual_type(config: TransformerConfig) -> str:
    dtype = config.expert_dtype or config.linear_dtype
    if dtype is None:  # types may be stored matrix by matrix
        dtype = next((kind for group in config.groups for _, kind in group.stored if kind not in ("bfloat16", "float16")), None)
    return "16" if dtype in (None, "bfloat16", "float16") else dtype


def _mixed(config: TransformerConfig) -> TransformerConfig:
    """The mix that llama.cpp calls `_M`, nearly: half of the down-projections, and the head, in a wider type."""
    groups = []
    for group in config.layers:
        stored: Mapping[str, str] = dict(group.stored)
        names = [weight.name for weight in group.layer.mlps(config.d_model) if weight.name in ("down", "expert_down")]
        wide = tuple(sorted({**stored, **dict.fromkeys(names, "q6_k")}.items()))
        if group.count // 2 and names:
            groups += [replace(group, count=group.count // 2, stored=wide)]
        groups += [replace(group, count=group.count - (group.count // 2 if names else 0))]
    return _with_head(replace(config, groups=tuple(groups)), "q6_k")


def _with_head(config: TransformerConfig, dtype: str) -> TransformerConfig:
    """The model with embedding and head as llama.cpp stores them: a tied embedding in the type of the head."""
    if config.tied_embeddings:
        return replace(config, embedding_dtype=dtype)
    return replace(config, embedding_dtype=config.linear_dtype, head_dtype=dtype)
