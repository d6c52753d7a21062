"""Checkpoints of drafts: recognised, counted from config and headers, checked against their target."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from command_line import answered, refused, shown

LAYER = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 1, "vocab_size": 128256, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
SGLANG = {**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000, "tie_word_embeddings": False}
SPECULATORS = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": 32000,
    "target_hidden_size": None,
    "norm_before_residual": False,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}},
    "transformer_layer_config": LAYER,
}
DFLASH = {
    "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16, "hidden_size": 4096, "intermediate_size": 12288,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 5, "vocab_size": 151936,
    "max_position_embeddings": 40960, "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
}  # fmt: skip
# Tensors of EAGLE-3 heads for Llama-3.1-8B as SpecForge writes them, embedding left out: the target's is used.
TENSORS = {
    "midlayer.self_attn.q_proj.weight": (4096, 8192), "midlayer.self_attn.k_proj.weight": (1024, 8192),
    "midlayer.self_attn.v_proj.weight": (1024, 8192), "midlayer.self_attn.o_proj.weight": (4096, 4096),
    "midlayer.mlp.gate_proj.weight": (14336, 4096), "midlayer.mlp.up_proj.weight": (14336, 4096),
    "midlayer.mlp.down_proj.weight": (4096, 14336), "midlayer.input_layernorm.weight": (4096,),
    "midlayer.hidden_norm.weight": (4096,), "midlayer.post_attention_layernorm.weight": (4096,), "norm.weight": (4096,),
    "fc.weight": (4096, 12288), "lm_head.weight": (32000, 4096),
}  # fmt: skip
WHERE = "--hardware h100-sxm --batch-size 4 --context-len 16k --acceptance-rate 0.7 --gamma 3".split()


def written(tmp_path: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        header, end = dict[str, object](), 0
        for name, shape in tensors.items():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        with open(tmp_path / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return tmp_path


@pytest.mark.parametrize("config", [SGLANG, SPECULATORS])
def test_parameters_of_an_eagle3_head_are_those_of_its_tensors(config: dict[str, Any], tmp_path: Path) -> None:
    count = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in TENSORS.values())
    found = answered("models", written(tmp_path, config))
    assert found["num_parameters"] == count
    assert found["weight_bytes"] == 2 * count
    assert "a draft of the kind EAGLE-3" in found["notes"][0]


def test_weights_of_a_head_are_those_of_its_files(tmp_path: Path) -> None:
    tensors = {**TENSORS, "embed_tokens.weight": (128256, 4096)}
    found = answered("models", written(tmp_path, SGLANG, tensors))
    assert found["weight_bytes"] == 2 * sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tensors.values())


@pytest.mark.parametrize("config", [SGLANG, SPECULATORS])
def test_a_checkpoint_drafts_as_eagle3(config: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path, config)
    given = answered("predict", "--model", "llama-3.1-8b", "--draft", folder, *WHERE)
    usual = answered("predict", "--model", "llama-3.1-8b", "--draft", "eagle3", *WHERE)
    assert given["strategy"] == usual["strategy"]
    assert given["predicted_draft_step_s"] == pytest.approx(usual["predicted_draft_step_s"], rel=0.2)
    assert (
        given["predicted_draft_step_s"] > usual["predicted_draft_step_s"]
    )  # it reads embedding and hidden state, which the usual head leaves out
    assert answered("predict", "--model", "llama-3.1-8b", "--draft", folder / "config.json", *WHERE) == given


def test_a_plan_compares_it_with_other_drafts(tmp_path: Path) -> None:
    folder = written(tmp_path, SGLANG, TENSORS)
    where = "--hardware h100-sxm --batch-size 4 --context-len 16k --acceptance-rate 0.7".split()
    assert "eagle3" in shown("plan", "--model", "llama-3.1-8b", "--draft", folder, "--draft", "self", *where)


def test_a_draft_for_another_target_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, SGLANG)
    message = refused("predict", "--model", "qwen3-14b", "--draft", folder, *WHERE)
    assert "--draft: expected a draft for Qwen3-14B, with a hidden size of 5,120 and a vocabulary of 151,936" in message
    assert message.endswith("with 4,096 and 128,256\n")
    message = refused("predict", "--model", "qwen3-8b", "--draft", folder, *WHERE)
    assert "with a vocabulary of 151,936, found" in message


@pytest.mark.parametrize(
    ("config", "target", "title"),
    [
        (DFLASH, "qwen3-8b", "DFlash (a block a pass) (2.10 GB)"),
        ({**DFLASH, "architectures": ["Qwen3DSparkModel"]}, "qwen3-8b", "DSpark"),
        (
            {"speculators_model_type": "dflash", "transformer_layer_config": {**DFLASH, "architectures": []}},
            "qwen3-8b",
            "DFlash",
        ),
        ({**LAYER, "architectures": ["LlamaForCausalLMEagle"]}, "llama-3.1-8b", "kind eagle,"),
        ({**LAYER, "speculators_model_type": "peagle"}, "llama-3.1-8b", "kind peagle,"),
    ],
)
def test_kinds_that_cannot_be_priced_say_so(config: dict[str, Any], target: str, title: str, tmp_path: Path) -> None:
    message = refused("predict", "--model", target, "--draft", written(tmp_path, config), *WHERE)
    assert title in message
    assert message.endswith(", which cannot be priced yet\n")


def test_a_prediction_module_drafts_as_mtp(tmp_path: Path) -> None:
    config = {**LAYER, "model_type": "llama", "architectures": ["LlamaForCausalLMMTP"], "num_nextn_predict_layers": 1}
    found = answered("predict", "--model", "llama-3.1-8b", "--draft", written(tmp_path, config), *WHERE)
    assert found["strategy"]["draft_kind"] == "mtp"


def test_a_draft_is_no_target(tmp_path: Path) -> None:
    message = refused("predict", "--model", written(tmp_path, SGLANG), *WHERE)
    assert message.startswith("error: --model: expected a model of its own; drafts go to --draft, found")
    assert message.endswith("a draft of the kind EAGLE-3\n")


def test_an_incomplete_config_names_its_key(tmp_path: Path) -> None:
    inner = {key: value for key, value in LAYER.items() if key != "hidden_size"}
    message = refused("models", written(tmp_path, {**SPECULATORS, "transformer_layer_config": inner}))
    assert "transformer_layer_config.hidden_size: expected a value, found nothing" in message
    inner = {key: value for key, value in LAYER.items() if key != "intermediate_size"}
    assert "intermediate_size: expected a value" in refused(
        "models", written(tmp_path, {**SGLANG, **inner, "intermediate_size": None})
    )
