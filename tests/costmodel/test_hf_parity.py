"""Parameters, KV entries and FLOP compared with Hugging Face transformers, for tiny and full-size models.

torch's FLOP counter sees the products of attention only where it is written out, so models run in eager mode, where
forbidden pairs are computed too: those are taken off by the mask.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any

import pytest
import torch
from random_inputs import active_params
from torch.utils.flop_counter import FlopCounterMode

from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.forward import forward_cost
from magicdec.costmodel.speculation.drafts import kv_bytes_per_gpu
from magicdec.executor.kv.attention import visible

transformers = pytest.importorskip("transformers")

SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}
MANY: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 16}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LATENT: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_group": 2,
    "topk_group": 1,
}
GPT_OSS: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "head_dim": 16,
    "sliding_window": 8,
    "rope_parameters": PLAIN_ROPE,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2 with tied embeddings": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral with a window": ("Mistral", {"sliding_window": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16}),
    "mixtral with a window": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen3 with experts": ("Qwen3Moe", MANY),
    "qwen3 with experts but in two layers": ("Qwen3Moe", {**MANY, "mlp_only_layers": [0, 2]}),
    "deepseek": ("DeepseekV3", LATENT),
    "deepseek with uncompressed queries and one shared expert": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "n_shared_experts": 1, "first_k_dense_replace": 0},
    ),
    "gpt-oss": ("GptOss", GPT_OSS),
    "gemma 3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 3, "rope_parameters": None}),
    "gemma 3 with an untied head": ("Gemma3Text", {"head_dim": 16, "sliding_window": 8, "tie_word_embeddings": False}),
}
LATENT_CASES = tuple(name for name in CASES if name.startswith("deepseek"))
CACHED = 30
SHAPES = ((2, 20, 0), (1, 9, 0), (2, 1, CACHED), (3, 5, CACHED))
every_case = pytest.mark.parametrize("case", CASES)
every_shape = pytest.mark.parametrize(("batch", "query_len", "cached"), SHAPES)
# With a latent cache transformers expands every cached entry at every step: test_forward_families.py has those.
comparable_passes = pytest.mark.parametrize(
    ("case", "batch", "query_len", "cached"),
    [(case, *shape) for case in CASES for shape in SHAPES if not (case in LATENT_CASES and shape[-1])],
)


@cache
def hf_config(case: str) -> Any:
    family, changes = CASES[case]
    return getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})


@cache
def hf_model(case: str) -> Any:
    """A random float32 model on the CPU, because expert routing needs data, which the meta device lacks."""
    torch.manual_seed(0)
    family = CASES[case][0].removesuffix("Text")
    return getattr(transformers, f"{family}ForCausalLM")(hf_config(case)).eval().requires_grad_(False)


def ours(case: str) -> TransformerConfig:
    """Our configuration, read from the config.json of transformers."""
    return parse_hf_config(json.loads(hf_config(case).to_json_string()), where=case, name=case)


@cache
def counted(case: str, batch: int, query_len: int, cached: int) -> tuple[int, Any]:
    """FLOP that torch counts in one pass, and the cache after it."""
    model, entries = hf_model(case), None
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # renamed in 5.24
    generator = torch.Generator().manual_seed(0)
    if cached:
        tokens = torch.randint(0, SHAPE["vocab_size"], (batch, cached), generator=generator)
        entries = getattr(model(tokens, use_cache=True), name)
    tokens = torch.randint(0, SHAPE["vocab_size"], (batch, query_len), generator=generator)
    with FlopCounterMode(display=False) as counter:
        entries = getattr(model(tokens, **{name: entries}, use_cache=True), name)
    return counter.get_total_flops(), entries


def forbidden_flop(model: TransformerConfig, batch: int, query_len: int, cached: int) -> int:
    """FLOP that torch counts for masked pairs; a sliding-window cache keeps window - 1 entries."""
    flop = 0
    pair = 4 * model.d_attention
    if model.latent is not None:
        pair = 2 * model.num_heads * (model.latent.nope_dim + model.latent.rope_dim + model.latent.value_dim)
    for layers, window in model.attention_windows:
        held = cached if window is None else min(cached, window - 1)
        new = torch.arange(cached, cached + query_len)
        slots = torch.arange(cached - held, cached + query_len)
        flop += layers * batch * int((~visible(new, slots, window)).sum()) * pair
    return flop


@every_case
def test_parameters_are_those_of_transformers(case: str) -> None:
    assert ours(case).params == sum(parameter.numel() for parameter in hf_model(case).parameters())


@every_case
def test_active_parameters_are_those_of_all_modules_but_idle_experts(case: str) -> None:
    model = ours(case)
    idle = 0.0
    for name, parameter in hf_model(case).named_parameters():
        if ".experts." in name:
            assert model.experts is not None
            idle += parameter.numel() * (1 - model.experts.experts_per_token / model.experts.num_experts)
    assert active_params(model) == pytest.approx(model.params - idle, abs=1)


@pytest.mark.slow
@comparable_passes
def test_a_pass_counts_the_flop_that_torch_counts_in_transformers(case: str, batch: int, query_len: int, cached: int) -> None:
    model = ours(case)
    flop, _ = counted(case, batch, query_len, cached)
    cost = forward_cost(model, batch_size=batch, query_len=query_len, context_len=cached)
    assert float(cost.flop) == pytest.approx(flop - forbidden_flop(model, batch, query_len, cached), rel=1e-12)


@pytest.mark.parametrize("case", LATENT_CASES)
@every_shape
def test_latent_attention_never_counts_more_than_expanding_every_entry(case: str, batch: int, query_len: int, cached: int) -> None:
    model = ours(case)
    flop, _ = counted(case, batch, query_len, cached)
    expanded = flop - forbidden_flop(model, batch, query_len, cached)
    cost = forward_cost(model, batch_size=batch, query_len=query_len, context_len=cached)
    assert float(cost.flop) == pytest.approx(expanded, rel=1e-12) if not cached else float(cost.flop) < expanded


@every_case
def test_kv_bytes_are_those_of_the_cache_of_transformers(case: str) -> None:
    """Full-attention layers; a sliding-window layer of transformers keeps one entry less than its window."""
    model = ours(case).with_dtype("float32")
    batch, query_len = 3, 5
    _, cache_after = counted(case, batch, query_len, CACHED)
    held = [layer.keys.nbytes + layer.values.nbytes for layer in cache_after.layers]
    tokens = CACHED + query_len
    per_layer = model.kv_bytes_per_token / model.num_layers
    full = sum(layers for layers, window in model.attention_windows if window is None)
    assert sorted(held)[model.num_layers - full :] == [batch * tokens * per_layer] * full
    assert sorted(held)[: model.num_layers - full] == [batch * 7 * per_layer] * (model.num_layers - full)
    one_more = (model.num_layers - full) * per_layer
    assert float(kv_bytes_per_gpu(model, tokens, 1)) == sum(held) / batch + one_more


@pytest.mark.parametrize("case", LATENT_CASES)
def test_a_latent_cache_holds_what_the_down_projection_puts_out(case: str) -> None:
    widths = [layer.self_attn.kv_a_proj_with_mqa.out_features for layer in hf_model(case).model.layers]
    assert ours(case).kv_bytes_per_token == 2 * sum(widths)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, file in builtin_configs().items() if '"source"' not in file.read_text("utf-8")])
def test_a_built_in_model_has_the_parameters_that_transformers_would_allocate(name: str) -> None:
    raw = json.loads(builtin_configs()[name].read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)  # the same parameters, in other types
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    assert resolve_model(name).params == sum(parameter.numel() for parameter in model.parameters())
    assert str(model.dtype) == f"torch.{resolve_model(name).dtype}"
