"""What of a Hugging Face `config.json` is read, and what is refused rather than misunderstood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.architecture import Experts, LatentAttention
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.hf_config import load_config, parse_hf_config
from magicdec.costmodel.models.transformer import FAMILIES

TINY: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def read(**changes: object) -> Any:
    return parse_hf_config({**TINY, **changes}, where="tiny/config.json", name="tiny")


def problems_of(raw: object) -> dict[str, tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        parse_hf_config(raw, where="tiny/config.json", name="tiny")
    assert {problem.where for problem in caught.value.problems} == {"tiny/config.json"}
    return {problem.key: (problem.expected, problem.found) for problem in caught.value.problems}


def test_a_config_is_read_from_its_file_and_from_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    assert load_config(folder) == load_config(folder / "config.json")
    assert load_config(folder).name == "my-model"
    assert resolve_model(str(folder)).d_model == 64
    assert resolve_model(str(folder / "config.json")).vocab_size == 100


def test_a_missing_file_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: expected a readable config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: expected config.json as JSON"):
        load_config(tmp_path)


def test_defaults_are_those_of_hugging_face() -> None:
    model = parse_hf_config({k: v for k, v in TINY.items() if k != "num_key_value_heads"}, where="", name="tiny")
    assert model.num_kv_heads == 4
    assert model.head_dim == 16
    assert not model.tied_embeddings
    assert model.norm_eps == 1e-6
    assert model.rope_theta == 10_000


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 24, "q_lora_rank": 28, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
LAYER_TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
NEEDED: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 20},
    "deepseek_v3": {**EXPERTS, **LATENT, "moe_intermediate_size": 20},
    "gpt_oss": {**EXPERTS, **LAYER_TYPES},
    "gemma3": LAYER_TYPES,
}


def read_family(family: str, **changes: object) -> Any:
    """A tiny model of a family, with what its config.json must say besides."""
    return read(**{"model_type": family, **NEEDED.get(family, {}), **changes})


def test_families_differ_in_bias_norms_and_window() -> None:
    kinds = {kind: read_family(kind, sliding_window=32) for kind in FAMILIES}
    assert [kind for kind in FAMILIES if kinds[kind].qkv_bias] == ["qwen2", "gpt_oss"]
    assert [kind for kind in FAMILIES if kinds[kind].o_bias] == ["gpt_oss"]
    assert [kind for kind in FAMILIES if kinds[kind].attention_sinks] == ["gpt_oss"]
    assert [kind for kind in FAMILIES if kinds[kind].qk_norm] == ["qwen3", "qwen3_moe", "gemma3"]
    assert [kind for kind in FAMILIES if kinds[kind].norms_per_layer == 4] == ["gemma3"]
    assert [kind for kind in FAMILIES if kinds[kind].sliding_window] == ["mistral", "mixtral", "gpt_oss", "gemma3"]
    assert [kind for kind in FAMILIES if kinds[kind].experts] == ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]
    assert [kind for kind in FAMILIES if kinds[kind].latent] == ["deepseek_v3"]


def test_experts_are_read_by_the_name_each_family_has_for_them() -> None:
    wide = {"num_experts_per_tok": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_shared_experts": 3}
    deepseek = read(model_type="deepseek_v3", n_routed_experts=7, **LATENT, **wide).experts
    assert deepseek == Experts(7, 2, 20, d_ff_shared=60, num_dense_layers=1)
    assert read(model_type="mixtral", num_local_experts=7, num_experts_per_tok=3).experts == Experts(7, 3, 96)
    assert read_family("qwen3_moe", mlp_only_layers=[1]).experts == Experts(8, 2, 20, num_dense_layers=1)
    assert read_family("gpt_oss").experts == Experts(8, 2, 96, bias=True)


def test_latent_attention_is_read_and_its_heads_are_those_of_the_expanded_keys() -> None:
    model = read_family("deepseek_v3")
    assert model.latent == LatentAttention(kv_rank=24, rope_dim=8, nope_dim=12, value_dim=10, q_rank=28)
    assert model.head_dim == 20
    assert read_family("deepseek_v3", q_lora_rank=None).latent.q_rank is None


@pytest.mark.parametrize("family", [family for family in FAMILIES if NEEDED.get(family)])
def test_what_a_family_needs_is_named_when_missing(family: str) -> None:
    optional = {"q_lora_rank"}
    for key in NEEDED[family].keys() - optional:
        raw = {**TINY, "model_type": family, **NEEDED[family]}
        del raw[key]
        assert key in str(problems_of(raw)), key


def test_the_window_is_that_of_the_layers_that_slide() -> None:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    some = read_family("gemma3", num_hidden_layers=3, layer_types=layers, sliding_window=32)
    assert some.attention_windows == ((1, None), (2, 32))
    assert read_family("mistral", sliding_window=32).attention_windows == ((2, 32),)
    assert read_family("mistral", sliding_window=None).attention_windows == ((2, None),)
    assert read_family("gemma3", layer_types=["sliding_attention"] * 2, sliding_window=32).attention_windows == ((2, 32),)
    assert read_family("gemma3", layer_types=["full_attention"] * 2, sliding_window=32).attention_windows == ((2, None),)
    assert read_family("qwen2", sliding_window=32).attention_windows == ((2, None),)


def test_layers_must_be_as_many_as_their_types() -> None:
    problems = problems_of({**TINY, "model_type": "gemma3", "layer_types": ["full_attention"] * 3})
    assert set(problems) == {"layer_types"}


def test_the_language_model_of_a_multimodal_config_is_read() -> None:
    text = {**TINY, **LAYER_TYPES, "sliding_window": 32, "model_type": "gemma3_text", "head_dim": 16}
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 7}, "torch_dtype": "bfloat16"}
    model = parse_hf_config(whole, where="tiny/config.json", name="tiny")
    assert model == parse_hf_config(text, where="tiny/config.json", name="tiny")
    assert model.tied_embeddings, "as Gemma's config.json does not say and means"


def test_quantised_checkpoints_are_read_where_their_families_come_quantised() -> None:
    fp8 = read_family("deepseek_v3", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert (fp8.dtype, fp8.linear_dtype, fp8.expert_dtype, fp8.kv_dtype) == ("bfloat16", "fp8", "fp8", None)
    mxfp4 = read_family("gpt_oss", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    assert (mxfp4.dtype, mxfp4.linear_dtype, mxfp4.expert_dtype, mxfp4.kv_dtype) == ("bfloat16", None, "mxfp4", None)
    assert "quantization_config" in str(problems_of({**TINY, "quantization_config": {"quant_method": "fp8"}}))
    assert "quantization_config" in str(problems_of({**TINY, "quantization_config": {"quant_method": "awq"}}))


def test_a_way_of_stretching_that_is_not_executed_is_refused_where_the_model_is() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    for odd in ({**yarn, "mscale": 1.0}, {**yarn, "truncate": False}):
        assert set(problems_of({**TINY, "rope_scaling": odd})) == {"rope_scaling"}
        assert read_family("deepseek_v3", rope_scaling=odd).rope_scaling.factor == 4


def test_rope_parameters_read_like_theta_and_scaling() -> None:
    stretch = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old, new = read(rope_theta=500_000.0, rope_scaling=stretch), read(rope_parameters={"rope_theta": 500_000.0, **stretch})
    assert new == old
    assert new.rope_theta == 500_000
    assert new.rope_scaling is not None
    assert new.rope_scaling.factor == 8


def test_default_rope_parameters_stretch_nothing() -> None:
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 1e6}) == read(rope_theta=1e6, rope_scaling=None)


def test_the_old_name_of_the_rope_type_is_read() -> None:
    assert read(rope_scaling={"type": "linear", "factor": 2.0}) == read(rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_dtype_is_read_by_its_old_and_new_name() -> None:
    assert read(torch_dtype="float16").dtype == read(dtype="float16").dtype == "float16"
    assert read().dtype == "bfloat16"


def test_all_errors_of_a_config_are_named_at_once() -> None:
    raw: dict[str, object] = {**TINY, "model_type": "gpt2", "hidden_size": "64", "intermediate_size": 96.5}
    del raw["vocab_size"]
    found = problems_of(raw)
    assert set(found) == {"model_type", "hidden_size", "intermediate_size", "vocab_size"}
    assert found["model_type"][0].startswith("'llama', 'mistral', ")
    assert all(f"'{family}'" in found["model_type"][0] for family in FAMILIES)
    assert found["model_type"][1] == "'gpt2' (str)"
    assert found["hidden_size"][1] == "'64' (str)"
    assert found["vocab_size"][1] == "nothing"


def test_an_error_in_json_gives_no_advice_on_yaml() -> None:
    assert "YAML" not in str(problems_of({**TINY, "hidden_size": "64"}))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "deepseek_v3", "attention_bias": True, **NEEDED["deepseek_v3"]}, "attention_bias"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "qwen3_moe", "use_sliding_window": True, **NEEDED["qwen3_moe"]}, "use_sliding_window"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2, **NEEDED["qwen3_moe"]}, "decoder_sparse_step"),
    ],
)
def test_keys_that_contradict_one_another_are_named(changes: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=rf"tiny/config\.json: .*{key}"):
        read(**changes)


def test_contradictions_are_all_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        read(hidden_size=66, num_key_value_heads=3)
    assert len(caught.value.problems) == 2
    assert str(caught.value).count("a multiple of") == 2


@pytest.mark.parametrize("block", ["rope_scaling", "rope_parameters"])
def test_an_error_in_the_rope_block_names_the_block(block: str) -> None:
    assert set(problems_of({**TINY, block: {"rope_type": "dynamic", "factor": 2.0}})) == {f"{block}.rope_type"}


@pytest.mark.parametrize("raw", [[], None, "llama", 3])
def test_json_that_is_no_mapping_is_refused(raw: object) -> None:
    ((key, (_, found)),) = problems_of(raw).items()
    assert key == ""
    assert found == f"{raw!r} ({type(raw).__name__})"


def test_no_message_names_our_classes() -> None:
    assert "_HfConfig" not in str(problems_of([]))


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("deepseek_v3", {"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ("deepseek_v3", {"first_k_dense_replace": -1}, "first_k_dense_replace"),
        ("deepseek_v3", {"n_shared_experts": -1}, "n_shared_experts"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, "mlp_only_layers"),
    ],
)
def test_experts_must_be_possible(family: str, changes: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=rf"tiny/config\.json: .*{key}"):
        read_family(family, **changes)


@pytest.mark.parametrize("family", ["gemma3", "gpt_oss"])
def test_layers_that_slide_need_a_window(family: str) -> None:
    assert "sliding_window" in str(problems_of({**TINY, "model_type": family, **NEEDED[family], "sliding_window": None}))


def test_biases_are_as_the_config_says() -> None:
    with_bias, without = (read_family("gpt_oss", attention_bias=bias, sliding_window=32) for bias in (True, False))
    assert with_bias.qkv_bias
    assert not without.qkv_bias
    assert with_bias.params - without.params == 2 * (64 + 2 * 32 + 64)
