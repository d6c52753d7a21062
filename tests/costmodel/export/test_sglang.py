"""Export to SGLang, compared with its documented options and adaptive configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest
from documented import check_values, checked, fields, flags
from plans import BATCH_SIZES, STRATEGIES, plan_of, tables

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.document import Export
from magicdec.costmodel.export.engines import export_plan

KNOWN = fields("sglang")


def check_rules(export: Export) -> dict[str, Any]:
    """The flags, after the rules that span several of them."""
    found = flags(export)
    chain = [name in found for name in KNOWN["all_or_none"]]
    if found.get("--speculative-algorithm") != "NGRAM":
        assert all(chain) or not any(chain)
        if any(chain):
            assert found["--speculative-eagle-topk"] == 1
            assert found["--speculative-num-draft-tokens"] == found["--speculative-num-steps"] + 1
    if "--speculative-adaptive" in found:
        assert found["--speculative-algorithm"] in KNOWN["adaptive_algorithms"]
        slots = adaptive(export)
        assert min(map(int, slots)) == 1
        assert found["--speculative-num-steps"] in {step for slot in slots.values() for step in slot["candidate_steps"]}
    return found


def adaptive(export: Export) -> dict[str, Any]:
    """The slots of the adaptive configuration, checked."""
    config = json.loads(export.files["adaptive.json"])
    for key, slot in config.items():
        if not key.isdigit():
            check_values({key: slot}, KNOWN["adaptive_globals"])
            continue
        check_values(slot, KNOWN["adaptive_slot"])
        assert len(slot["candidate_steps"]) == 1
    return {key: slot for key, slot in config.items() if key.isdigit()}


def drafted(export: Export, batch_size: int) -> int:
    """What SGLang drafts: the slot of the largest least batch size that is reached."""
    found = check_rules(export)
    if "--speculative-algorithm" not in found:
        return 0
    if "--speculative-adaptive" not in found:
        return found["--speculative-num-draft-tokens"] - 1
    slots = adaptive(export)
    return slots[str(max(least for least in map(int, slots) if least <= batch_size))]["candidate_steps"][0]


@pytest.mark.parametrize(
    ("kind", "algorithm", "path"),
    [
        ("model", "STANDALONE", "meta-llama/Llama-3.2-1B-Instruct"),
        ("sparse model", "STANDALONE", "meta-llama/Llama-3.2-1B-Instruct"),
        ("int8 weights", "STANDALONE", "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"),
        ("ngram", "NGRAM", None),
        ("eagle3", "EAGLE3", "PATH_TO_EAGLE3_HEAD"),
        ("mtp", "EAGLE", None),
        ("none", None, None),
    ],
)
def test_every_draft_that_sglang_knows_has_its_algorithm(kind: str, algorithm: str | None, path: str | None) -> None:
    export = checked(plan_of(STRATEGIES[kind]), "sglang")
    found = check_rules(export)
    assert found.get("--speculative-algorithm") == algorithm
    assert found.get("--speculative-draft-model-path") == path
    assert drafted(export, 1) == STRATEGIES[kind].gamma
    assert not export.files


def test_a_head_is_named_by_the_user() -> None:
    assert "heads/eagle3" in checked(plan_of(STRATEGIES["eagle3"]), "sglang", draft_dir="heads/eagle3").arguments


@pytest.mark.parametrize("kind", ["streaming", "snapkv", "fp8 KV", "int4 KV"])
def test_what_sglang_cannot_run_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: expected an engine that supports .*, found sglang"):
        export_plan(plan_of(STRATEGIES[kind]), "sglang")


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
@pytest.mark.parametrize("name", tables("mtp"))
@pytest.mark.parametrize("experimental", [False, True])
def test_slots_read_back_are_the_policy_table_but_for_zero(kind: str, name: str, experimental: bool) -> None:
    policy = tables(kind)[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "sglang", experimental=experimental)
    gammas = [policy.at(batch_size, 32_000).gamma for batch_size in BATCH_SIZES]
    floor = 1 if any(gammas) and not experimental else 0
    for batch_size in range(1, 2 * BATCH_SIZES[-1]):
        assert drafted(export, batch_size) == max(policy.at(batch_size, 32_000).gamma, floor)
    if any(gammas) and 0 in gammas:
        assert any("length 0" in note for note in export.notes)


@pytest.mark.parametrize("kind", ["model", "ngram"])
@pytest.mark.parametrize("name", tables("ngram"))
def test_other_algorithms_have_one_draft_length_that_of_the_plans_batch(kind: str, name: str) -> None:
    policy = tables(kind)[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "sglang")
    assert drafted(export, 1) == policy.at(16, 32_000).gamma
    if len({policy.at(batch_size, 32_000) for batch_size in BATCH_SIZES}) > 1:
        assert any("has a single draft length" in note for note in export.notes)


@pytest.mark.parametrize("kind", ["model", "ngram", "eagle3", "mtp"])
def test_the_simulated_length_is_the_predicted_one(kind: str) -> None:
    export = checked(plan_of(STRATEGIES[kind]), "sglang", replay_acceptance=True)
    gamma = STRATEGIES[kind].gamma
    length = float(export.environment["SGLANG_SIMULATE_ACC_LEN"])
    assert length == pytest.approx((1 - 0.8 ** (gamma + 1)) / 0.2, abs=1e-3)
    assert 1 <= length <= gamma + 1
