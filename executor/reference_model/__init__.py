"""The shipped reference model: a small Llama-type model, so that everything runs without a download."""

from pathlib import Path


def reference_model_dir() -> Path:
    """The checkpoint directory of the shipped model: config.json, model.safetensors, tokenizer.json."""
    return Path(__file__).parent / "checkpoint"
