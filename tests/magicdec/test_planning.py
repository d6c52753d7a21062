"""Plans from Python: what is considered, what is chosen, what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import magicdec
from magicdec.api import Question, ask, best_gamma, evaluate
from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.planning.sweep import policy_table, sweep
from magicdec.costmodel.plans.plan import Plan, load_plan, parse_plan, render_plan
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import RequestTrace, Workload
from magicdec.costmodel.speculation.acceptance import render_curves
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid
from magicdec.costmodel.speculation.serving import serving
from magicdec.executor.reference_model import reference_model_dir
from magicdec.planning import Wishes, describe, make_plan, plan

LONG = Workload(128, 32_000, 128)


@pytest.fixture(scope="module")
def question() -> Question:
    return ask("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8)


def made(question: Question, workload: Workload = LONG, *, trace: RequestTrace | None = None, **wishes: Any) -> Plan:
    return make_plan(question, workload, Wishes(**wishes), trace=trace)[0]


# What is considered.


def drafts(question: Question, **wishes: Any) -> list[str]:
    return [f"{draft.kind} {draft.kv_policy}" for draft in Wishes(**wishes).found_drafts(question.deployment)]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, ["self streaming_llm", "self snapkv"]),
        ({"kv_policies": ("quest",)}, ["self quest"]),
        ({"drafts": ("none",)}, []),
        ({"drafts": ("ngram", "eagle3", "mtp")}, ["ngram full", "eagle3 full", "mtp full"]),
        ({"drafts": ("ngram", "self"), "kv_policies": ("topk", "pq")}, ["ngram full", "self topk", "self pq"]),
        ({"drafts": ("llama-3.2-1b",)}, ["model full", "model streaming_llm"]),
        ({"drafts": ("llama-3.2-1b",), "kv_policies": ("full",)}, ["model full"]),
        ({"draft_kv_dtype": "int4"}, ["self streaming_llm", "self snapkv", "self full"]),
    ],
)
def test_the_drafts_that_are_meant(question: Question, wishes: dict[str, Any], expected: list[str]) -> None:
    assert drafts(question, **wishes) == expected


def test_a_compressed_draft_carries_its_types(question: Question) -> None:
    found = Wishes(drafts=(), draft_kv_dtype="int4", draft_weight_dtype="int8").found_drafts(question.deployment)
    assert found == [Draft("self", "full", kv_dtype="int4", weight_dtype="int8")]


def test_a_given_acceptance_belongs_to_one_budget() -> None:
    assert Wishes().budgets == KV_BUDGETS
    assert Wishes(acceptance_rate=0.8).budgets == Wishes(acceptance_by_position=[0.9, 0.8]).budgets == (512,)
    assert Wishes(acceptance_rate=0.8, kv_budgets=(64, 128)).budgets == (64, 128)


@pytest.mark.parametrize(
    "wishes", [{"drafts": ("self",), "kv_policies": ("full",)}, {"kv_policies": ("best",)}, {"drafts": ("gpt-9",)}]
)
def test_wishes_that_make_no_sense_are_refused(question: Question, wishes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        made(question, **wishes)


# What is chosen.


def test_the_plan_holds_the_best_by_the_lower_end_of_everything_asked_one_by_one(question: Question) -> None:
    best = made(question)
    lows = {}
    for policy in ("streaming_llm", "snapkv"):
        for gamma in GAMMAS:
            for budget in KV_BUDGETS:
                e = evaluate_grid(
                    question.deployment,
                    Draft("self", policy),  # type: ignore[arg-type]
                    batch_size=128,
                    context_len=32_064,
                    gamma=gamma,
                    kv_budget=budget,
                    curves=question.model.curves,
                    max_context_len=32_128,
                )
                if e.fits_in_memory:
                    lows[policy, budget, gamma] = float(e.speedup_low)
    chosen = (best.strategy.kv_policy, best.strategy.kv_budget, best.strategy.gamma)
    assert lows[chosen] == pytest.approx(max(lows.values()), rel=1e-12)  # type: ignore[index]
    assert best.prediction.predicted_speedup_low == pytest.approx(max(lows.values()), rel=1e-12)
    assert best.prediction.predicted_speedup_low < best.prediction.predicted_speedup < best.prediction.predicted_speedup_high


def test_the_map_and_the_plan_choose_alike(question: Question) -> None:
    wishes = Wishes()
    found = sweep(
        question.deployment,
        wishes.found_drafts(question.deployment),
        batch_sizes=[1, 8, 32, 128],
        context_lens=[1000, 32_064],
        gammas=wishes.gammas,
        kv_budgets=wishes.budgets,
        curves=question.model.curves,
    )
    for i, batch in enumerate(found.batch_sizes.tolist()):
        for j, context in enumerate((936, 32_000)):
            chosen = made(question, Workload(batch, context, 128))
            assert chosen.strategy == found.strategy(i, j), (batch, context)
            assert chosen.prediction.predicted_speedup == pytest.approx(found.speedup[i, j], rel=1e-9)


def test_at_a_short_context_plain_decoding_is_planned_and_the_best_draft_named(question: Question) -> None:
    found = made(question, Workload(1, 1000, 128))
    assert found.strategy == NO_SPECULATION
    assert found.prediction.predicted_speedup == 1
    assert found.runner_up is not None
    assert found.runner_up.strategy.draft_kind == "self"
    assert found.runner_up.predicted_speedup < 1.1


def test_the_runner_up_is_of_another_kind_and_the_same_batch(question: Question) -> None:
    found, ranked, _ = make_plan(question, LONG, Wishes(batch_sizes=(16, 128), objective="throughput"))
    assert found.workload.batch_size == 128
    assert found.runner_up is not None
    assert found.runner_up.strategy.family != found.strategy.family
    others = [c.speedup for c in ranked if c.batch_size == 128 and c.strategy.family != found.strategy.family]
    assert found.runner_up.predicted_speedup == max(others)


def test_latency_prefers_the_small_batch_and_throughput_and_cost_the_large_one(question: Question) -> None:
    batches = {
        objective: made(question, batch_sizes=(1, 16, 128), objective=objective).workload.batch_size
        for objective in ("latency", "throughput", "cost")
    }
    assert batches == {"latency": 1, "throughput": 128, "cost": 128}


def test_throughput_under_a_latency_limit_takes_the_largest_batch_that_holds_it(question: Question) -> None:
    limit = 0.012
    found, ranked, priced = make_plan(
        question, LONG, Wishes(batch_sizes=(1, 8, 16, 32, 64, 128), objective="throughput", max_tpot_s=limit)
    )
    assert found.prediction.predicted_speculative_tpot_s <= limit
    assert all(candidate.tpot_s <= limit for candidate in ranked)
    assert 1 < found.workload.batch_size < 128
    assert any(candidate.tpot_s > limit for candidate in priced)


def test_only_an_unsure_draft_may_hold_a_limit_and_then_it_is_planned(question: Question) -> None:
    free, _, priced = make_plan(question, Workload(12, 32_000, 128), Wishes(kv_policies=("snapkv",)))
    assert free.strategy == NO_SPECULATION
    fastest = min(c.tpot_s for c in priced if c.strategy != NO_SPECULATION)
    plain = next(c.tpot_s for c in priced if c.strategy == NO_SPECULATION)
    assert fastest < plain
    limited = made(question, Workload(12, 32_000, 128), kv_policies=("snapkv",), max_tpot_s=(fastest * plain) ** 0.5)
    assert limited.strategy.draft_kind == "self"
    assert limited.prediction.predicted_speedup_low < 1


def test_a_limit_that_nothing_holds_names_the_fastest(question: Question) -> None:
    with pytest.raises(InputError, match=r"--max-tpot: expected at least .* ms per token"):
        made(question, max_tpot_s=1e-4)


def test_what_does_not_fit_names_the_least_that_is_needed(question: Question) -> None:
    with pytest.raises(InputError, match=r"memory of one GPU: .* at least .* GB needed"):
        made(question, Workload(512, 100_000, 128))


def test_a_draft_of_unknown_acceptance_is_priced_but_not_planned(question: Question) -> None:
    found, ranked, priced = make_plan(question, LONG, Wishes(drafts=("ngram", "eagle3")))
    assert found.strategy == NO_SPECULATION
    assert found.runner_up is None
    assert {c.strategy.draft_kind for c in priced} == {"none", "ngram", "eagle3"}
    assert {c.strategy.draft_kind for c in ranked} == {"none"}


def test_a_given_acceptance_makes_it_a_choice(question: Question) -> None:
    assert made(question, drafts=("ngram",), acceptance_rate=0.6).strategy.draft_kind == "ngram"
    assert made(question, drafts=("ngram",), acceptance_rate=0.01).strategy == NO_SPECULATION
    by_position = made(question, drafts=("ngram",), acceptance_by_position=[0.9, 0.0])
    assert by_position.strategy.gamma == 1, "the second token is never accepted"


def test_the_same_draft_twice_is_one_draft(question: Question) -> None:
    assert made(question, drafts=("self", "self")) == made(question)
    assert made(question, kv_policies=("snapkv", "snapkv")) == made(question, kv_policies=("snapkv",))


def test_a_small_draft_at_a_small_batch_and_itself_at_a_large_one() -> None:
    """MagicDec (arXiv 2408.11049), Fig. 7."""
    llama2 = ask("llama-2-7b-32k", "a100-sxm-80gb", num_gpus=8)
    wishes: dict[str, Any] = {"drafts": ("tinyllama-1.1b", "self"), "kv_policies": ("streaming_llm",), "kv_budgets": (512,)}
    kinds = [made(llama2, Workload(batch, 31_900, 64), **wishes).strategy.draft_kind for batch in (1, 8, 32)]
    assert kinds == ["none", "model", "self"]


# Trades in memory, and what is said of whole requests.


def test_serving_is_that_of_the_chosen_strategy_and_of_plain_decoding(question: Question) -> None:
    found = made(question)
    assert found.serving is not None
    where: dict[str, Any] = {"prompt_lens": 32_000, "output_len": 128, "batch_size": 128}
    fast = serving(question.deployment, **where, tpot_s=found.prediction.predicted_speculative_tpot_s)
    plain = serving(question.deployment, **where, tpot_s=found.prediction.predicted_target_step_s)
    assert found.serving.predicted_ttft_s == fast.ttft_s
    assert found.serving.predicted_request_s == fast.request_s < found.serving.predicted_plain_request_s == plain.request_s
    assert found.serving.predicted_throughput_tokens_per_s == fast.throughput_tokens_per_s
    assert found.serving.predicted_plain_throughput_tokens_per_s == plain.throughput_tokens_per_s
    assert found.serving.prefill_share == fast.prefill_share


def test_plain_decoding_serves_as_plain_decoding(question: Question) -> None:
    found = made(question, Workload(1, 1000, 128)).serving
    assert found is not None
    assert found.predicted_request_s == found.predicted_plain_request_s
    assert found.predicted_throughput_tokens_per_s == found.predicted_plain_throughput_tokens_per_s


def test_a_trace_is_planned_for_its_mixture(question: Question) -> None:
    trace = RequestTrace((200, 200, 90_000), (400, 400, 400))
    mean = Workload(64, *trace.typical)
    mixed, alike = made(question, mean, trace=trace), made(question, mean)
    assert mixed.workload == Workload(64, 30_133, 400)
    assert mixed.prediction.predicted_target_step_s == pytest.approx(alike.prediction.predicted_target_step_s, rel=1e-3)
    assert mixed.prediction.predicted_acceptance_rate != alike.prediction.predicted_acceptance_rate
    assert mixed.prediction.predicted_draft_step_s != alike.prediction.predicted_draft_step_s, "short contexts are read whole"
    assert mixed.serving is not None
    assert alike.serving is not None
    assert mixed.serving.predicted_ttft_s > alike.serving.predicted_ttft_s, "attention over long prompts"


# What is said.


def test_a_document_says_everything_in_si_units(question: Question) -> None:
    _, ranked, _ = make_plan(question, LONG, Wishes())
    document = describe(question, ranked[0], LONG, None)
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
    other = ask("llama-3.2-1b", "mi300x")
    notes = " | ".join(made(other, Workload(128, 40_000, 128)).notes)
    assert "not calibrated" in notes
    assert "borrowed from" in notes
    beyond = " | ".join(made(ask("llama-2-7b-32k", "h100-sxm", num_gpus=8), Workload(8, 60_000, 128)).notes)
    assert "knows 32768 positions" in beyond
    small = ask("llama-2-7b-32k", "a100-sxm-80gb", num_gpus=8)
    drafted = made(small, Workload(16, 16_000, 64), drafts=("tinyllama-1.1b",), kv_policies=("streaming_llm",))
    assert drafted.draft is not None
    assert "TinyLlama-1.1B knows 2048 positions only" in " | ".join(drafted.notes)


def test_a_plan_survives_its_file(question: Question, tmp_path: Path) -> None:
    wishes = Wishes()
    table = policy_table(
        sweep(
            question.deployment,
            wishes.found_drafts(question.deployment),
            batch_sizes=[1, 128],
            context_lens=[1000, 32_000],
            gammas=GAMMAS,
            kv_budgets=KV_BUDGETS,
            curves=question.model.curves,
        )
    )
    plan_with_table, _, _ = make_plan(question, LONG, wishes, policy=table)
    file = tmp_path / "plan.yaml"
    file.write_text(render_plan(plan_with_table), encoding="utf-8")
    read = load_plan(file)
    assert read == plan_with_table
    assert read.policy is not None
    assert read.policy.at(128, 32_000).draft_kind == "self"
    assert read.policy.at(1, 1000) == NO_SPECULATION


@pytest.mark.parametrize(
    "wishes",
    [
        {"drafts": ("mtp",)},
        {"drafts": ("ngram",), "acceptance_rate": 0.7},
        {"drafts": ("eagle3",), "acceptance_by_position": [0.8, 0.7]},
        {"drafts": ("llama-3.2-1b",), "acceptance_rate": 0.8},
        {"kv_policies": ("quest",)},
        {"drafts": (), "draft_kv_dtype": "int4"},
        {"drafts": (), "draft_weight_dtype": "int4", "acceptance_rate": 0.95},
    ],
)
def test_plans_of_every_kind_of_draft_survive_their_files(question: Question, wishes: dict[str, Any]) -> None:
    found = made(question, Workload(64, 64_000, 128), **wishes)
    assert parse_plan(render_plan(found), where="plan.yaml") == found
    assert (found.draft is not None) == (found.strategy.draft_kind == "model")


def test_a_compressed_target_is_named_in_the_plan() -> None:
    smaller = ask("llama-3.1-8b", "h100-sxm", num_gpus=8, weight_dtype="int8", kv_dtype="fp8")
    found = made(smaller)
    assert (found.target.weight_dtype, found.target.kv_dtype) == ("int8", "fp8")
    whole = made(ask("llama-3.1-8b", "h100-sxm", num_gpus=8))
    assert (whole.target.weight_dtype, whole.target.kv_dtype) == (None, None)
    assert found.target.fingerprint == whole.target.fingerprint
    assert found.prediction.predicted_target_step_s < whole.prediction.predicted_target_step_s
    assert found.prediction.predicted_memory_bytes < whole.prediction.predicted_memory_bytes


# The same from Python.


def test_the_python_function_is_the_command(question: Question) -> None:
    short = plan("llama-3.1-8b", "a100-sxm-80gb", batch_size=128, context_len=32_000, num_gpus=8)
    assert short == made(question)
    assert short == magicdec.plan("llama-3.1-8b", "a100-sxm-80gb", batch_size=128, context_len=32_000, num_gpus=8)
    assert plan("llama-3.1-8b", "a100-sxm-80gb", batch_size=1, context_len=1000, num_gpus=8, drafts=("none",)).runner_up is None


def test_the_best_gamma_is_found_at_every_point(question: Question) -> None:
    batches = np.array([[4], [64], [128]])
    found = evaluate(question, Draft("self", "streaming_llm"), batch_size=batches, context_len=[4000, 32_000])
    assert found.round.gamma.shape == (3, 2)
    for gamma in GAMMAS:
        fixed = evaluate(question, Draft("self", "streaming_llm"), batch_size=batches, context_len=[4000, 32_000], gamma=gamma)
        assert (found.round.speedup >= fixed.round.speedup * (1 - 1e-12)).all()
    assert len(set(found.round.gamma.ravel().tolist())) > 1


def test_with_unknown_acceptance_the_gamma_that_asks_for_the_least_is_taken(question: Question) -> None:
    e = evaluate(question, Draft("ngram"), batch_size=[1, 64], context_len=16_000)
    assert np.isnan(e.round.speedup).all()
    each = [evaluate(question, Draft("ngram"), batch_size=[1, 64], context_len=16_000, gamma=gamma) for gamma in GAMMAS]
    least = np.min([one.round.minimum_acceptance_rate() for one in each], axis=0)
    assert e.round.minimum_acceptance_rate() == pytest.approx(least, rel=1e-9)
    assert best_gamma(each).tolist() == e.round.gamma.tolist()


def test_a_checkpoint_is_planned_with_the_acceptance_beside_it(tmp_path: Path) -> None:
    """`acceptance.yaml` of a checkpoint directory is asked before any published curve."""
    for file in reference_model_dir().iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "acceptance.yaml").unlink(missing_ok=True)
    points = [{"kv_budget": 512, "context_len": 8000, "acceptance_rate": 0.97}]
    curve = {"target": "x", "task": "t", "draft_kind": "self", "kv_policy": "streaming_llm", "source": "mine", "points": points}
    (tmp_path / "acceptance.yaml").write_text(render_curves([curve]), encoding="utf-8")
    own = ask(str(tmp_path), "l4")
    found = evaluate(own, Draft("self", "streaming_llm"), batch_size=64, context_len=8000, gamma=3)
    assert found.acceptance_rate == pytest.approx(0.97)
    assert found.acceptance is not None
    assert found.acceptance.measured_here
    assert "mine" in found.acceptance.note


def test_a_question_knows_its_replicas(question: Question) -> None:
    assert ask("llama-3.1-8b", "h100-sxm", num_gpus=8, tensor_parallel=2).deployment.replicas == 4
    assert question.deployment == replace(question.deployment)


def test_a_trace_with_requests_beyond_what_the_model_knows_says_so(question: Question) -> None:
    """The mean request is within the 131,072 positions of Llama-3.1-8B, the longest is not."""
    trace = RequestTrace((1000, 200_000), (100, 100))
    found = made(question, Workload(4, *trace.typical), trace=trace)
    assert any("knows 131072 positions" in note for note in found.notes)
