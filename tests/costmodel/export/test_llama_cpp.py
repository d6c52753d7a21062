"""Export to llama.cpp, compared with its documented options."""

from __future__ import annotations

import pytest
from documented import checked, fields, flags
from plans import BATCH_SIZES, STRATEGIES, plan_of, tables

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.engines import export_plan


@pytest.mark.parametrize(
    ("kind", "spec_type", "draft", "kv_type"),
    [
        ("none", "none", None, None),
        ("model", "draft-simple", "Llama-3.2-1B.gguf", None),
        ("sparse model", "draft-simple", "Llama-3.2-1B.gguf", None),
        ("int4 KV", "draft-simple", "Llama-3.1-8B.gguf", "q4_0"),
        ("int8 weights", "draft-simple", "Llama-3.1-8B-Q8_0.gguf", None),
        ("eagle3", "draft-eagle3", "PATH_TO_EAGLE3_HEAD", None),
        ("mtp", "draft-mtp", None, None),
        ("ngram", "ngram-simple", None, None),
    ],
)
def test_every_draft_that_llama_cpp_knows_has_its_type(kind: str, spec_type: str, draft: str | None, kv_type: str | None) -> None:
    found = flags(checked(plan_of(STRATEGIES[kind]), "llama.cpp"))
    assert found["--spec-type"] == spec_type
    assert found.get("--spec-draft-model") == draft
    assert found.get("--spec-draft-type-k") == found.get("--spec-draft-type-v") == kv_type
    assert found.get("--spec-draft-n-max", found.get("--spec-ngram-simple-size-m", 0)) == STRATEGIES[kind].gamma
    assert not set(found) & set(fields("llama.cpp")["removed"])


@pytest.mark.parametrize("kind", ["streaming", "snapkv", "fp8 KV"])
def test_what_llama_cpp_cannot_run_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: expected an engine that supports .*, found llama\.cpp"):
        export_plan(plan_of(STRATEGIES[kind]), "llama.cpp")


@pytest.mark.parametrize("name", tables("model"))
def test_there_is_one_draft_length_that_of_the_plans_batch(name: str) -> None:
    policy = tables("model")[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "llama.cpp")
    assert flags(export).get("--spec-draft-n-max", 0) == policy.at(16, 32_000).gamma
    if len({policy.at(batch_size, 32_000) for batch_size in BATCH_SIZES}) > 1:
        assert any("has a single draft length" in note for note in export.notes)


@pytest.mark.parametrize("kind", ["model", "eagle3", "ngram"])
def test_replayed_rates_are_one_a_draft_token_and_fall(kind: str) -> None:
    rates = flags(checked(plan_of(STRATEGIES[kind]), "llama.cpp", replay_acceptance=True))["--spec-synth-rates"]
    numbers = [float(rate) for rate in rates.split(",")]
    assert numbers == pytest.approx([0.8**i for i in range(1, STRATEGIES[kind].gamma + 1)])
