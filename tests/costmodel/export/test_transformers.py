"""Export to transformers, compared with its documented arguments and the installed release."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from documented import check_values, checked, fields
from plans import BATCH_SIZES, STRATEGIES, of, plan_of, table, tables

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.engines import export_plan

KINDS = ["none", "model", "sparse model", "int8 weights", "ngram", "mtp"]


def keywords(kind: str, **options: Any) -> dict[str, Any]:
    python = checked(plan_of(STRATEGIES[kind]), "transformers", **options).python
    check_values(python, fields("transformers")["python"])
    return python


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", {}),
        ("ngram", {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 5}),
        ("model", {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}),
        ("mtp", {"use_mtp": True}),
    ],
)
def test_every_draft_that_transformers_knows_has_its_arguments(kind: str, expected: dict[str, Any]) -> None:
    assert keywords(kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_installed_release_knows_the_arguments(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    python = keywords(kind)
    config = transformers.GenerationConfig()
    missing = {name for name in python if not hasattr(config, name)}
    if missing == {"use_mtp"}:
        pytest.skip(f"transformers {transformers.__version__} has no use_mtp yet")
    assert not missing
    assert config.update(**python) == {}  # nothing unused
    config.validate()


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_is_a_program_that_uses_the_arguments(kind: str) -> None:
    export = checked(plan_of(STRATEGIES[kind]), "transformers", model_dir="org/target")
    tree = ast.parse(export.files["generate.py"])
    passed = {keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert set(export.python) <= passed
    assert ("assistant_model" in passed) == ("num_assistant_tokens" in passed)
    assert "'org/target'" in export.files["generate.py"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "ngram"])
def test_the_exported_arguments_make_generate_draft_so_many_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    tiny = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    torch.manual_seed(0)
    model, assistant = transformers.LlamaForCausalLM(tiny), transformers.LlamaForCausalLM(tiny)
    for each in (model, assistant):
        each.generation_config.update(eos_token_id=None, pad_token_id=0)
    arguments = keywords(kind)
    if kind == "model":
        assistant.generation_config.update(**arguments)
        arguments = {"assistant_model": assistant}
    widths = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    model.generate(torch.tensor([[1, 2, 3, 4] * 4]), max_new_tokens=40, do_sample=False, **arguments)
    assert max(widths[1:]) == STRATEGIES[kind].gamma + 1


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_batch_is_said_loudly_to_be_impossible(batch_size: int) -> None:
    notes = checked(plan_of(STRATEGIES["ngram"], batch_size=batch_size), "transformers").notes
    assert notes[0].startswith("ATTENTION: transformers supports drafting only at batch size 1") == (batch_size > 1)


@pytest.mark.parametrize("kind", ["streaming", "snapkv", "fp8 KV", "int4 KV", "eagle3"])
def test_what_transformers_cannot_run_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: expected an engine that supports .*, found transformers"):
        export_plan(plan_of(STRATEGIES[kind]), "transformers")


@pytest.mark.parametrize("name", tables("ngram"))
def test_of_a_policy_table_counts_the_row_of_batch_1(name: str) -> None:
    policy = tables("ngram")[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "transformers")
    assert export.python.get("prompt_lookup_num_tokens", 0) == policy.at(1, 32_000).gamma
    if len({policy.at(batch_size, 32_000) for batch_size in BATCH_SIZES}) > 1:
        assert any("has a single draft length" in note for note in export.notes)


def test_of_several_drafts_counts_that_of_batch_1() -> None:
    policy = table(of("ngram", 3), of("model", 4))
    assert checked(plan_of(policy.at(8, 32_000), policy, batch_size=8), "transformers").python["prompt_lookup_num_tokens"] == 3


def test_there_is_no_replay() -> None:
    notes = checked(plan_of(STRATEGIES["ngram"]), "transformers", replay_acceptance=True).notes
    assert any("Acceptance is not simulated" in note for note in notes)
