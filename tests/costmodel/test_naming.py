"""Names as people type them: what is sure resolves, with a sentence; what is not is refused."""

from __future__ import annotations

import warnings

import pytest

from magicdec.costmodel.layers.dtypes import BYTES_PER_ELEMENT
from magicdec.costmodel.models.catalog import UnknownModelError, builtin_configs, resolve_model
from magicdec.costmodel.models.naming import ENDINGS, SAME, meaning

# What is typed, the built-in model, and the type of most matrices (of experts, where there are any).
MEANT = [
    ("llama 3.1 8b", "Llama-3.1-8B", "bfloat16"),
    ("LLAMA_3.1_8B_Instruct", "Llama-3.1-8B", "bfloat16"),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B", "bfloat16"),
    ("llama3.1:8b-instruct-q4_K_M", "Llama-3.1-8B", "q4_k"),
    ("bartowski/Llama-3.3-70B-Instruct-GGUF", "Llama-3.3-70B", "bfloat16"),
    ("neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8-dynamic", "Llama-3.1-70B", "fp8"),
    ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "Llama-3.1-70B", "w4g128z"),
    ("qwen3-32b-fp8", "Qwen3-32B-FP8", "fp8"),
    ("Qwen/Qwen3-32B-AWQ", "Qwen3-32B", "w4g128z"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B", "w4g128"),
    ("Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8", "Qwen2.5-72B", "int8"),
    ("RedHatAI/Qwen3-14B-quantized.w4a16", "Qwen3-14B", "w4g128"),
    ("RedHatAI/Qwen3-14B-quantized.w8a8", "Qwen3-14B", "int8"),
    ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "Qwen3-8B", "nf4"),
    ("mlx-community/Qwen3-8B-4bit", "Qwen3-8B", "w4g32"),
    ("Qwen3-30B-A3B-Instruct-2507-FP8", "Qwen3-30B-A3B", "fp8"),
    ("qwen3 coder 30b a3b instruct", "Qwen3-30B-A3B", "bfloat16"),
    ("deepseek r1", "DeepSeek-V3", "fp8"),
    ("deepseek-ai/DeepSeek-V3.2-Exp", "DeepSeek-V3.2", "fp8"),
    ("nvidia/DeepSeek-R1-0528-FP4", "DeepSeek-V3", "nvfp4"),
    ("gpt oss 120b", "gpt-oss-120b", "mxfp4"),
    ("openai/gpt-oss-20b-BF16", "gpt-oss-20b", "bfloat16"),
    ("GLM-5.1", "GLM-5.1-FP8", "bfloat16"),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", "Nemotron-3-Nano-30B-A3B-BF16", "fp8"),
    ("zai-org/GLM-4.5-FP8", "GLM-4.7", "fp8"),
    ("Kimi-K2-Thinking", "Kimi-K2.5", "w4g32"),
    ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "Mistral-Small-24B", "bfloat16"),
    ("mistralai/Devstral-Small-2-24B-Instruct-2512", "Devstral-Small-2-24B-FP8", "fp8"),
    ("qwen3.5-27b-nvfp4", "Qwen3.5-27B", "nvfp4"),
    ("qwen3:30b", "Qwen3-30B-A3B", "bfloat16"),
    ("qwen3-coder:30b", "Qwen3-30B-A3B", "bfloat16"),
    ("deepseek-r1:70b", "Llama-3.3-70B", "bfloat16"),
    ("gemma3:27b-it-qat", "Gemma-3-27B", "q4_0"),
    ("google/gemma-3-27b-it-qat-q4_0-gguf", "Gemma-3-27B", "q4_0"),
    ("nvidia/Llama-3_3-Nemotron-Super-49B-v1_5", "Llama-3.3-Nemotron-Super-49B-v1", "bfloat16"),
    ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "DeepSeek-V3", "nvfp4"),
    ("unsloth/DeepSeek-V3.1-GGUF:UD-Q2_K_XL", "DeepSeek-V3", "q2_k"),
    ("mlx-community/gpt-oss-20b-MXFP4-Q8", "gpt-oss-20b", "mxfp4"),
]


@pytest.mark.parametrize(("typed", "builtin", "dtype"), MEANT)
def test_what_is_meant_is_found(typed: str, builtin: str, dtype: str) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model = resolve_model(typed)
        plain = resolve_model(builtin)
    assert (model.params, model.attentions, model.recurrents) == (plain.params, plain.attentions, plain.recurrents)
    assert (model.expert_dtype or model.linear_dtype or model.dtype) == dtype
    for note in notes:
        assert f"{typed} is taken for {builtin}" in str(note.message)
    if model != plain:
        assert len(notes) == 1
        assert model.name == typed  # a plan finds it again by this name


def test_a_name_of_a_built_in_model_is_taken_without_a_note() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in builtin_configs():
            assert resolve_model(name).name == name


@pytest.mark.parametrize(
    "typed",
    [
        "deepseek-r1:72b",
        "deepseek-r1-distill-qwen-9b",
        "NousResearch/Hermes-3-Llama-3.1-9B",
        "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
        "Qwen/Qwen3-Reranker-8B",
        "mistral:7b",
        "llama-3.1-9b",
        "llama-3.1",
        "qwen3-33b",
        "qwen3-coder-481b-a35b",
        "Kimi-K2-Thinker",
        "qwen3-8b-q9_k_m",
        "qwen3-8b-lora",
        "fp8",
        "-fp8",
        "gguf",
        "",
        "models/none.gguf",
        "./llama-3.1-8b",
        "~/llama-3.1-8b",
        "llama-3.1-8b.json",
    ],
)
def test_a_near_miss_is_refused_with_the_nearest_names(typed: str) -> None:
    with pytest.raises(UnknownModelError, match="expected a built-in name"):
        resolve_model(typed)
    with pytest.raises(UnknownModelError, match=r"did you mean Llama-3\.1-8B"):
        resolve_model("llama-3.1-8c")


def test_sizes_of_a_named_mix_are_near_those_of_the_file() -> None:
    with pytest.warns(UserWarning, match="the file itself has the exact sizes"):
        model = resolve_model("llama-3.1-8b-q4_k_m")
    assert model.weight_bytes == pytest.approx(4.9129e9, rel=0.005)


def test_longest_context_of_a_later_release_is_its_own() -> None:
    with pytest.warns(UserWarning, match="up to 262,144 tokens"):
        assert resolve_model("Qwen3-4B-Instruct-2507").max_context_len == 262_144


def test_tables_name_what_exists() -> None:
    known = builtin_configs()
    assert {builtin for builtin, _, _ in SAME.values()} <= set(known)
    assert {dtype for _, dtype in ENDINGS} - {"16"} <= set(BYTES_PER_ELEMENT)
    for name in SAME:
        assert meaning(name, known) is not None


def test_a_name_of_a_gguf_type_leaves_out_the_image_encoder() -> None:
    with pytest.warns(UserWarning, match="its image encoder is a file of its own"):
        model = resolve_model("Qwen3.5-9B-Q4_K_M")
    assert (model.vision_params, resolve_model("Qwen3.5-9B").vision_params > 0) == (0, True)
