"""Export to TensorRT-LLM, compared with the fields of both versions of draft_len_schedule."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from documented import check_values, checked, fields
from plans import BATCH_SIZES, STRATEGIES, plan_of, tables

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.document import Export, Options
from magicdec.costmodel.export.engines import export_plan

KNOWN = fields("tensorrt-llm")
VERSIONS = ["1.2", "1.3"]


def speculative(export: Export, version: str) -> dict[str, Any]:
    """The speculative_config, after the rules of its validation; empty for none."""
    config = yaml.safe_load(export.files["trtllm.yaml"])
    check_values(config, KNOWN["config"])
    found = config.get("speculative_config", {})
    check_values(found, KNOWN["speculative_config"])
    if not found:
        return {}
    assert found["decoding_type"] in KNOWN["decoding_types"][version]
    assert config.get("disable_overlap_scheduler", False) == (found["decoding_type"] in KNOWN["overlap_must_be_off"])
    assert sum(name in found for name in KNOWN["exclusive"]) <= 1
    schedule = found.get("draft_len_schedule", {})
    assert all(type(batch_size) is int and batch_size >= 1 and gamma >= 0 for batch_size, gamma in schedule.items())
    if schedule:
        assert schedule[min(schedule)] == found["max_draft_len"] == max(schedule.values())
        assert version != "1.2" or min(schedule) == 1
    return found


def drafted(found: dict[str, Any], batch_size: int, version: str) -> int:
    """What TensorRT-LLM drafts: in 1.2 schedule keys are the least batch sizes, from 1.3 on the most, and beyond is off."""
    if not found:
        return 0
    largest = int(found.get("max_draft_len", found.get("num_nextn_predict_layers", 0)))
    schedule = found.get("draft_len_schedule")
    if schedule is None:
        return largest if batch_size <= found.get("max_concurrency", batch_size) else 0
    if version == "1.2":
        return schedule[max(least for least in schedule if least <= batch_size)]
    reached = [most for most in schedule if most >= batch_size]
    return schedule[min(reached)] if reached else 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["none", "model", "sparse model", "int8 weights", "ngram", "eagle3", "mtp"])
def test_every_draft_that_tensorrt_llm_knows_has_its_decoding_type(kind: str, version: str) -> None:
    found = speculative(checked(plan_of(STRATEGIES[kind]), "tensorrt-llm", engine_version=version), version)
    assert drafted(found, 1, version) == drafted(found, 1000, version) == STRATEGIES[kind].gamma
    assert ("speculative_model" in found) == (kind in ("model", "sparse model", "int8 weights", "eagle3"))


@pytest.mark.parametrize("kind", ["streaming", "snapkv", "fp8 KV", "int4 KV"])
def test_what_tensorrt_llm_cannot_run_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: expected an engine that supports .*, found tensorrt-llm"):
        export_plan(plan_of(STRATEGIES[kind]), "tensorrt-llm")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["model", "ngram", "eagle3", "mtp"])
@pytest.mark.parametrize("name", tables("mtp"))
def test_a_schedule_read_back_is_the_policy_table_but_at_batch_1_and_beyond_its_end(kind: str, name: str, version: str) -> None:
    policy = tables(kind)[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "tensorrt-llm", engine_version=version)
    found = speculative(export, version)
    planned = {batch_size: policy.at(batch_size, 32_000).gamma for batch_size in range(1, 2 * BATCH_SIZES[-1])}
    if (kind, version) == ("mtp", "1.2"):
        assert all(drafted(found, batch_size, version) == planned[16] for batch_size in planned)
        return
    wrong = {batch_size for batch_size, gamma in planned.items() if drafted(found, batch_size, version) != gamma}
    if planned[1] != max(planned.values()):
        assert 1 in wrong
        assert any("largest draft length at batch 1" in note for note in export.notes)
    if version == "1.3" and "draft_len_schedule" in found and planned[64]:
        wrong -= set(range(65, 128))
        assert any("Above batch 64" in note for note in export.notes)
    assert wrong <= {1}


def test_on_and_then_off_is_a_concurrency_limit() -> None:
    policy = tables("eagle3")["off at last"]
    for version in VERSIONS:
        export = checked(plan_of(policy.at(16, 32_000), policy), "tensorrt-llm", engine_version=version)
        assert speculative(export, version)["max_concurrency"] == 32


@pytest.mark.parametrize(("version", "value"), [("1.2", "2"), ("1.3", "1.952"), (None, "1.952"), ("v1.3.0rc29", "1.952")])
def test_the_forced_number_of_accepted_tokens_leaves_out_the_bonus_token(version: str | None, value: str) -> None:
    export = checked(plan_of(STRATEGIES["eagle3"]), "tensorrt-llm", engine_version=version, replay_acceptance=True)
    assert export.environment == {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": value}
    assert any("is whole" in note for note in export.notes) == (version == "1.2")


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"engine_version: expected a version such as 1\.3\.0, found 'latest'"):
        export_plan(plan_of(STRATEGIES["ngram"]), "tensorrt-llm", Options(engine_version="latest"))
