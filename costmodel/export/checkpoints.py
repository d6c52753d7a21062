"""Repositories of built-in models on the Hugging Face Hub, and of their quantised copies: what a command can load."""

from __future__ import annotations

# Where a name says nothing of instruction tuning, the tuned checkpoint: it has the same layers, and is what is served.
REPOSITORIES = {
    "CodeLlama-34B": "codellama/CodeLlama-34b-hf",
    "DeepSeek-V3": "deepseek-ai/DeepSeek-V3",
    "Gemma-3-27B": "google/gemma-3-27b-it",
    "Kimi-K2": "moonshotai/Kimi-K2-Instruct",
    "Llama-160M": "JackFram/llama-160m",
    "Llama-68M": "JackFram/llama-68m",
    "Llama-2-7B": "meta-llama/Llama-2-7b-chat-hf",
    "Llama-2-13B": "meta-llama/Llama-2-13b-chat-hf",
    "Llama-2-70B": "meta-llama/Llama-2-70b-chat-hf",
    "Llama-2-7B-32K": "togethercomputer/LLaMA-2-7B-32K",
    "Llama-3-8B": "meta-llama/Meta-Llama-3-8B-Instruct",
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Llama-3.2-1B": "meta-llama/Llama-3.2-1B-Instruct",
    "Llama-3.2-3B": "meta-llama/Llama-3.2-3B-Instruct",
    "Llama-3.3-70B": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama-4-Scout-17B-16E": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "Mistral-7B-v0.1": "mistralai/Mistral-7B-Instruct-v0.1",
    "Mistral-7B-v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
    "Mixtral-8x7B": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "Mixtral-8x22B-v0.1": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "Sheared-LLaMA-1.3B": "princeton-nlp/Sheared-LLaMA-1.3B",
    "TinyLlama-1.1B": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "Yi-6B": "01-ai/Yi-6B-Chat",
    "Yi-34B": "01-ai/Yi-34B-Chat",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}
TUNED_QWEN = ("Qwen2-", "Qwen2.5-", "Qwen3-VL-")  # named `-Instruct` on the Hub; Qwen3 is not
QUANTISED = {
    ("Llama-3.1-8B", "int8"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
    ("Llama-3.1-8B", "int4"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
    ("Llama-3.1-8B", "fp8"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8",
    ("Llama-3.1-70B", "int8"): "RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w8a8",
    ("Llama-3.1-70B", "int4"): "RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w4a16",
    ("Llama-3.1-70B", "fp8"): "RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8",
    ("Llama-3.3-70B", "int8"): "RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8",
    ("Llama-3.3-70B", "int4"): "RedHatAI/Llama-3.3-70B-Instruct-quantized.w4a16",
    ("Llama-3.3-70B", "fp8"): "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    **{
        (f"Qwen2.5-{size}", dtype): f"Qwen/Qwen2.5-{size}-Instruct-{suffix}"
        for size in ("7B", "14B", "32B", "72B")
        for dtype, suffix in (("int8", "GPTQ-Int8"), ("int4", "AWQ"))
    },
    **{(f"Qwen3-{size}", "fp8"): f"Qwen/Qwen3-{size}-FP8" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")},
}


def repository(name: str) -> str | None:
    """The repository of a built-in model; None if it is not known."""
    if name.startswith("Qwen"):
        return f"Qwen/{name}-Instruct" if name.startswith(TUNED_QWEN) else f"Qwen/{name}"
    return REPOSITORIES.get(name)


def quantised(name: str, dtype: str) -> str | None:
    """The repository of a built-in model with its weights in a smaller type; None if none is known."""
    return QUANTISED.get((name, dtype))
