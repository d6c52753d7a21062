"""Export to vLLM and its vegas fork, compared with their documented fields."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from documented import checked, speculative_config
from plans import BATCH_SIZES, CONTEXT_LENS, STRATEGIES, of, plan_of, table, tables

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.document import Export, Options
from magicdec.costmodel.export.engines import export_plan
from magicdec.costmodel.plans.policy_table import PolicyTable

SCHEDULE = "num_speculative_tokens_per_batch_size"
SMALL = "meta-llama/Llama-3.2-1B-Instruct"
RUNS = ["model", "sparse model", "ngram", "eagle3", "mtp", "fp8 KV", "int8 weights"]


def drafted(config: dict[str, Any], batch_size: int, context_len: int = 32_000) -> int:
    """What vLLM drafts: the row of the schedule, the last one beyond its end; with five columns, that of the context too."""
    if not config:
        return 0
    rows = config.get(SCHEDULE, [[1, 1, config["num_speculative_tokens"]]])
    if len(rows[0]) == 5:
        last = max(row[3] for row in rows)
        rows = [[row[0], row[1], row[4]] for row in rows if row[2] <= min(context_len, last) <= row[3]]
    return next((gamma for least, most, gamma in rows if least <= batch_size <= most), rows[-1][2])


def check_schedule(config: dict[str, Any]) -> None:
    """The rules of vLLM's validation, and of PR 48944 for five columns: ranges from 1, none overlapping, contexts without gaps."""
    rows = config.get(SCHEDULE, [])
    assert all(0 <= row[-1] <= config["num_speculative_tokens"] for row in rows)
    batches = sorted({(row[0], row[1]) for row in rows})
    contexts = sorted({(row[2], row[3]) for row in rows if len(row) == 5})
    for ranges in filter(None, (batches, contexts)):
        assert ranges[0][0] == 1
        assert all(least <= most for least, most in ranges)
        assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(ranges))
    if contexts:
        assert len(rows) == len(batches) * len(contexts)


def export_of(kind: str, **options: Any) -> Export:
    export = checked(plan_of(STRATEGIES[kind]), "vllm", **options)
    check_schedule(speculative_config(export))
    return export


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", {}),
        ("model", {"method": "draft_model", "num_speculative_tokens": 4, "model": SMALL, "draft_tensor_parallel_size": 4}),
        ("ngram", {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 5}),
        ("eagle3", {"method": "eagle3", "num_speculative_tokens": 3, "model": "PATH_TO_EAGLE3_HEAD"}),
        ("mtp", {"method": "mtp", "num_speculative_tokens": 2}),
    ],
)
def test_every_draft_that_vllm_knows_has_its_method(kind: str, expected: dict[str, Any]) -> None:
    assert speculative_config(export_of(kind)) == expected


def test_a_self_draft_with_quantised_kv_is_a_second_model_with_its_own_cache_type() -> None:
    export = export_of("fp8 KV", model_dir="org/target")
    config = speculative_config(export)
    assert (config["method"], config["model"], config["kv_cache_dtype"]) == ("draft_model", "org/target", "fp8")
    assert any("second copy of the target" in note for note in export.notes)


def test_a_quantised_copy_needs_its_checkpoint() -> None:
    assert speculative_config(export_of("int8 weights"))["model"] == "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8"
    assert speculative_config(export_of("int8 weights", draft_dir="w8"))["model"] == "w8"


def test_a_small_draft_with_sparse_kv_is_said_to_read_all_of_it() -> None:
    export = export_of("sparse model")
    assert speculative_config(export)["num_speculative_tokens"] == 3
    assert any("full KV cache instead of streaming_llm budget 512" in note for note in export.notes)


@pytest.mark.parametrize("kind", ["streaming", "snapkv", "int4 KV"])
def test_what_vllm_cannot_run_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: expected an engine that supports .*, found vllm"):
        export_plan(plan_of(STRATEGIES[kind]), "vllm")


def test_the_refusal_of_self_speculation_names_the_fork_that_runs_it() -> None:
    with pytest.raises(InputError, match="supported by vllm-vegas"):
        export_plan(plan_of(STRATEGIES["streaming"]), "vllm")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("context_len", [None, 1000, 4001, 500_000])
def test_a_schedule_read_back_is_the_policy_table(kind: str, context_len: int | None) -> None:
    for name, policy in tables(kind).items():
        plan = plan_of(policy.at(16, 32_000), policy)
        config = speculative_config(checked(plan, "vllm", context_len=context_len))
        check_schedule(config)
        for batch_size in range(1, 2 * BATCH_SIZES[-1]):
            assert drafted(config, batch_size) == policy.at(batch_size, context_len or 32_000).gamma, name


@pytest.mark.parametrize("kind", RUNS)
def test_five_columns_read_back_are_the_whole_policy_table(kind: str) -> None:
    for name, policy in tables(kind).items():
        config = speculative_config(checked(plan_of(policy.at(16, 32_000), policy), "vllm", experimental=True))
        check_schedule(config)
        for batch_size, context in itertools.product(range(1, 2 * BATCH_SIZES[-1]), (1, 4000, 4001, 32_000, 100_000, 10**6)):
            assert drafted(config, batch_size, context) == policy.at(batch_size, context).gamma, name


def test_context_columns_appear_only_when_asked_for() -> None:
    policy = tables("eagle3")["over contexts"]
    plan = plan_of(policy.at(16, 32_000), policy)
    stable, experimental = checked(plan, "vllm"), checked(plan, "vllm", experimental=True)
    assert {len(row) for row in speculative_config(stable)[SCHEDULE]} == {3}
    assert any("its column for 32000 tokens" in note for note in stable.notes)
    assert any("48944" in note for note in experimental.notes)
    assert len(speculative_config(experimental)[SCHEDULE]) == len(BATCH_SIZES) * len(CONTEXT_LENS)


def test_batch_sizes_of_several_servers_are_those_of_one() -> None:
    policy = tables("eagle3")["falling"]
    export = checked(plan_of(policy.at(16, 32_000), policy, num_gpus=16), "vllm")
    config = speculative_config(export)
    check_schedule(config)
    for batch_size in range(1, 40):
        assert drafted(config, batch_size) == policy.at(4 * batch_size, 32_000).gamma
    assert any("4 servers of 4 GPUs" in note for note in export.notes)


@pytest.fixture
def mixed() -> PolicyTable:
    return table(of("none", 0), of("ngram", 3), of("model", 4), of("streaming", 5))


def test_of_a_table_with_several_drafts_one_is_served_and_the_rest_is_said(mixed: PolicyTable) -> None:
    export = checked(plan_of(mixed.at(16, 32_000), mixed), "vllm")
    config = speculative_config(export)
    assert config["method"] == "draft_model"
    assert [drafted(config, batch_size) for batch_size in BATCH_SIZES] == [0, 0, 4, 0]
    assert any(
        "Batch 2 to 8 runs without speculation instead of ngram draft, gamma 3: a server loads only one draft" in note
        for note in export.notes
    )
    assert any("Batch 33 to 64" in note and "the engine does not support it" in note for note in export.notes)


def test_the_draft_of_the_plans_batch_size_is_served_else_that_of_the_largest_that_runs(mixed: PolicyTable) -> None:
    assert speculative_config(checked(plan_of(mixed.at(8, 32_000), mixed, batch_size=8), "vllm"))["method"] == "ngram"
    assert speculative_config(checked(plan_of(mixed.at(64, 32_000), mixed, batch_size=64), "vllm"))["method"] == "draft_model"


def test_what_a_schedule_loses_is_said() -> None:
    policy = tables("ngram")["falling"]
    notes = checked(plan_of(policy.at(16, 32_000), policy), "vllm").notes
    for words in ("hysteresis of 5%", "single data-parallel rank", "tested only with EAGLE"):
        assert any(words in note for note in notes)


@pytest.mark.parametrize("kind", RUNS)
def test_replayed_acceptance_is_unconditional_and_per_position(kind: str) -> None:
    config = speculative_config(export_of(kind, replay_acceptance=True))
    gamma = config["num_speculative_tokens"]
    assert config["rejection_sample_method"] == "synthetic"
    assert config["synthetic_acceptance_rates"] == pytest.approx([0.8**i for i in range(1, gamma + 1)])


def test_a_replay_covers_the_longest_draft_of_a_schedule() -> None:
    policy = tables("eagle3")["falling"]
    config = speculative_config(checked(plan_of(policy.at(16, 32_000), policy), "vllm", replay_acceptance=True))
    rates = config["synthetic_acceptance_rates"]
    assert len(rates) == config["num_speculative_tokens"] == 5
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_a_plan_with_a_mean_length_alone_replays_the_rate_it_implies() -> None:
    config = speculative_config(checked(plan_of(STRATEGIES["eagle3"], rate=None), "vllm", replay_acceptance=True))
    assert config["synthetic_acceptance_rates"] == pytest.approx([0.8, 0.64, 0.512], abs=1e-3)


def test_nothing_is_replayed_that_was_not_predicted() -> None:
    policy = tables("ngram")["constant"]
    export = checked(plan_of(STRATEGIES["eagle3"], policy), "vllm", replay_acceptance=True)
    assert "rejection_sample_method" not in speculative_config(export)
    assert any("Acceptance is not simulated: the plan predicts it for eagle3 draft" in note for note in export.notes)
    assert any("For the planned workload it has ngram draft, gamma 3" in note for note in export.notes)


def test_a_path_that_is_not_needed_is_said_to_be_unused() -> None:
    assert any("`draft_dir` is ignored" in note for note in export_of("mtp", draft_dir="x").notes)


def test_a_version_that_was_not_checked_is_said() -> None:
    assert any("not verified for version 0.9" in note for note in export_of("mtp", engine_version="0.9").notes)


@pytest.mark.parametrize(("kind", "algorithm"), [("streaming", "streamingllm"), ("snapkv", "vegas")])
def test_the_fork_runs_self_speculation_with_a_share_of_the_context(kind: str, algorithm: str) -> None:
    strategy = STRATEGIES[kind]
    export = checked(plan_of(strategy), "vllm-vegas")
    config = speculative_config(export)
    assert config["method"] == "sparse_attn"
    assert config["sparse_attn_algorithm"] == algorithm
    assert config["sparse_attn_min_tokens"] == strategy.kv_budget
    assert config["sparse_attn_ratio"] * 32_000 == pytest.approx(strategy.kv_budget, rel=1e-3)
    assert any(("block 0" if kind == "streaming" else "replaces it") in note for note in export.notes)


def test_a_budget_beyond_the_context_is_all_of_it() -> None:
    assert speculative_config(checked(plan_of(STRATEGIES["snapkv"]), "vllm-vegas", context_len=1000))["sparse_attn_ratio"] == 1.0


@pytest.mark.parametrize("kind", ["model", "ngram", "eagle3", "mtp", "fp8 KV", "int8 weights"])
def test_the_fork_is_for_sparse_self_speculation_only(kind: str) -> None:
    with pytest.raises(InputError, match=r"to: .*supported by vllm.*found vllm-vegas"):
        export_plan(plan_of(STRATEGIES[kind]), "vllm-vegas")


@pytest.mark.parametrize("name", tables("streaming"))
def test_the_fork_has_one_draft_length_that_of_the_plans_batch(name: str) -> None:
    policy = tables("streaming")[name]
    export = checked(plan_of(policy.at(16, 32_000), policy), "vllm-vegas", replay_acceptance=True)
    config = speculative_config(export)
    assert config.get("num_speculative_tokens", 0) == policy.at(16, 32_000).gamma
    if len({policy.at(batch_size, 32_000) for batch_size in BATCH_SIZES}) > 1:
        assert any("has a single draft length" in note for note in export.notes)
    if config:
        assert any("not document synthetic acceptance" in note for note in export.notes)


def test_an_engine_nobody_knows_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"to: expected vllm or vllm-vegas or .*llama\.cpp, found 'tgi'"):
        export_plan(plan_of(STRATEGIES["ngram"]), "tgi", Options())
