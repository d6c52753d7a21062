from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.plan import (
    Plan,
    PlannedHardware,
    PlannedModel,
    PredictedRound,
    RunnerUp,
    fingerprint,
    load_plan,
    parse_plan,
    render_plan,
)
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.costmodel.plans.workload import Workload


def plan_for(model: TransformerConfig, strategy: Strategy, draft: TransformerConfig | None = None) -> Plan:
    numbers = {name: 0.5 for name in PredictedRound.__dataclass_fields__ if name not in ("bound", "breakdown")}
    numbers["predicted_mean_acceptance_length"] = 1.0
    return Plan(
        workload=Workload(16, 32_000, 128),
        hardware=PlannedHardware(name="h200-sxm", sha256="0" * 64, num_gpus=8, tensor_parallel=8),
        target=PlannedModel(name=model.name, fingerprint=fingerprint(model)),
        draft=PlannedModel(name=draft.name, fingerprint=fingerprint(draft)) if draft else None,
        strategy=strategy,
        prediction=PredictedRound(**numbers, bound="kv", breakdown={"target": {"kv": 0.25}}),  # type: ignore[arg-type]
        runner_up=RunnerUp(strategy=NO_SPECULATION, predicted_speedup=1.0),
        notes=["a note: with a colon, and µ"],
    )


SELF = Strategy("self", "streaming_llm", 512, 4)
TEXT = render_plan(plan_for(resolve_model("Llama-3.1-8B"), SELF))


def changed(pattern: str, replacement: str) -> str:
    result, count = re.subn(pattern, replacement, TEXT, count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    return result


def problems_of(text: str) -> dict[str, tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        parse_plan(text, where="plan.yaml")
    assert {problem.where for problem in caught.value.problems} == {"plan.yaml"}
    return {problem.key: (problem.expected, problem.found) for problem in caught.value.problems}


@pytest.mark.parametrize("strategy", [SELF, NO_SPECULATION, Strategy("self", "snapkv", 2049, 1)])
def test_a_plan_survives_being_written_and_read(llama: TransformerConfig, strategy: Strategy) -> None:
    plan = plan_for(llama, strategy)
    assert parse_plan(render_plan(plan), where="plan.yaml") == plan


def test_a_plan_with_a_small_draft_survives_too(llama: TransformerConfig, small_llama: TransformerConfig, tmp_path: Path) -> None:
    plan = plan_for(llama, Strategy("model", "full", None, 4, "Llama-3.2-1B"), small_llama)
    (tmp_path / "plan.yaml").write_text(render_plan(plan), encoding="utf-8")
    assert load_plan(tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize(
    ("pattern", "replacement", "key", "found"),
    [
        ("^workload:", "colour: red\nworkload:", "colour", "'red'"),
        ("  output_len: 128", "  output_len: 128\n  colour: red", "workload.colour", "'red'"),
        ("  gamma: 4", "  gamma: 4\n  colour: red", "strategy.colour", "'red'"),
        ("kv_budget: 512", "kv_budget: 0", "strategy.kv_budget", "0"),
        ("kv_budget: 512", "kv_budget: null", "strategy.kv_budget", "None"),
        ("gamma: 4", "gamma: 0", "strategy.gamma", "0"),
        ("gamma: 4", "gamma: 65", "strategy.gamma", "65"),
        ("batch_size: 16", "batch_size: 0", "workload.batch_size", "0"),
        ("batch_size: 16", "batch_size: true", "workload.batch_size", "True (bool)"),
        ("batch_size: 16", "batch_size: 16.5", "workload.batch_size", "16.5 (float)"),
        ("context_len: 32000", "context_len: '32000'", "workload.context_len", "'32000' (str)"),
        ("predicted_speedup: 0.5", "predicted_speedup: 1e3x", "prediction.predicted_speedup", "'1e3x' (str)"),
        ("schema_version: 1", "schema_version: 2", "schema_version", "2 (int)"),
        ("draft_kind: self", "draft_kind: other", "strategy.draft_kind", "'other' (str)"),
        ("draft_kind: self", "draft_kind: model", "strategy.draft_model", "None"),
        ("kv_policy: streaming_llm", "kv_policy: h2o", "strategy.kv_policy", "'h2o' (str)"),
        ("num_gpus: 8", "num_gpus: -8", "hardware.num_gpus", "-8 (int)"),
        ("bound: kv", "bound: vibes", "prediction.bound", "'vibes' (str)"),
        (r"  output_len: 128\n", "", "workload.output_len", ""),
    ],
)
def test_every_kind_of_bad_plan_names_its_key(pattern: str, replacement: str, key: str, found: str) -> None:
    if key == "workload.output_len":  # it has a default
        assert parse_plan(changed(pattern, replacement), where="plan.yaml").workload.output_len == 128
        return
    problems = problems_of(changed(pattern, replacement))
    assert set(problems) == {key}
    assert problems[key][1] == found


def test_a_missing_part_is_named() -> None:
    assert problems_of(changed(r"^target:\n.*\n.*\n", ""))["target"] == ("a value", "nothing")


def test_all_errors_of_a_plan_are_named_at_once() -> None:
    text = changed("batch_size: 16", "batch_size: 0").replace("gamma: 4", "gamma: 0").replace("kv_budget: 512", "kv_budget: -1")
    text = text.replace("num_gpus: 8", "num_gpus: eight")
    assert set(problems_of(text)) == {"workload.batch_size", "strategy.gamma", "strategy.kv_budget", "hardware.num_gpus"}


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_prediction_is_a_finite_number(value: str) -> None:
    assert set(problems_of(changed("predicted_speedup: 0.5", f"predicted_speedup: {value}"))) == {"prediction.predicted_speedup"}


@pytest.mark.parametrize(("text", "found"), [("- 1", "list"), ("", "NoneType"), ("just text", "str")])
def test_yaml_that_is_no_mapping_is_refused(text: str, found: str) -> None:
    expected, was = problems_of(text)[""]
    assert "a plan" in expected
    assert was == found


def test_what_is_not_yaml_is_refused() -> None:
    assert "in YAML" in problems_of("a: [")["line 2"][0]


def test_a_key_that_is_no_text_is_refused() -> None:
    assert problems_of("2026-11-22: a date\n" + TEXT)


def test_an_unreadable_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a readable plan file"):
        load_plan(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="expected a readable plan file"):
        load_plan(tmp_path / "binary.yaml")


def test_a_plan_runs_the_model_it_was_made_for_and_no_other(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    plan = plan_for(llama, Strategy("model", "full", None, 4, "Llama-3.2-1B"), small_llama)
    plan.check_model("target", llama, "model_dir")
    plan.check_model("draft", small_llama, "draft_dir")
    with pytest.raises(InputError, match=r"model_dir: expected the planned target Llama-3\.1-8B .*found Llama-3\.2-1B"):
        plan.check_model("target", small_llama, "model_dir")
    with pytest.raises(InputError, match=r"draft_dir: expected the planned draft Llama-3\.2-1B .*found Llama-3\.1-8B"):
        plan.check_model("draft", llama, "draft_dir")


def test_a_fingerprint_knows_the_architecture_and_neither_name_nor_type(llama: TransformerConfig) -> None:
    assert fingerprint(replace(llama, name="my finetune", dtype="float32")) == fingerprint(llama)
    assert fingerprint(replace(llama, rope_theta=1e4)) != fingerprint(llama)
    assert fingerprint(replace(llama, num_kv_heads=4)) != fingerprint(llama)
    assert fingerprint(llama.compressed(weight_dtype="int4", kv_dtype="fp8")) == fingerprint(llama)
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(llama))


def test_a_fingerprint_stays_what_it_was_when_models_learn_new_facts(llama: TransformerConfig) -> None:
    """Plans and measurements on disk contain fingerprints, so they must not change."""
    assert fingerprint(llama) == "fb7e1ef73cd06264"


def test_a_fingerprint_knows_experts_latents_and_windows(
    deepseek: TransformerConfig, gpt_oss: TransformerConfig, gemma: TransformerConfig
) -> None:
    assert deepseek.experts is not None
    assert deepseek.latent is not None
    assert gpt_oss.experts is not None
    others = [
        replace(deepseek, experts=replace(deepseek.experts, experts_per_token=6)),
        replace(deepseek, latent=replace(deepseek.latent, q_rank=None)),
        replace(gpt_oss, experts=replace(gpt_oss.experts, bias=False)),
        replace(gpt_oss, attention_sinks=False),
        replace(gemma, num_window_layers=51),
        replace(gemma, sliding_window=512),
    ]
    known = [fingerprint(model) for model in (deepseek, gpt_oss, gemma, *others)]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (NO_SPECULATION, "no speculation"),
        (SELF, "self-speculation, streaming_llm budget 512, gamma 4"),
        (Strategy("model", "full", None, 2, "TinyLlama-1.1B"), "draft TinyLlama-1.1B, full KV, gamma 2"),
        (Strategy("ngram", gamma=3), "ngram draft, gamma 3"),
        (Strategy("self", "full", None, 5, kv_dtype="int4"), "self-speculation, full KV, KV in int4, gamma 5"),
    ],
)
def test_a_strategy_prints_as_people_say_it(strategy: Strategy, text: str) -> None:
    assert str(strategy) == text


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ({"gamma": 3}, {"gamma"}),
        ({"draft_kind": "self", "gamma": 3}, {"kv_policy"}),
        ({"draft_kind": "self", "kv_policy": "snapkv", "gamma": 0}, {"gamma", "kv_budget"}),
        ({"draft_kind": "model", "gamma": 3}, {"draft_model"}),
        ({"draft_kind": "model", "gamma": 3, "draft_model": "x", "kv_budget": 7}, {"kv_budget"}),
        ({"draft_kind": "self", "kv_policy": "snapkv", "kv_budget": 7, "gamma": 3, "draft_model": "x"}, {"draft_model"}),
    ],
)
def test_a_strategy_that_makes_no_sense_names_every_reason(arguments: dict[str, object], keys: set[str]) -> None:
    with pytest.raises(InputError) as caught:
        Strategy(**arguments)  # type: ignore[arg-type]
    assert {problem.key for problem in caught.value.problems} == keys


def test_a_workload_knows_its_mean_and_its_longest_context() -> None:
    workload = Workload(4, 1000, 100)
    assert workload.mean_context_len == 1050
    assert workload.max_context_len == 1100
    with pytest.raises(InputError) as caught:
        Workload(0, -1, 5)
    assert [problem.key for problem in caught.value.problems] == ["batch_size", "context_len"]
