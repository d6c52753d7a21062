"""Models by name: common spellings find the built-in configuration; unknown names list similar ones."""

from __future__ import annotations

import json

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.hf_config import parse_hf_config


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


@pytest.mark.parametrize("name", builtin_configs())
def test_every_built_in_model_passes_the_validation_of_users_files(name: str) -> None:
    raw = json.loads(builtin_configs()[name].read_text(encoding="utf-8"))
    assert parse_hf_config(raw, where=name, name=name) == resolve_model(name)


def test_no_two_built_in_models_answer_to_one_name() -> None:
    assert [resolve_model(name.lower()).name for name in builtin_configs()] == list(builtin_configs())


@pytest.mark.parametrize(
    ("written", "close"), [("llama-3.1-9b", "Llama-3.1-8B"), ("qwen2.5-8b", "Qwen2.5-7B"), ("mistral-7b", "Mistral-7B-v0.3")]
)
def test_an_unknown_name_lists_close_ones(written: str, close: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_model(written)
    (problem,) = caught.value.problems
    assert problem.where == "model"
    assert close in problem.expected
    assert problem.found == repr(written)


def test_a_name_like_no_other_lists_none() -> None:
    with pytest.raises(InputError, match="model: expected a built-in name") as caught:
        resolve_model("zzz")
    assert "close" not in str(caught.value)
