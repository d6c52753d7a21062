from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from costmodel.errors import InputError
from costmodel.transformer import FAMILIES, builtin_configs, load_config, parse_hf_config, resolve_model

# As Hugging Face counts the parameters of the published checkpoints.
PUBLISHED_PARAMS = {
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "TinyLlama-1.1B": 1_100_048_384,
}

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


@pytest.mark.parametrize("name", builtin_configs())
def test_every_built_in_model_is_plausible(name: str) -> None:
    model = resolve_model(name)
    assert model.name == name
    assert model.family in FAMILIES
    assert model.family.startswith(re.match("[a-z]+", name.lower().removeprefix("tiny"))[0])  # type: ignore[index]
    assert model.num_heads % model.num_kv_heads == 0
    assert model.head_dim in (64, 128)
    assert model.d_model < model.d_ff < 6 * model.d_model
    assert model.vocab_size >= 32_000
    assert model.max_context_len >= 2048
    assert model.bytes_per_element == 2
    assert model.weight_bytes == 2 * model.params
    (billions,) = re.findall(r"-([0-9.]+)B", name)
    assert model.params == pytest.approx(float(billions) * 1e9, rel=0.25)


@pytest.mark.parametrize(("name", "params"), PUBLISHED_PARAMS.items())
def test_parameters_are_those_of_the_published_checkpoint(name: str, params: int) -> None:
    assert resolve_model(name).params == params


def test_kv_bytes_of_a_token_are_the_published_ones() -> None:
    assert resolve_model("Llama-3.1-8B").kv_bytes_per_token == 128 * 1024
    assert resolve_model("Llama-2-7B").kv_bytes_per_token == 512 * 1024


def test_another_type_changes_bytes_and_not_parameters() -> None:
    model = resolve_model("Llama-3.1-8B")
    assert model.with_dtype("float32").weight_bytes == 2 * model.weight_bytes
    assert model.with_dtype("int4").weight_bytes == model.weight_bytes / 4
    assert model.with_dtype("float32").params == model.params


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("llama-3.1-8b", "Llama-3.1-8B"),
        ("llama_3.1_8b", "Llama-3.1-8B"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B"),
        ("Qwen/Qwen3-8B-Base", "Qwen3-8B"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama-1.1B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B-v0.3"),
        ("mistralai/Mistral-7B-v0.1", "Mistral-7B-v0.1"),
        ("meta-llama/Llama-2-7b-chat-hf", "Llama-2-7B"),
        ("togethercomputer/LLaMA-2-7B-32K", "Llama-2-7B-32K"),
    ],
)
def test_names_resolve_as_users_write_them(written: str, meant: str) -> None:
    assert resolve_model(written).name == meant


def test_no_two_built_in_models_answer_to_one_name() -> None:
    assert [resolve_model(name.lower()).name for name in builtin_configs()] == list(builtin_configs())


@pytest.mark.parametrize(
    ("written", "close"), [("llama-3.1-9b", "Llama-3.1-8B"), ("qwen2.5-8b", "Qwen2.5-7B"), ("mistral-7b", "Mistral-7B-v0.3")]
)
def test_an_unknown_name_lists_close_ones(written: str, close: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_model(written)
    (problem,) = caught.value.problems
    assert problem.where == "--model"
    assert close in problem.expected
    assert problem.found == repr(written)


def test_a_name_like_no_other_lists_none() -> None:
    with pytest.raises(InputError, match="--model: expected a built-in name") as caught:
        resolve_model("zzz")
    assert "close" not in str(caught.value)


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
    with pytest.raises(InputError, match=r"config\.json: expected JSON"):
        load_config(tmp_path)


def test_defaults_are_those_of_hugging_face() -> None:
    model = parse_hf_config({k: v for k, v in TINY.items() if k != "num_key_value_heads"}, where="", name="tiny")
    assert model.num_kv_heads == 4
    assert model.head_dim == 16
    assert not model.tied_embeddings
    assert model.norm_eps == 1e-6
    assert model.rope_theta == 10_000


def test_families_differ_in_bias_norms_and_window() -> None:
    kinds = {kind: read(model_type=kind, sliding_window=32) for kind in FAMILIES}
    assert [kind for kind in FAMILIES if kinds[kind].qkv_bias] == ["qwen2"]
    assert [kind for kind in FAMILIES if kinds[kind].qk_norm] == ["qwen3"]
    assert [kind for kind in FAMILIES if kinds[kind].sliding_window] == ["mistral"]


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
    assert found["model_type"] == ("'llama', 'mistral', 'qwen2' or 'qwen3'", "'gpt2' (str)")
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
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
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
