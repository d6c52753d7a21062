"""Tiny random models, prompts and a decoder without a cache: what the tests of the executor share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.executor.model.transformer import Transformer

TINY = TransformerConfig(
    name="tiny",
    family="llama",
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=31,
    max_context_len=256,
    dtype="float64",
)


def tiny_model(seed: int = 0, **changes: Any) -> Transformer:
    """A random model whose choices depend on far context, unlike those of one with small weights."""
    model = Transformer(replace(TINY, **changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
        else:
            gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.5
            std = 1.0 if "embed" in name else gain / parameter.shape[1] ** 0.5
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def perturbed(model: Transformer, noise: float, seed: int = 1) -> Transformer:
    """A copy that often, but not always, chooses as the model does."""
    copy = Transformer(model.config).eval().requires_grad_(False)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for parameter in copy.parameters():
        deviation = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        parameter.add_(noise * parameter.abs().mean() * deviation)
    return copy


def random_prompts(lengths: Sequence[int], vocab_size: int = TINY.vocab_size, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def logits_TV(model: Transformer, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after every token, without a cache."""
    positions_BT = torch.arange(len(tokens), device=model.device)[None]
    return model.logits(model(torch.tensor([list(tokens)], device=model.device), positions_BT))[0]


def continue_without_cache(model: Transformer, prompt: Sequence[int], count: int) -> list[int]:
    """The model's own next tokens, reading everything anew for each of them."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_TV(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def cut_after_stop(tokens: Sequence[int], stop_tokens: Sequence[int]) -> list[int]:
    """The tokens up to the first stop token, it included."""
    for place, token in enumerate(tokens):
        if token in stop_tokens:
            return list(tokens[: place + 1])
    return list(tokens)


def hf_config(model: Transformer) -> dict[str, Any]:
    """What the `config.json` of a model without rotary scaling holds."""
    config = model.config
    return {
        "model_type": config.family,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context_len,
        "tie_word_embeddings": config.tied_embeddings,
        "sliding_window": config.sliding_window,
        "rms_norm_eps": config.norm_eps,
        "dtype": config.dtype,
    }


def weights_of(model: Transformer) -> dict[str, torch.Tensor]:
    """Every parameter once, under its checkpoint name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def save_checkpoint(folder: Path, model: Transformer, weights: dict[str, torch.Tensor] | None = None) -> None:
    """A checkpoint directory of one safetensors file, with other weights than the model's if given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(model)), encoding="utf-8")
    save_file(weights if weights is not None else weights_of(model), folder / "model.safetensors")
