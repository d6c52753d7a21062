from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.calibration.engine_fit import with_values
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.forward import forward_cost
from magicdec.costmodel.passes.roofline import VERIFY_KERNELS, step_time
from magicdec.costmodel.plans.strategy import COPY_SLACK
from magicdec.costmodel.speculation.acceptance import cut_acceptance_length, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import (
    KERNELS_ONLY_ERROR,
    OTHER_MODEL_ERROR,
    UNCALIBRATED_ERROR,
    Evaluation,
    evaluate_grid,
)

STREAMING = Draft("self", "streaming_llm")
CURVES = published_curves()
DRAFTS = {
    "none": Draft(),
    "self": STREAMING,
    "snapkv": Draft("self", "snapkv"),
    "model": Draft("model", "streaming_llm", resolve_model("Llama-3.2-1B")),
}


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


def evaluated(deployment: Deployment, draft: Draft = STREAMING, **changes: Any) -> Evaluation:
    question: dict[str, Any] = {"batch_size": 64, "context_len": 32_000, "gamma": 3, "kv_budget": 512, "curves": CURVES}
    return evaluate_grid(deployment, draft, **{**question, **changes})


def step_numbers(e: Evaluation) -> dict[str, Any]:
    """Step times by part, and memory."""
    numbers = {f"{name} {part}": value for name in ("target", "draft", "verify") for part, value in getattr(e, name).parts.items()}
    numbers |= {f"memory {field.name}": getattr(e.memory, field.name) for field in fields(e.memory)}
    return {**numbers, "gamma draft": e.round.gamma_draft_step_s, "round": e.round.round_s, "fits": e.fits_in_memory}


def acceptance_numbers(e: Evaluation) -> dict[str, Any]:
    return {
        "rate": e.acceptance_rate,
        "length": e.round.mean_acceptance_length,
        "tpot": e.round.speculative_tpot_s,
        "speedup": e.round.speedup,
        "low": e.speedup_low,
        "high": e.speedup_high,
    }


def test_a_gamma_of_zero_is_answered_alike_alone_and_in_a_grid(deployment: Deployment) -> None:
    alone, grid = evaluated(deployment, gamma=0), evaluated(deployment, gamma=[0, 3])
    for numbers in (step_numbers, acceptance_numbers):
        for name, value in numbers(grid).items():
            np.testing.assert_allclose(np.broadcast_to(value, 2)[0], numbers(alone)[name], rtol=1e-13, atol=1e-15, err_msg=name)


def test_a_scalar_question_has_scalar_answers(deployment: Deployment) -> None:
    e = evaluated(deployment)
    numbers = {**step_numbers(e), **acceptance_numbers(e)}
    assert {name for name, value in numbers.items() if np.shape(value) != ()} == set()
    assert str(e.target.bound) == "kv"


def test_every_argument_broadcasts_against_every_other(deployment: Deployment) -> None:
    e = evaluated(deployment, batch_size=[1, 8], gamma=[[1], [2], [3]], acceptance_rate=np.full((4, 1, 1), 0.8))
    assert e.round.speedup.shape == (4, 3, 2)


@settings(max_examples=20)
@given(st.integers(1, 512), st.integers(1, 200_000), st.floats(0, 1), st.sampled_from(sorted(DRAFTS)))
def test_gamma_zero_is_autoregressive_decoding(batch: int, context: int, rate: float, kind: str) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile("a100"), 8, 8)
    e = evaluated(deployment, DRAFTS[kind], batch_size=batch, context_len=context, gamma=0, acceptance_rate=rate)
    assert e.round.speedup == e.speedup_low == e.speedup_high == 1
    assert e.round.speculative_tpot_s == e.round.target_step_s


def test_gamma_zero_is_autoregressive_decoding_whatever_length_was_given(deployment: Deployment) -> None:
    e = evaluated(deployment, gamma=[0, 3], mean_acceptance_length=2.5)
    assert e.round.speedup[0] == 1
    assert e.round.speedup[1] == evaluated(deployment, mean_acceptance_length=2.5).round.speedup


@pytest.mark.parametrize("kernel", VERIFY_KERNELS)
def test_verifying_nothing_costs_the_same_as_decoding(deployment: Deployment, kernel: Any) -> None:
    e = evaluated(replace(deployment, verify_kernel=kernel), batch_size=[1, 64], gamma=0)
    assert e.verify.total_s.tolist() == e.target.total_s.tolist()


@pytest.mark.parametrize("kernel", VERIFY_KERNELS)
def test_the_kernel_of_verification_does_not_touch_autoregressive_decoding(deployment: Deployment, kernel: Any) -> None:
    plain, other = (evaluated(replace(deployment, verify_kernel=k), batch_size=[1, 4, 64]) for k in ("shared_kv_splitkv", kernel))
    assert other.target.total_s.tolist() == plain.target.total_s.tolist()
    assert other.draft.total_s.tolist() == plain.draft.total_s.tolist()


def test_a_worse_kernel_makes_verification_dearer(deployment: Deployment) -> None:
    """At small batch, where nothing fills the processors but splits; and at large, where reading again counts."""
    costs = {
        kernel: evaluated(replace(deployment, verify_kernel=kernel), batch_size=[1, 64]).round.verify_cost
        for kernel in VERIFY_KERNELS
    }
    best = costs["shared_kv_splitkv"]
    assert best[0] < 1.1
    assert costs["shared_kv_no_split"][0] > 2 * best[0]
    assert costs["per_token"][1] > 2 * best[1]
    assert all((cost >= best).all() for cost in costs.values())


def test_a_self_draft_that_reads_everything_costs_a_target_step_and_is_always_accepted(deployment: Deployment) -> None:
    e = evaluated(deployment, kv_budget=[32_000, 50_000, np.inf])
    assert (e.draft.total_s == e.target.total_s).all()
    assert e.acceptance_rate.tolist() == [1, 1, 1]
    assert e.round.mean_acceptance_length.tolist() == [4, 4, 4]


def test_a_smaller_budget_drafts_faster_and_is_accepted_less(deployment: Deployment) -> None:
    e = evaluated(deployment, kv_budget=[64, 512, 4096, 16_000])
    assert (np.diff(e.round.draft_step_s) > 0).all()
    assert (np.diff(e.acceptance_rate) > 0).all()


def test_a_small_draft_is_priced_on_as_many_gpus_as_it_has_kv_heads(deployment: Deployment, small_llama: TransformerConfig) -> None:
    draft = replace(small_llama, num_heads=16, num_kv_heads=2)
    e = evaluated(deployment, Draft("model", "streaming_llm", draft), acceptance_rate=0.7)
    sharded = deployment.hardware.calibration.engine.head_sharded
    cost = forward_cost(
        draft, batch_size=64, query_len=1, context_len=32_000, kv_budget=512, tensor_parallel=2, head_sharded=sharded
    )
    assert e.draft.total_s == step_time(cost, deployment.hardware, "bfloat16", tensor_parallel=2).total_s


def test_choosing_entries_is_paid_at_every_draft_step(deployment: Deployment) -> None:
    plain, chosen = (evaluated(deployment, Draft("self", policy), acceptance_rate=0.8) for policy in ("streaming_llm", "topk"))
    select_s = chosen.round.select_step_s
    assert plain.round.select_step_s == 0 < select_s
    assert chosen.draft.total_s == plain.draft.total_s
    assert chosen.round.round_s - plain.round.round_s == pytest.approx(3 * float(select_s))


def test_an_engine_that_rereads_and_waits_pays_once_a_round(llama: TransformerConfig, h200: HardwareProfile) -> None:
    rereads = with_values(h200, {"engine.draft_rereads_last": True})
    waits = with_values(h200, {"engine.verify_wait": 0.1})
    shape = {"batch_size": 4, "gamma": 3, "kv_budget": 512}
    for rate in (0.0, 0.6, 1.0):
        plain, again, late = (
            evaluated(Deployment(llama, hardware, 8, 8), **shape, acceptance_rate=rate) for hardware in (h200, rereads, waits)
        )
        two_s = Deployment(llama, h200, 8, 8).pass_time(4, 2, 32_000, kv_budget=512).total_s
        all_accepted = 1 - (1 - rate**3) ** 4
        first_s = float(all_accepted * (two_s - plain.draft.total_s))
        assert again.round.first_draft_s == pytest.approx(first_s, rel=1e-9, abs=1e-18)
        assert again.round.round_s == pytest.approx(float(plain.round.round_s) + first_s, rel=1e-12)
        assert late.round.round_s == pytest.approx(float(plain.round.round_s + 0.1 * plain.verify.total_s), rel=1e-12)
    assert evaluated(Deployment(llama, waits, 8, 8), Draft("ngram"), acceptance_rate=0.5).round.first_draft_s == 0


def test_an_engine_that_rereads_is_priced_alike_by_rate_and_by_tokens(deployment: Deployment) -> None:
    assert deployment.hardware.calibration.engine.draft_rereads_last
    rate, length = (
        evaluated(deployment, batch_size=1, acceptance_rate=0.5),
        evaluated(deployment, batch_size=1, mean_acceptance_length=1.875),
    )
    assert rate.round.speedup == pytest.approx(float(length.round.speedup), rel=1e-9)


def test_replicas_share_the_batch(llama: TransformerConfig, a100: HardwareProfile) -> None:
    one = evaluated(Deployment(llama, a100, 4, 4), batch_size=16)
    two = evaluated(Deployment(llama, a100, 8, 4), batch_size=32)
    assert Deployment(llama, a100, 8, 4).replicas == 2
    assert two.round.target_step_s == one.round.target_step_s
    assert two.memory == one.memory


def test_the_fullest_replica_sets_the_pace(llama: TransformerConfig, a100: HardwareProfile) -> None:
    two = Deployment(llama, a100, 8, 4)
    odd, even = (evaluated(two, batch_size=batch) for batch in (31, 32))
    assert odd.round.target_step_s == even.round.target_step_s
    assert odd.memory == even.memory
    assert evaluated(two, batch_size=1).round.target_step_s == evaluated(two, batch_size=2).round.target_step_s


def test_given_acceptance_is_used_and_names_no_curve(deployment: Deployment) -> None:
    rate, length = evaluated(deployment, acceptance_rate=0.5), evaluated(deployment, mean_acceptance_length=1.875)
    assert rate.acceptance is length.acceptance is None
    assert rate.round.mean_acceptance_length == pytest.approx(1.875)
    assert rate.round.speedup == pytest.approx(length.round.speedup, rel=1e-3)
    assert np.isnan(length.acceptance_rate)


def test_rates_by_position_are_used_in_their_order(deployment: Deployment) -> None:
    e = evaluated(deployment, gamma=[0, 1, 3, 5], acceptance_by_position=[0.9, 0.8, 0.5])
    assert e.round.mean_acceptance_length == pytest.approx([1, 1.9, 1.9 + 0.72 + 0.36, 1.9 + 0.72 + 0.36 + 0.18 + 0.09])
    assert e.acceptance_rate[1] == pytest.approx(0.9)
    assert 0.5 < e.acceptance_rate[3] < 0.9
    assert e.speedup_low * (1 + e.error * (np.arange(4) > 0)) == pytest.approx(e.round.speedup, rel=1e-9)
    alike = evaluated(deployment, acceptance_by_position=[0.7] * 3), evaluated(deployment, acceptance_rate=0.7)
    assert alike[0].round.speedup == pytest.approx(float(alike[1].round.speedup), rel=1e-9)
    with pytest.raises(InputError, match="acceptance_rate"):
        evaluated(deployment, acceptance_by_position=[0.9, 1.2])


def test_rates_by_position_are_one_at_least(deployment: Deployment) -> None:
    with pytest.raises(InputError, match="acceptance_rate"):
        evaluated(deployment, acceptance_by_position=[])


def test_a_batch_of_mixed_lengths_costs_what_its_mean_length_does(deployment: Deployment) -> None:
    mixed = evaluated(deployment, context_len=[1000, 9000], context_weights=[0.25, 0.75], gamma=[[1], [3]], kv_budget=[64, 512])
    alike = evaluated(deployment, context_len=7000, gamma=[[1], [3]], kv_budget=[64, 512])
    for name in ("target_step_s", "verify_step_s", "draft_step_s"):
        assert getattr(mixed.round, name) == pytest.approx(getattr(alike.round, name), rel=1e-12), name
    rates = [
        evaluated(deployment, context_len=length, gamma=[[1], [3]], kv_budget=[64, 512]).acceptance_rate for length in (1000, 9000)
    ]
    assert mixed.acceptance_rate == pytest.approx(0.25 * rates[0] + 0.75 * rates[1])
    assert mixed.round.speedup.shape == (2, 2)


def test_a_draft_reads_of_each_length_what_its_budget_allows(deployment: Deployment) -> None:
    mixed = evaluated(deployment, context_len=[100, 9000], context_weights=[0.5, 0.5], kv_budget=500)
    assert mixed.draft.total_s == evaluated(deployment, context_len=4550, kv_budget=300).draft.total_s


def test_one_length_that_all_have_is_no_mixture(deployment: Deployment) -> None:
    mixed, alone = evaluated(deployment, context_len=[32_000], context_weights=[1.0]), evaluated(deployment)
    for name, value in {**step_numbers(mixed), **acceptance_numbers(mixed)}.items():
        expected = {**step_numbers(alone), **acceptance_numbers(alone)}[name]
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15, err_msg=name)


def test_a_looked_up_acceptance_names_its_curve(deployment: Deployment, llama2: TransformerConfig) -> None:
    e = evaluated(deployment)
    assert e.acceptance is not None
    assert e.acceptance.measured_here
    assert e.acceptance_rate == pytest.approx(0.81)
    other = evaluated(Deployment(replace(llama2, name="another"), deployment.hardware, 8, 8))
    assert other.acceptance is not None
    assert not other.acceptance.measured_here


@pytest.mark.parametrize("draft", [DRAFTS["self"], DRAFTS["snapkv"], DRAFTS["model"]], ids=["self", "snapkv", "model"])
def test_of_an_unknown_acceptance_all_is_known_but_what_depends_on_it(deployment: Deployment, draft: Draft) -> None:
    unknown, known = (evaluated(deployment, draft, gamma=[0, 3], **how) for how in ({"curves": ()}, {"acceptance_rate": 0.8}))
    assert unknown.acceptance is None
    for name in ("acceptance_rate", "speedup_low", "speedup_high"):
        assert np.isnan(np.broadcast_to(getattr(unknown, name), 2)[1]), name
    assert unknown.round.speedup[0] == unknown.speedup_low[0] == 1
    assert np.isnan(unknown.round.speedup[1])
    assert unknown.draft.total_s == known.draft.total_s
    assert (unknown.verify.total_s == known.verify.total_s).all()
    assert (unknown.memory.total_bytes == known.memory.total_bytes).all()
    assert unknown.round.minimum_acceptance_rate()[1] > 0


@pytest.mark.parametrize("rate", [-0.1, 1.1, np.nan])
def test_an_acceptance_rate_is_a_probability(deployment: Deployment, rate: float) -> None:
    with pytest.raises(InputError, match="acceptance_rate"):
        evaluated(deployment, acceptance_rate=rate)


@pytest.mark.parametrize("length", [0.5, 4.5])
def test_a_round_yields_one_token_at_least_and_gamma_and_one_at_most(deployment: Deployment, length: float) -> None:
    with pytest.raises(InputError, match="mean_acceptance_length"):
        evaluated(deployment, gamma=3, mean_acceptance_length=length)


@pytest.mark.parametrize(("gpus", "tensor_parallel"), [(8, 3), (8, 16), (8, 0), (0, 1), (1, 2), (-8, -8)])
def test_gpus_must_divide_into_replicas(llama: TransformerConfig, a100: HardwareProfile, gpus: int, tensor_parallel: int) -> None:
    with pytest.raises(InputError) as caught:
        Deployment(llama, a100, gpus, tensor_parallel)
    (problem,) = caught.value.problems
    assert problem.where == "tensor_parallel"
    assert problem.found == str(tensor_parallel)


def test_query_heads_must_divide_over_the_gpus(llama: TransformerConfig, a100: HardwareProfile) -> None:
    with pytest.raises(InputError, match=r"tensor_parallel: expected a divisor of the 32 query heads of Llama-3\.1-8B, found 3"):
        Deployment(llama, a100, 3, 3)


def test_kv_heads_must_divide_over_the_gpus_or_be_copied_whole(a100: HardwareProfile) -> None:
    model = resolve_model("Llama-3.2-3B")  # 24 query heads, 8 KV heads
    with pytest.raises(InputError, match="tensor_parallel"):
        Deployment(model, a100, 3, 3)


@settings(max_examples=20)
@given(st.integers(1, 256), st.integers(1000, 200_000), st.integers(1, 8))
def test_at_the_minimum_acceptance_rate_speculation_breaks_even(batch: int, context: int, gamma: int) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile("h100"), 8, 8)
    shape = {"batch_size": batch, "context_len": context, "gamma": gamma}
    r = evaluated(deployment, **shape).round
    rate = float(r.minimum_acceptance_rate())
    if np.isnan(rate):
        assert evaluated(deployment, **shape, acceptance_rate=1.0).round.speedup < 1
    else:
        assert rate > 0
        assert evaluated(deployment, **shape, acceptance_rate=rate).round.speedup == pytest.approx(1, rel=1e-6)


def test_the_interval_comes_from_the_fit_or_from_the_stated_uncertainty(
    deployment: Deployment, h200: HardwareProfile, bare: HardwareProfile
) -> None:
    fit = deployment.hardware.calibration.fit_of("engine")
    assert fit is not None
    errors = 2 * max(fit.mean_error, OTHER_MODEL_ERROR), KERNELS_ONLY_ERROR, UNCALIBRATED_ERROR
    assert errors[0] < errors[1] < errors[2]
    for hardware, error in zip((deployment.hardware, h200, bare), errors, strict=True):
        e = evaluated(replace(deployment, hardware=hardware), acceptance_rate=0.8)
        assert e.error == error
        assert e.speedup_low * (1 + e.error) == pytest.approx(e.round.speedup)
        assert e.speedup_high == pytest.approx(e.round.speedup * (1 + e.error))


def test_an_assumed_acceptance_widens_the_interval(deployment: Deployment) -> None:
    sure, borrowed = evaluated(deployment), evaluated(replace(deployment, target=replace(deployment.target, name="another")))
    assert (sure.acceptance_error, borrowed.acceptance_error) == (0.02, 0.1)
    assert borrowed.speedup_low < sure.speedup_low < sure.round.speedup < sure.speedup_high < borrowed.speedup_high
    lower = evaluated(deployment, acceptance_rate=float(borrowed.acceptance_rate) - 0.1)
    assert borrowed.speedup_low == pytest.approx(float(lower.speedup_low), rel=0.001)


def test_a_gpu_holds_the_weights_that_its_passes_read(deployment: Deployment, h200: HardwareProfile) -> None:
    for hardware in (deployment.hardware, h200):
        e = evaluated(replace(deployment, hardware=hardware), batch_size=1, context_len=1)
        peak, calibration = hardware.peak, hardware.calibration
        read_bytes = e.target.weights_s * peak.memory_bandwidth_bytes_per_s * calibration.gemm.memory_efficiency
        assert e.memory.weights_bytes >= 0.98 * read_bytes
    assert {hardware.calibration.engine.head_sharded for hardware in (deployment.hardware, h200)} == {True, False}


def test_a_mixture_of_experts_is_priced_by_the_experts_its_batch_meets(h200: HardwareProfile) -> None:
    deployment = Deployment(resolve_model("Qwen3-235B-A22B"), h200, 8, 4)
    e = evaluated(deployment, Draft("ngram"), batch_size=[2, 16, 128], context_len=100, gamma=4, acceptance_rate=0.5)
    assert (np.diff(e.target.weights_s) > 0).all()
    assert e.round.verify_cost[0] > 1.1, "more draft tokens meet more experts"


@pytest.mark.parametrize(("name", "gpus"), [("DeepSeek-V3", 8), ("gpt-oss-20b", 1), ("Gemma-3-27B", 2), ("Mixtral-8x7B", 2)])
def test_every_kind_of_model_is_evaluated_with_every_kind_of_draft(name: str, gpus: int, h200: HardwareProfile) -> None:
    deployment = Deployment(resolve_model(name), h200, gpus, gpus)
    drafts = [Draft("self", policy) for policy in ("streaming_llm", "snapkv", "topk", "quest", "pq")]  # type: ignore[arg-type]
    drafts += [Draft("self", kv_dtype="int4"), Draft("ngram"), Draft("eagle3")]
    for draft in drafts:
        e = evaluated(deployment, draft, batch_size=[1, 64], gamma=[[1], [4]], acceptance_rate=0.8)
        assert e.round.speedup.shape == (2, 2)
        assert np.isfinite(e.round.speedup).all()
        assert (e.round.round_s > e.verify.total_s).all()
        assert (e.draft.total_s <= e.target.total_s * (1 + 1e-9)).all(), draft
        assert (e.memory.total_bytes > 0).all()


@pytest.mark.parametrize(
    ("axis", "value"),
    [("batch_size", 0), ("batch_size", 1.5), ("context_len", -1), ("gamma", -1), ("gamma", 0.5), ("kv_budget", 0)],
)
def test_what_no_grid_can_hold_is_refused(deployment: Deployment, axis: str, value: float) -> None:
    for bad_value in (value, np.nan):
        with pytest.raises(InputError, match=axis):
            evaluated(deployment, **{axis: bad_value})


def test_a_draft_speaks_the_tokens_of_its_target(deployment: Deployment, tinyllama: TransformerConfig) -> None:
    with pytest.raises(InputError, match=r"draft: expected a model with the vocabulary of Llama-3\.1-8B"):
        evaluated(deployment, Draft("model", "streaming_llm", tinyllama))


def test_an_output_length_cuts_the_last_round_and_nothing_else(deployment: Deployment) -> None:
    whole, cut = evaluated(deployment, gamma=[0, 3, 8]), evaluated(deployment, gamma=[0, 3, 8], output_len=64)
    rate = whole.acceptance_rate[1:]
    assert cut.round.mean_acceptance_length == pytest.approx([1.0, *cut_acceptance_length([3, 8], rate, 64)])
    assert (cut.round.speedup[1:] < whole.round.speedup[1:]).all()
    assert step_numbers(cut)["round"] == pytest.approx(step_numbers(whole)["round"])
    assert (cut.speedup_low <= cut.round.speedup).all()
    assert (cut.round.speedup <= cut.speedup_high).all()


@pytest.mark.parametrize("output_len", [0, 1.0, True, "64", [64], float("nan"), 10**400])
def test_an_output_length_is_a_whole_number(deployment: Deployment, output_len: Any) -> None:
    with pytest.raises(InputError, match="output_len"):
        evaluate_grid(deployment, STREAMING, batch_size=8, context_len=4000, gamma=3, output_len=output_len)


def test_cold_caches_slow_passes_of_the_target_and_the_first_draft_step(deployment: Deployment) -> None:
    warm = evaluated(deployment)
    cold = evaluated(replace(deployment, hardware=with_values(deployment.hardware, {"engine.cold_pass_s": 1e-3})))
    assert cold.round.target_step_s == pytest.approx(warm.round.target_step_s + 1e-3)
    assert cold.round.verify_step_s == pytest.approx(warm.round.verify_step_s + 1e-3)
    assert cold.round.draft_step_s == warm.round.draft_step_s
    waited = deployment.hardware.calibration.engine.verify_wait * 1e-3
    assert cold.round.round_s == pytest.approx(warm.round.round_s + 2e-3 + waited)


@pytest.mark.parametrize(("policy", "copies"), [("streaming_llm", True), ("snapkv", True), ("topk", False)])
def test_copies_of_kv_entries_cost_what_is_copied_at_the_measured_rate(deployment: Deployment, policy: Any, copies: bool) -> None:
    hardware = deployment.hardware
    copying = replace(deployment, hardware=with_values(hardware, {"engine.copy_efficiency": 0.1}))
    draft, given = Draft("self", policy), {"acceptance_rate": 0.8}
    free, paid = evaluated(deployment, draft, **given).round, evaluated(copying, draft, **given).round
    tokens = float(free.mean_acceptance_length)
    copied = 64 * tokens * COPY_SLACK * deployment.target.kv_bytes_per_token if copies else 0.0
    rate = 0.1 * hardware.peak.memory_bandwidth_bytes_per_s
    assert float(paid.round_s - free.round_s) == pytest.approx(copied / rate, rel=1e-6)
