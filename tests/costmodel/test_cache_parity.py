"""What small models of transformers keep between tokens, compared with what their layers are said to keep."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.passes.cache import kv_bytes_per_gpu

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "dtype": "float32",
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_expand": 2}
LATENT = {"kv_lora_rank": 24, "q_lora_rank": 28, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
CASES: dict[str, dict[str, Any]] = {
    "qwen3_next": {**EXPERTS, **DELTA},
    "qwen3_5_text": DELTA,
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3},
    "granitemoehybrid": {
        **MAMBA2,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "head_dim": None,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 1,
        "sliding_window": 300,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 8,
    },
    "olmo3": {"sliding_window": 300},
    "llama4_text": {"num_local_experts": 4, "attention_chunk_size": 300, "intermediate_size_mlp": 96},
}
TOKENS = 20


def held(cache: Any) -> Iterator[torch.Tensor]:
    """Every tensor that a cache holds."""
    for layer in cache.layers:
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                yield value
            elif isinstance(value, dict | list | tuple):
                values = value.values() if isinstance(value, dict) else value
                yield from (one for one in values if isinstance(one, torch.Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CASES)
def test_the_cache_of_transformers_is_as_large(model_type: str) -> None:
    given = {key: value for key, value in {**BASE, **CASES[model_type]}.items() if value is not None}
    config = transformers.AutoConfig.for_model(model_type, **given)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ours = parse_hf_config({**given, **json.loads(config.to_json_string())}, where="config.json", name="small").with_dtype(
        "float32"
    )
    name = "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
    found = getattr(network(torch.randint(1, 100, (1, TOKENS)), use_cache=True), name)
    size = sum(tensor.nbytes for tensor in held(found))
    assert size == float(kv_bytes_per_gpu(ours, TOKENS, 1)) + ours.state_bytes_per_sequence
