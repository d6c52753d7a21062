"""Plans from Python: what is considered, what is chosen, what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import magicdec
from magicdec.api.plan import make_plan
from magicdec.api.predict import evaluate
from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.planning.sweep import sweep
from magicdec.costmodel.plans.plan import Plan, load_plan, parse_plan, render_plan
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.trace import RequestTrace
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.acceptance import render_curves
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid
from magicdec.costmodel.speculation.serving import serving
from magicdec.executor.reference_model import reference_model_dir
from magicdec.inputs.plan_search import PlanSearch
from magicdec.inputs.scenario import Scenario, resolve_scenario
from magicdec.results.plan import PlanResult

LONG = Workload(128, 32_000, 128)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return resolve_scenario("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8)


def chosen(scenario: Scenario, workload: Workload = LONG, *, trace: RequestTrace | None = None, **search: Any) -> PlanResult:
    return make_plan(scenario, workload, PlanSearch(**search), trace=trace)


def made(scenario: Scenario, workload: Workload = LONG, *, trace: RequestTrace | None = None, **search: Any) -> Plan:
    return chosen(scenario, workload, trace=trace, **search).plan


# What is considered.


def drafts(scenario: Scenario, **search: Any) -> list[str]:
    return [f"{draft.kind} {draft.kv_policy}" for draft in PlanSearch(**search).resolve_drafts(scenario.deployment)]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({}, ["self streaming_llm", "self snapkv"]),
        ({"kv_policies": ("quest",)}, ["self quest"]),
        ({"drafts": ("none",)}, []),
        ({"drafts": ("ngram", "eagle3")}, ["ngram full", "eagle3 full"]),
        ({"drafts": ("ngram", "self"), "kv_policies": ("topk", "pq")}, ["ngram full", "self topk", "self pq"]),
        ({"drafts": ("llama-3.2-1b",)}, ["model full", "model streaming_llm"]),
        ({"drafts": ("llama-3.2-1b",), "kv_policies": ("full",)}, ["model full"]),
        ({"draft_kv_dtype": "int4"}, ["self streaming_llm", "self snapkv", "self full"]),
    ],
)
def test_the_drafts_that_are_meant(scenario: Scenario, search: dict[str, Any], expected: list[str]) -> None:
    assert drafts(scenario, **search) == expected


def test_a_compressed_draft_carries_its_types(scenario: Scenario) -> None:
    found = PlanSearch(drafts=(), draft_kv_dtype="int4", draft_weight_dtype="int8").resolve_drafts(scenario.deployment)
    assert found == [Draft("self", "full", kv_dtype="int4", weight_dtype="int8")]


def test_a_given_acceptance_belongs_to_one_budget() -> None:
    assert PlanSearch().budgets == KV_BUDGETS
    assert PlanSearch(acceptance_rate=0.8).budgets == PlanSearch(acceptance_by_position=[0.9, 0.8]).budgets == (512,)
    assert PlanSearch(acceptance_rate=0.8, kv_budgets=(64, 128)).budgets == (64, 128)


@pytest.mark.parametrize(
    "search", [{"drafts": ("self",), "kv_policies": ("full",)}, {"kv_policies": ("best",)}, {"drafts": ("gpt-9",)}]
)
def test_search_that_make_no_sense_are_refused(scenario: Scenario, search: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        made(scenario, **search)


# What is chosen.


def test_the_plan_holds_the_best_by_the_lower_end_of_everything_asked_one_by_one(scenario: Scenario) -> None:
    best = made(scenario)
    lows = {}
    for policy in ("streaming_llm", "snapkv"):
        for gamma in GAMMAS:
            for budget in KV_BUDGETS:
                e = evaluate_grid(
                    scenario.deployment,
                    Draft("self", policy),  # type: ignore[arg-type]
                    batch_size=128,
                    context_len=32_064,
                    gamma=gamma,
                    kv_budget=budget,
                    curves=scenario.model.curves,
                    max_context_len=32_128,
                )
                if e.fits_in_memory:
                    lows[policy, budget, gamma] = float(e.speedup_low)
    chosen = (best.strategy.kv_policy, best.strategy.kv_budget, best.strategy.gamma)
    assert lows[chosen] == pytest.approx(max(lows.values()), rel=1e-12)  # type: ignore[index]
    assert best.prediction.predicted_speedup_low == pytest.approx(max(lows.values()), rel=1e-12)
    assert best.prediction.predicted_speedup_low < best.prediction.predicted_speedup < best.prediction.predicted_speedup_high


def test_the_map_and_the_plan_choose_alike(scenario: Scenario) -> None:
    search = PlanSearch()
    found = sweep(
        scenario.deployment,
        search.resolve_drafts(scenario.deployment),
        batch_sizes=[1, 8, 32, 128],
        context_lens=[1000, 32_064],
        gammas=search.gammas,
        kv_budgets=search.budgets,
        curves=scenario.model.curves,
    )
    for i, batch in enumerate(found.batch_sizes.tolist()):
        for j, context in enumerate((936, 32_000)):
            chosen = made(scenario, Workload(batch, context, 128))
            assert chosen.strategy == found.strategy(i, j), (batch, context)
            assert chosen.prediction.predicted_speedup == pytest.approx(found.speedup[i, j], rel=1e-9)


def test_at_a_short_context_plain_decoding_is_planned_and_the_best_draft_named(scenario: Scenario) -> None:
    found = made(scenario, Workload(1, 1000, 128))
    assert found.strategy == NO_SPECULATION
    assert found.prediction.predicted_speedup == 1
    assert found.runner_up is not None
    assert found.runner_up.strategy.draft_kind == "self"
    assert found.runner_up.predicted_speedup < 1.1


def test_the_runner_up_is_of_another_kind_and_the_same_batch(scenario: Scenario) -> None:
    result = chosen(scenario, batch_sizes=(16, 128), objective="throughput")
    found = result.plan
    assert found.workload.batch_size == 128
    assert found.runner_up is not None
    assert found.runner_up.strategy.family != found.strategy.family
    others = [c.speedup for c in result.ranked if c.batch_size == 128 and c.strategy.family != found.strategy.family]
    assert found.runner_up.predicted_speedup == max(others)


def test_latency_prefers_the_small_batch_and_throughput_and_cost_the_large_one(scenario: Scenario) -> None:
    batches = {
        objective: made(scenario, batch_sizes=(1, 16, 128), objective=objective).workload.batch_size
        for objective in ("latency", "throughput", "cost")
    }
    assert batches == {"latency": 1, "throughput": 128, "cost": 128}


def test_throughput_under_a_latency_limit_takes_the_largest_batch_that_holds_it(scenario: Scenario) -> None:
    limit = 0.012
    found = chosen(scenario, batch_sizes=(1, 8, 16, 32, 64, 128), objective="throughput", max_tpot_s=limit)
    assert found.prediction.predicted_speculative_tpot_s <= limit
    assert all(candidate.tpot_s <= limit for candidate in found.ranked)
    assert 1 < found.workload.batch_size < 128
    assert any(candidate.tpot_s > limit for candidate in found.candidates)


def test_only_an_unsure_draft_may_hold_a_limit_and_then_it_is_planned(scenario: Scenario) -> None:
    free = chosen(scenario, Workload(12, 32_000, 128), kv_policies=("snapkv",))
    assert free.strategy == NO_SPECULATION
    fastest = min(c.tpot_s for c in free.candidates if c.strategy != NO_SPECULATION)
    plain = next(c.tpot_s for c in free.candidates if c.strategy == NO_SPECULATION)
    assert fastest < plain
    limited = made(scenario, Workload(12, 32_000, 128), kv_policies=("snapkv",), max_tpot_s=(fastest * plain) ** 0.5)
    assert limited.strategy.draft_kind == "self"
    assert limited.prediction.predicted_speedup_low < 1


def test_a_limit_that_nothing_holds_names_the_fastest(scenario: Scenario) -> None:
    with pytest.raises(InputError, match=r"max_tpot_s: expected at least .* ms per output token"):
        made(scenario, max_tpot_s=1e-4)


def test_what_does_not_fit_names_the_least_that_is_needed(scenario: Scenario) -> None:
    with pytest.raises(InputError, match=r"memory of one GPU: .* at least .* GB"):
        made(scenario, Workload(512, 100_000, 128))


def test_a_draft_of_unknown_acceptance_is_priced_but_not_planned(scenario: Scenario) -> None:
    found = chosen(scenario, drafts=("ngram",))
    assert found.strategy == NO_SPECULATION
    assert found.runner_up is None
    assert found.plan.runner_up is None
    assert {c.strategy.draft_kind for c in found.candidates} == {"none", "ngram"}
    assert {c.strategy.draft_kind for c in found.ranked} == {"none"}


def test_a_given_acceptance_makes_it_a_choice(scenario: Scenario) -> None:
    assert made(scenario, drafts=("ngram",), acceptance_rate=0.6).strategy.draft_kind == "ngram"
    assert made(scenario, drafts=("ngram",), acceptance_rate=0.01).strategy == NO_SPECULATION
    by_position = made(scenario, drafts=("ngram",), acceptance_by_position=[0.9, 0.0])
    assert by_position.strategy.gamma == 1, "the second token is never accepted"


def test_the_same_draft_twice_is_one_draft(scenario: Scenario) -> None:
    assert made(scenario, drafts=("self", "self")) == made(scenario)
    assert made(scenario, kv_policies=("snapkv", "snapkv")) == made(scenario, kv_policies=("snapkv",))


def test_a_small_draft_at_a_small_batch_and_itself_at_a_large_one() -> None:
    """MagicDec (arXiv 2408.11049), Fig. 7."""
    llama2 = resolve_scenario("llama-2-7b-32k", "a100-sxm-80gb", num_gpus=8)
    search: dict[str, Any] = {"drafts": ("tinyllama-1.1b", "self"), "kv_policies": ("streaming_llm",), "kv_budgets": (512,)}
    kinds = [made(llama2, Workload(batch, 31_900, 64), **search).strategy.draft_kind for batch in (1, 8, 32)]
    assert kinds == ["none", "model", "self"]


# Trades in memory, and what is said of whole requests.


def test_serving_is_that_of_the_chosen_strategy_and_of_plain_decoding(scenario: Scenario) -> None:
    found = made(scenario)
    assert found.serving is not None
    where: dict[str, Any] = {"prompt_lens": 32_000, "output_len": 128, "batch_size": 128}
    fast = serving(scenario.deployment, **where, tpot_s=found.prediction.predicted_speculative_tpot_s)
    plain = serving(scenario.deployment, **where, tpot_s=found.prediction.predicted_target_step_s)
    assert found.serving.predicted_ttft_s == fast.ttft_s
    assert found.serving.predicted_request_s == fast.request_s < found.serving.predicted_plain_request_s == plain.request_s
    assert found.serving.predicted_throughput_tokens_per_s == fast.throughput_tokens_per_s
    assert found.serving.predicted_plain_throughput_tokens_per_s == plain.throughput_tokens_per_s
    assert found.serving.prefill_share == fast.prefill_share


def test_plain_decoding_serves_as_plain_decoding(scenario: Scenario) -> None:
    found = made(scenario, Workload(1, 1000, 128)).serving
    assert found is not None
    assert found.predicted_request_s == found.predicted_plain_request_s
    assert found.predicted_throughput_tokens_per_s == found.predicted_plain_throughput_tokens_per_s


def test_a_trace_is_planned_for_its_mixture(scenario: Scenario) -> None:
    trace = RequestTrace((200, 200, 90_000), (400, 400, 400))
    mean = Workload(64, *trace.typical)
    mixed, alike = made(scenario, mean, trace=trace), made(scenario, mean)
    assert mixed.workload == Workload(64, 30_133, 400)
    assert mixed.prediction.predicted_target_step_s == pytest.approx(alike.prediction.predicted_target_step_s, rel=1e-3)
    assert mixed.prediction.predicted_acceptance_rate != alike.prediction.predicted_acceptance_rate
    assert mixed.prediction.predicted_draft_step_s != alike.prediction.predicted_draft_step_s, "short contexts are read whole"
    assert mixed.serving is not None
    assert alike.serving is not None
    assert mixed.serving.predicted_ttft_s > alike.serving.predicted_ttft_s, "attention over long prompts"


# What is said.


def test_a_document_says_everything_in_si_units(scenario: Scenario) -> None:
    found = evaluate(scenario, Draft("self", "snapkv"), batch_size=128, context_len=32_000, kv_budget=1024)
    document: dict[str, Any] = found.to_dict()
    steps = ("predicted_target_step_s", "predicted_verify_step_s", "predicted_draft_step_s", "predicted_gamma_draft_step_s")
    assert all(document[name] > 0 for name in steps)
    for name, (low, high) in document["predicted_step_intervals"].items():
        assert low < document[name] < high
    assert sum(document["breakdown"]["verify"].values()) == pytest.approx(document["predicted_verify_step_s"])
    assert sum(document["memory_breakdown"].values()) == pytest.approx(document["memory_bytes"])
    round_s = (
        document["predicted_gamma_draft_step_s"] + document["predicted_verify_step_s"] + document["predicted_round_overhead_s"]
    )
    assert document["predicted_speculative_tpot_s"] == pytest.approx(round_s / document["predicted_mean_acceptance_length"])
    assert document["predicted_speedup"] == pytest.approx(
        document["predicted_target_step_s"] / document["predicted_speculative_tpot_s"]
    )
    assert document["throughput_tokens_per_s"] == pytest.approx(128 / document["predicted_speculative_tpot_s"])
    assert document["calibrated"] is True


def test_notes_say_what_was_assumed() -> None:
    other = resolve_scenario("llama-3.2-1b", "mi300x")
    notes = " | ".join(made(other, Workload(128, 40_000, 128)).notes)
    assert "not calibrated" in notes
    assert "assumed equal to that of" in notes
    beyond = " | ".join(made(resolve_scenario("llama-2-7b-32k", "h100-sxm", num_gpus=8), Workload(8, 60_000, 128)).notes)
    assert "supports 32,768 tokens; the workload needs 60,128" in beyond
    small = resolve_scenario("llama-2-7b-32k", "a100-sxm-80gb", num_gpus=8)
    drafted = made(small, Workload(16, 16_000, 64), drafts=("tinyllama-1.1b",), kv_policies=("streaming_llm",))
    assert drafted.draft is not None
    assert "TinyLlama-1.1B supports 2,048 tokens: it cannot draft at 16,064" in " | ".join(drafted.notes)


def test_a_plan_with_a_map_survives_its_file(tmp_path: Path) -> None:
    made = magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=128, context_len=32_000, sweep=True)
    made.save(tmp_path / "deep" / "plan.yaml")
    read = load_plan(tmp_path / "deep" / "plan.yaml")
    assert read == made.plan
    assert made.speedup_map is not None
    assert read.policy == made.speedup_map.policy
    assert read.policy.at(128, 32_000).draft_kind == "self"
    assert read.policy.at(1, 1000) == NO_SPECULATION


@pytest.mark.parametrize(
    "search",
    [
        {"drafts": ("ngram",), "acceptance_rate": 0.7},
        {"drafts": ("eagle3",), "acceptance_by_position": [0.8, 0.7]},
        {"drafts": ("llama-3.2-1b",), "acceptance_rate": 0.8},
        {"kv_policies": ("quest",)},
        {"drafts": (), "draft_kv_dtype": "int4"},
        {"drafts": (), "draft_weight_dtype": "int4", "acceptance_rate": 0.95},
    ],
)
def test_plans_of_every_kind_of_draft_survive_their_files(scenario: Scenario, search: dict[str, Any]) -> None:
    found = made(scenario, Workload(64, 64_000, 128), **search)
    assert parse_plan(render_plan(found), where="plan.yaml") == found
    assert (found.draft is not None) == (found.strategy.draft_kind == "model")


def test_a_compressed_target_is_named_in_the_plan() -> None:
    smaller = resolve_scenario("llama-3.1-8b", "h100-sxm", num_gpus=8, weight_dtype="int8", kv_dtype="fp8")
    found = made(smaller)
    assert (found.target.weight_dtype, found.target.kv_dtype) == ("int8", "fp8")
    whole = made(resolve_scenario("llama-3.1-8b", "h100-sxm", num_gpus=8))
    assert (whole.target.weight_dtype, whole.target.kv_dtype) == (None, None)
    assert found.target.fingerprint == whole.target.fingerprint
    assert found.prediction.predicted_target_step_s < whole.prediction.predicted_target_step_s
    assert found.prediction.predicted_memory_bytes < whole.prediction.predicted_memory_bytes


# The public function.


def test_the_public_function_plans_the_same(scenario: Scenario) -> None:
    asked: dict[str, Any] = {"context_len": 32_000, "output_len": 128, "num_gpus": 8}
    assert magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", batch_size=128, **asked).plan == made(scenario)
    assert magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", batch_size=1, draft=("none",), **asked).runner_up is None


# Predictions.


def test_the_best_gamma_is_found_at_every_point(scenario: Scenario) -> None:
    grid: dict[str, Any] = {"batch_size": np.array([[4], [64], [128]]), "context_len": [4000, 32_000]}
    found = evaluate(scenario, Draft("self", "streaming_llm"), **grid)
    assert found.gamma.shape == found.shape == (3, 2)
    for gamma in GAMMAS:
        fixed = evaluate(scenario, Draft("self", "streaming_llm"), **grid, gamma=gamma)
        assert (found.speedup >= fixed.speedup * (1 - 1e-12)).all()
    assert len(set(found.gamma.ravel().tolist())) > 1


def test_with_unknown_acceptance_the_gamma_that_needs_the_least_is_taken(scenario: Scenario) -> None:
    found = evaluate(scenario, Draft("ngram"), batch_size=[1, 64], context_len=16_000)
    assert np.isnan(found.speedup).all()
    each = [evaluate(scenario, Draft("ngram"), batch_size=[1, 64], context_len=16_000, gamma=gamma) for gamma in GAMMAS]
    needed = np.array([one.round.minimum_acceptance_rate() for one in each])
    assert found.round.minimum_acceptance_rate() == pytest.approx(needed.min(axis=0), rel=1e-9)
    assert found.gamma.tolist() == np.array(GAMMAS)[needed.argmin(axis=0)].tolist()


def test_a_checkpoint_is_planned_with_the_acceptance_beside_it(tmp_path: Path) -> None:
    """`acceptance.yaml` of a checkpoint directory is asked before any published curve."""
    for file in reference_model_dir().iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "acceptance.yaml").unlink(missing_ok=True)
    points = [{"kv_budget": 512, "context_len": 8000, "acceptance_rate": 0.97}]
    curve = {"target": "x", "task": "t", "draft_kind": "self", "kv_policy": "streaming_llm", "source": "mine", "points": points}
    (tmp_path / "acceptance.yaml").write_text(render_curves([curve]), encoding="utf-8")
    own = resolve_scenario(str(tmp_path), "l4")
    found = evaluate(own, Draft("self", "streaming_llm"), batch_size=64, context_len=8000, gamma=3)
    assert found.evaluation.acceptance_rate == pytest.approx(0.97)
    assert found.evaluation.acceptance is not None
    assert found.evaluation.acceptance.measured_here
    assert "mine" in found.evaluation.acceptance.note


def test_gpus_beyond_tensor_parallelism_are_replicas(scenario: Scenario) -> None:
    assert resolve_scenario("llama-3.1-8b", "h100-sxm", num_gpus=8, tensor_parallel=2).deployment.replicas == 4
    assert scenario.deployment.replicas == 1


def test_a_trace_with_requests_beyond_what_the_model_knows_says_so(scenario: Scenario) -> None:
    """The mean request is within the 131,072 positions of Llama-3.1-8B, the longest is not."""
    trace = RequestTrace((1000, 200_000), (100, 100))
    found = made(scenario, Workload(4, *trace.typical), trace=trace)
    assert any("supports 131,072 tokens; 1 of 2 requests need more" in note for note in found.notes)
