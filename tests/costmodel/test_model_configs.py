"""Configs of models that are served today: sizes, types and caches against what is published and against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.layers.attention import Compressed, Latent
from magicdec.costmodel.layers.mlp import ExpertMlp
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.hf_config import load_config, parse_hf_config
from magicdec.costmodel.passes.cache import kv_bytes_per_gpu
from magicdec.costmodel.passes.forward import forward_cost
from magicdec.costmodel.speculation.memory import memory_of

# Billions of parameters, in all and active, as names or model cards say.
SIZES = {
    "DeepSeek-V3.2": (671, 37),
    "GLM-5-FP8": (744, 40),
    "GLM-5.1-NVFP4": (744, 40),
    "GLM-5.3-FP8": (744, 40),
    "Gemma-4-26B-A4B": (26, 4),
    "Gemma-4-31B-NVFP4": (31, 31),
    "Kimi-K2": (1026, 32),
    "Kimi-K2.6-NVFP4": (1026, 32),
    "Llama-4-Scout-17B-16E": (109, 17),
    "MiMo-V2-Flash": (309, 15),
    "MiniMax-M2.5": (230, 10),
    "Mixtral-8x22B-v0.1": (141, 39),
    "Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.2),
    "Nemotron-3-Super-120B-A12B-BF16": (120, 12),
    "Nemotron-3-Ultra-550B-A55B-BF16": (550, 55),
    "Qwen3-235B-A22B-FP8": (235, 22),
    "Qwen3-30B-A3B-FP8": (30, 3),
    "Qwen3-32B-FP8": (32, 32),
    "Qwen3-VL-235B-A22B": (235, 22),
    "Qwen3-VL-30B-A3B": (30, 3),
    "Qwen3-VL-8B": (8, 8),
    "Qwen3.5-27B": (27, 27),
    "Qwen3.5-397B-A17B": (397, 17),
    "Qwen3.5-397B-A17B-NVFP4": (397, 17),
    "Qwen3.6-35B-A3B-NVFP4": (35, 3),
    "gpt-oss-20b": (20.9, 3.6),
}


@pytest.mark.parametrize(("name", "total", "active"), [(name, *sizes) for name, sizes in SIZES.items()])
def test_sizes_are_those_of_the_name_or_the_model_card(name: str, total: float, active: float) -> None:
    model = resolve_model(name)
    assert model.params == pytest.approx(total * 1e9, rel=0.03)
    assert model.active_params == pytest.approx(active * 1e9, rel=0.08)


def raw_of(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(builtin_configs()[name].read_text(encoding="utf-8"))
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in builtin_configs() if "architectures" not in raw_of(name)])
def test_parameters_are_those_of_the_modules_of_transformers(name: str) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    raw = raw_of(name)
    text = {**raw.get("text_config", raw)}
    text.pop("quantization_config", None)
    text.setdefault("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    other = {
        "kimi_k2": "deepseek_v3",
        "deepseek_ref": "deepseek_v4",
        "minimax_m3": "minimax_m3_vl_text",
        "step3p7": "step3p5",
        "exaone4_5_text": "exaone4",
    }
    model_type = text.pop("model_type", None) or "minimax_m3_vl_text"
    model_type = other.get(model_type, model_type)
    if model_type in ("nemotron-nas", "mimo"):
        pytest.skip("transformers does not have the family")
    if model_type == "step3p5":
        pytest.skip("transformers registers it only inside its multimodal wrapper")
    if model_type == "kimi_linear":
        pytest.skip("transformers has the smaller family, without latent experts and full-rank gates")
    config = transformers.AutoConfig.for_model(model_type, **text)
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config)
            head = 0
        except ValueError:  # only the model without its head is registered
            model = transformers.AutoModel.from_config(config)
            head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert resolve_model(name).params == sum(parameter.numel() for parameter in model.parameters()) + head


def test_modules_that_are_left_out_of_quantisation_stay_in_16_bits() -> None:
    types = {matrix.name: matrix.dtype for matrix in resolve_model("Qwen3.5-397B-A17B-NVFP4").matrices()}
    assert types["expert_gate_up"] == types["expert_down"] == "nvfp4"
    assert {types[name] for name in ("shared_gate_up", "in_qkvz", "router", "head")} == {"bfloat16"}
    mixed = {matrix.name: matrix.dtype for matrix in resolve_model("Qwen3.6-35B-A3B-NVFP4").matrices()}
    assert {mixed[name] for name in ("expert_gate_up", "shared_gate_up", "head")} == {"nvfp4"}
    assert {mixed[name] for name in ("in_qkvz", "out", "qkv", "o")} == {"fp8"}
    glm = {matrix.name: matrix.dtype for matrix in resolve_model("GLM-5.1-NVFP4").matrices()}
    assert (glm["gate_up"], glm["shared_gate_up"], glm["q_up"], glm["expert_gate_up"]) == (*["bfloat16"] * 3, "nvfp4")
    assert resolve_model("GLM-5.1-NVFP4").kv_dtype == "fp8"


def test_experts_beside_an_mlp_are_quantised_where_the_mlp_is_not() -> None:
    types = {matrix.name: matrix.dtype for matrix in resolve_model("Gemma-4-26B-A4B-NVFP4").matrices()}
    assert (types["expert_gate_up"], types["expert_down"], types["gate_up"]) == ("nvfp4", "nvfp4", "bfloat16")


def test_the_type_of_the_cache_may_be_a_name() -> None:
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "FP8"}
    assert parse_hf_config({**raw_of("Qwen3-8B"), "quantization_config": block}, where="config.json", name="x").kv_dtype == "fp8"


def test_a_group_of_four_bits_has_its_scale() -> None:
    model = resolve_model("DeepSeek-V4-Flash")
    (up,) = [matrix for matrix in model.matrices() if matrix.name == "expert_gate_up"]
    assert up.dtype == "mxfp4"
    assert up.bytes == 43 * 256 * 2 * 2048 * 4096 * (4 / 8 + 1 / 32)


def test_caches_of_kinds_that_grow_and_of_kinds_that_do_not() -> None:
    hybrid = resolve_model("Qwen3.5-27B")
    assert float(kv_bytes_per_gpu(hybrid, 1000, 1)) == 1000 * 16 * 2 * 4 * 256 * 2
    conv = (2 * 16 * 128 + 48 * 128) * 4 * 2
    assert hybrid.state_bytes_per_sequence == 48 * (48 * 128 * 128 * 4 + conv)
    windows = resolve_model("Gemma-4-26B-A4B")
    full, window = 5 * 2 * 2 * 512 * 2, 25 * 2 * 8 * 256 * 2
    assert float(kv_bytes_per_gpu(windows, 5000, 1)) == 5000 * full + 1024 * window
    chosen = resolve_model("GLM-5.3-FP8")
    assert chosen.kv_bytes_per_token == 78 * 576 * 2 + 21 * 132  # every fourth layer chooses, and the first three
    compressed = resolve_model("DeepSeek-V4-Flash")
    entries = 43 * 128 + 21 * 4096 / 4 + 20 * 4096 / 128
    assert float(kv_bytes_per_gpu(compressed, 4096, 1)) == entries * 512 * 2 + 21 * 4096 / 4 * 132


def test_what_a_model_is_made_of() -> None:
    nano = resolve_model("Nemotron-3-Nano-30B-A3B-BF16")
    assert [(kind.kind, layers) for kind, layers in nano.recurrents] == [("Mamba-2", 23)]
    assert sum(layers for _, layers in nano.attentions) == 6
    ((kind, layers), *_) = resolve_model("DeepSeek-V3.2").attentions
    assert isinstance(kind, Latent)
    assert layers == 61
    assert kind.index is not None
    assert kind.index.chosen == 2048
    latent = [group.layer.mlp for group in resolve_model("Nemotron-3-Super-120B-A12B-BF16").layers]
    assert any(isinstance(mlp, ExpertMlp) and mlp.latent == 1024 for mlp in latent)
    assert {kind.ratio for kind, _ in resolve_model("DeepSeek-V4-Flash").attentions if isinstance(kind, Compressed)} == {0, 4, 128}
    llama4 = resolve_model("Llama-4-Scout-17B-16E")
    assert llama4.attention_windows == ((36, 8192), (12, None))


def test_prediction_modules_are_drafts_and_no_part_of_the_target() -> None:
    model = resolve_model("Qwen3.5-27B")
    assert model.num_mtp == 1
    assert sum(group.count for group in model.layers) == 64
    (module,) = model.mtp
    assert module.layer.attention is not None


def test_a_name_that_promises_what_the_config_does_not_say_is_noted() -> None:
    raw = raw_of("Qwen3-8B")
    (note,) = parse_hf_config(raw, where="config.json", name="Qwen3-8B-FP8").notes
    assert "FP8" in note
    assert parse_hf_config(raw, where="config.json", name="Qwen3-8B").notes == ()


def test_verification_writes_a_state_after_each_token_and_a_prompt_one() -> None:
    model = resolve_model("Qwen3.5-27B")
    state = model.state_bytes_per_sequence
    step, verification, prompt = (
        forward_cost(model, batch_size=3, query_len=tokens, context_len=1000, logits_len=logits)
        for tokens, logits in ((1, None), (5, None), (1000, 1))
    )
    activations = float(step.state.bytes) / 3 - 2 * state  # of a token: what the recurrence reads and writes beside its state
    assert 0 < activations < 0.05 * state
    assert float(verification.state.bytes) == pytest.approx(3 * (6 * state + 5 * activations))
    assert float(prompt.state.bytes) == pytest.approx(3 * (2 * state + 1000 * activations))
    plain, drafting = (memory_of(model, batch_size=3, max_context_len=1000, gamma=gamma) for gamma in (0, 4))
    grown = float(kv_bytes_per_gpu(model, 1004, 1) - kv_bytes_per_gpu(model, 1000, 1))
    assert float(drafting.kv_bytes - plain.kv_bytes) == 3 * (4 * state + grown)
    assert any("one state per draft token" in note for note in model.notes)


def test_an_indexer_reads_every_key_and_attention_only_what_it_chose() -> None:
    model = resolve_model("DeepSeek-V3.2")
    short, long = (forward_cost(model, batch_size=1, query_len=1, context_len=tokens) for tokens in (10_000, 100_000))
    (attention, index), (far, far_index) = short.attentions, long.attentions
    assert float(attention.bytes) == float(far.bytes) == 61 * (2048 + 1) * 576 * 2
    assert (float(index.bytes), float(far_index.bytes)) == (61 * 10_001 * 132, 61 * 100_001 * 132)  # keys in FP8 with a scale each
    assert float(index.flop) == 61 * 10_001 * 2 * 64 * 128
    assert (attention.dtype, index.dtype) == (None, "fp8")  # priced at that rate
    verified = forward_cost(model, batch_size=1, query_len=4, context_len=100_000).attentions[0]
    assert float(verified.bytes) == 61 * (4 * 2048 + 4) * 576 * 2
    assert float(verified.flop) == 4 * 61 * 2048 * 2 * 128 * (2 * 512 + 64)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "gptq", "bits": 7}, "bits"),
        ({"quant_method": "awq", "bits": -4, "group_size": 128}, "bits"),
        ({"quant_method": "magic"}, "quant_method"),
        ({"quant_algo": "NVFP5", "quant_method": "modelopt"}, "quant_algo"),
        ({}, "quant_method"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 9, "type": "float"}}}}, "num_bits"),
        ("fp8", "quantization_config"),
    ],
)
def test_quantisation_that_cannot_be_is_named(block: object, key: str) -> None:
    with pytest.raises(InputError, match=rf"config\.json: .*{key}"):
        parse_hf_config({**raw_of("Qwen3-8B"), "quantization_config": block}, where="config.json", name="x")


def test_two_quantisations_of_one_model_must_agree() -> None:
    text = {**raw_of("Qwen3-8B"), "quantization_config": {"quant_method": "fp8"}}
    whole = {"text_config": text, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    with pytest.raises(InputError, match="blocks that contradict one another"):
        parse_hf_config(whole, where="config.json", name="x")


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "w4g128z"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    ],
)
def test_quantisation_gives_layers_their_type_and_leaves_the_head(block: dict[str, object], dtype: str) -> None:
    model = parse_hf_config({**raw_of("Qwen3-8B"), "quantization_config": block}, where="config.json", name="x")
    *layers, head = model.matrices()
    assert {matrix.dtype for matrix in layers} == {dtype}
    assert head.dtype == "bfloat16"


def test_hf_quant_config_beside_the_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_of("Qwen3-8B")))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}})
    )
    model = load_config(tmp_path)
    assert (model.linear_dtype, model.kv_dtype) == ("fp8", "fp8")
