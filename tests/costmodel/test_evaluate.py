from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.acceptance import published_curves
from costmodel.errors import InputError
from costmodel.evaluate import UNCALIBRATED_ERROR, Draft, Evaluation, Setup, evaluate_grid
from costmodel.hardware import HardwareProfile, resolve_profile
from costmodel.roofline import VERIFY_KERNELS
from costmodel.speculation import minimum_acceptance_rate
from costmodel.transformer import TransformerConfig, resolve_model

STREAMING = Draft("self", "streaming_llm")
CURVES = published_curves()
DRAFTS = {
    "none": Draft(),
    "self": STREAMING,
    "snapkv": Draft("self", "snapkv"),
    "model": Draft("model", "streaming_llm", resolve_model("Llama-3.2-1B")),
}


@pytest.fixture(scope="module")
def setup(llama: TransformerConfig, a100: HardwareProfile) -> Setup:
    return Setup(llama, a100, 8, 8)


def evaluated(setup: Setup, draft: Draft = STREAMING, **changes: Any) -> Evaluation:
    question: dict[str, Any] = {"batch_size": 64, "context_len": 32_000, "gamma": 3, "kv_budget": 512, "curves": CURVES}
    return evaluate_grid(setup, draft, **{**question, **changes})


def exact_numbers(e: Evaluation) -> dict[str, Any]:
    """Everything that does not go through a power or a logarithm."""
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


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_the_grid_equals_the_scalar_path(draft: Draft, setup: Setup) -> None:
    random = np.random.default_rng(2408)
    batches = random.integers(1, 300, 4)[:, None, None, None]
    contexts = random.integers(1, 400_000, 5)[:, None, None]
    gammas = random.integers(1, 12, 3)[:, None]
    budgets = np.array([*random.integers(16, 8192, 2), np.inf])
    if draft.kind == "none":
        gammas = np.zeros((1, 1))
    grid = evaluated(setup, draft, batch_size=batches, context_len=contexts, gamma=gammas, kv_budget=budgets)
    shape = (4, 5, gammas.size, 3)
    for index in np.ndindex(shape):
        values = [np.broadcast_to(x, shape)[index] for x in (batches, contexts, gammas, budgets)]
        point = evaluated(setup, draft, **dict(zip(("batch_size", "context_len", "gamma", "kv_budget"), values, strict=True)))
        for name, value in exact_numbers(grid).items():
            assert np.broadcast_to(value, shape)[index] == exact_numbers(point)[name], name
        for name, value in acceptance_numbers(grid).items():  # powers differ in the last bits between array and scalar code
            expected = acceptance_numbers(point)[name]
            np.testing.assert_allclose(np.broadcast_to(value, shape)[index], expected, rtol=1e-14, err_msg=name)


def test_a_gamma_of_zero_is_answered_alike_alone_and_in_a_grid(setup: Setup) -> None:
    alone, grid = evaluated(setup, gamma=0), evaluated(setup, gamma=[0, 3])
    for numbers in (exact_numbers, acceptance_numbers):
        for name, value in numbers(grid).items():
            np.testing.assert_array_equal(np.broadcast_to(value, 2)[0], numbers(alone)[name], err_msg=name)


def test_a_scalar_question_has_scalar_answers(setup: Setup) -> None:
    e = evaluated(setup)
    numbers = {**exact_numbers(e), **acceptance_numbers(e)}
    assert {name for name, value in numbers.items() if np.shape(value) != ()} == set()
    assert str(e.target.bound) == "kv"


def test_every_argument_broadcasts_against_every_other(setup: Setup) -> None:
    e = evaluated(setup, batch_size=[1, 8], gamma=[[1], [2], [3]], acceptance_rate=np.full((4, 1, 1), 0.8))
    assert e.round.speedup.shape == (4, 3, 2)


@settings(max_examples=30)
@given(st.integers(1, 512), st.integers(1, 200_000), st.floats(0, 1), st.sampled_from(sorted(DRAFTS)))
def test_gamma_zero_is_plain_decoding(batch: int, context: int, rate: float, kind: str) -> None:
    setup = Setup(resolve_model("Llama-3.1-8B"), resolve_profile("a100"), 8, 8)
    e = evaluated(setup, DRAFTS[kind], batch_size=batch, context_len=context, gamma=0, acceptance_rate=rate)
    assert e.round.speedup == e.speedup_low == e.speedup_high == 1
    assert e.round.speculative_tpot_s == e.round.target_step_s


def test_gamma_zero_is_plain_decoding_whatever_length_was_given(setup: Setup) -> None:
    e = evaluated(setup, gamma=[0, 3], acceptance_length=2.5)
    assert e.round.speedup[0] == 1
    assert e.round.speedup[1] == evaluated(setup, acceptance_length=2.5).round.speedup


@pytest.mark.parametrize("kernel", VERIFY_KERNELS)
def test_verifying_nothing_costs_the_same_as_decoding(setup: Setup, kernel: Any) -> None:
    e = evaluated(replace(setup, verify_kernel=kernel), batch_size=[1, 64], gamma=0)
    assert e.verify.total_s.tolist() == e.target.total_s.tolist()


@pytest.mark.parametrize("kernel", VERIFY_KERNELS)
def test_the_kernel_of_verification_does_not_touch_plain_decoding(setup: Setup, kernel: Any) -> None:
    plain, other = (evaluated(replace(setup, verify_kernel=k), batch_size=[1, 4, 64]) for k in ("shared_kv_splitkv", kernel))
    assert other.target.total_s.tolist() == plain.target.total_s.tolist()
    assert other.draft.total_s.tolist() == plain.draft.total_s.tolist()


def test_a_worse_kernel_makes_verification_dearer(setup: Setup) -> None:
    costs = {kernel: evaluated(replace(setup, verify_kernel=kernel), batch_size=1).round.verify_cost for kernel in VERIFY_KERNELS}
    assert costs["shared_kv_splitkv"] < 1.1
    assert costs["per_token"] > 1.1 * costs["shared_kv_splitkv"]
    assert costs["shared_kv_no_split"] > 1.1 * costs["shared_kv_splitkv"]


def test_a_self_draft_that_reads_everything_costs_a_target_step_and_is_always_accepted(setup: Setup) -> None:
    e = evaluated(setup, kv_budget=[32_000, 50_000, np.inf])
    assert (e.draft.total_s == e.target.total_s).all()
    assert e.acceptance_rate.tolist() == [1, 1, 1]
    assert e.round.mean_acceptance_length.tolist() == [4, 4, 4]


def test_a_smaller_budget_drafts_faster_and_is_accepted_less(setup: Setup) -> None:
    e = evaluated(setup, kv_budget=[64, 512, 4096, 16_000])
    assert (np.diff(e.round.draft_step_s) > 0).all()
    assert (np.diff(e.acceptance_rate) > 0).all()


def test_a_small_draft_runs_on_as_many_gpus_as_it_has_kv_heads(
    setup: Setup, tinyllama: TransformerConfig, llama: TransformerConfig
) -> None:
    assert Draft("model", "full", tinyllama).gpus(setup) == 4
    assert Draft("model", "full", llama).gpus(setup) == 8
    assert Draft("model", "full", tinyllama, tensor_parallel=1).gpus(setup) == 1
    assert STREAMING.gpus(setup) == 8


def test_replicas_share_the_batch(llama: TransformerConfig, a100: HardwareProfile) -> None:
    one = evaluated(Setup(llama, a100, 4, 4), batch_size=16)
    two = evaluated(Setup(llama, a100, 8, 4), batch_size=32)
    assert Setup(llama, a100, 8, 4).replicas == 2
    assert two.round.target_step_s == one.round.target_step_s
    assert two.memory == one.memory


def test_given_acceptance_is_used_and_names_no_curve(setup: Setup) -> None:
    rate, length = evaluated(setup, acceptance_rate=0.5), evaluated(setup, acceptance_length=1.875)
    assert rate.answer is length.answer is None
    assert rate.round.mean_acceptance_length == pytest.approx(1.875)
    assert rate.round.speedup == pytest.approx(length.round.speedup)
    assert np.isnan(length.acceptance_rate)


def test_a_looked_up_acceptance_names_its_curve(setup: Setup, llama2: TransformerConfig) -> None:
    e = evaluated(setup)
    assert e.answer is not None
    assert e.answer.measured_here
    assert e.acceptance_rate == pytest.approx(0.81)
    other = evaluated(Setup(replace(llama2, name="another"), setup.hardware, 8, 8))
    assert other.answer is not None
    assert not other.answer.measured_here


@pytest.mark.parametrize("draft", [DRAFTS["self"], DRAFTS["snapkv"], DRAFTS["model"]], ids=["self", "snapkv", "model"])
def test_an_unknown_acceptance_is_asked_for(setup: Setup, draft: Draft) -> None:
    with pytest.raises(InputError, match=rf"--acceptance-rate: expected a value: .* draft {draft.kind} .* {draft.kv_policy}"):
        evaluated(setup, draft, curves=())


@pytest.mark.parametrize("rate", [-0.1, 1.1, np.nan])
def test_an_acceptance_rate_is_a_probability(setup: Setup, rate: float) -> None:
    with pytest.raises(InputError, match="--acceptance-rate"):
        evaluated(setup, acceptance_rate=rate)


@pytest.mark.parametrize("length", [0.5, 4.5])
def test_a_round_yields_one_token_at_least_and_gamma_and_one_at_most(setup: Setup, length: float) -> None:
    with pytest.raises(InputError, match="--mean-acceptance-length"):
        evaluated(setup, gamma=3, acceptance_length=length)


@pytest.mark.parametrize(("gpus", "tensor_parallel"), [(8, 3), (8, 16), (8, 0), (0, 1), (1, 2), (-8, -8)])
def test_gpus_must_divide_into_replicas(llama: TransformerConfig, a100: HardwareProfile, gpus: int, tensor_parallel: int) -> None:
    with pytest.raises(InputError) as caught:
        Setup(llama, a100, gpus, tensor_parallel)
    (problem,) = caught.value.problems
    assert problem.where == "--tensor-parallel"
    assert problem.found == str(tensor_parallel)


def test_query_heads_must_divide_over_the_gpus(llama: TransformerConfig, a100: HardwareProfile) -> None:
    with pytest.raises(InputError, match=r"--tensor-parallel: expected a divisor of the 32 query heads of Llama-3\.1-8B, found 3"):
        Setup(llama, a100, 3, 3)


def test_kv_heads_must_divide_over_the_gpus_or_be_copied_whole(a100: HardwareProfile) -> None:
    model = resolve_model("Llama-3.2-3B")  # 24 query heads, 8 KV heads
    with pytest.raises(InputError, match="--tensor-parallel"):
        Setup(model, a100, 3, 3)


@settings(max_examples=30)
@given(st.integers(1, 256), st.integers(1000, 200_000), st.integers(1, 8))
def test_at_the_minimum_acceptance_rate_speculation_breaks_even(batch: int, context: int, gamma: int) -> None:
    setup = Setup(resolve_model("Llama-3.1-8B"), resolve_profile("a100"), 8, 8)
    shape = {"batch_size": batch, "context_len": context, "gamma": gamma}
    r = evaluated(setup, **shape).round
    rate = minimum_acceptance_rate(gamma, float(r.round_s), float(r.target_step_s))
    if rate is None:
        assert evaluated(setup, **shape, acceptance_rate=1.0).round.speedup < 1
    else:
        assert rate > 0
        assert evaluated(setup, **shape, acceptance_rate=rate).round.speedup == pytest.approx(1, rel=1e-6)


def test_the_interval_comes_from_the_fit_or_from_the_stated_uncertainty(setup: Setup, h200: HardwareProfile) -> None:
    calibrated, uncalibrated = evaluated(setup), evaluated(replace(setup, hardware=h200))
    fit = setup.hardware.calibration.fit
    assert fit is not None
    assert calibrated.error == 2 * fit.mean_error
    assert uncalibrated.error == UNCALIBRATED_ERROR
    for e in (evaluated(setup, acceptance_rate=0.8), evaluated(replace(setup, hardware=h200), acceptance_rate=0.8)):
        assert e.speedup_low * (1 + e.error) == pytest.approx(e.round.speedup)
        assert e.speedup_high == pytest.approx(e.round.speedup * (1 + e.error))


def test_a_gpu_holds_the_weights_that_its_passes_read(setup: Setup) -> None:
    e = evaluated(setup, batch_size=1, context_len=1)
    peak, calibration = setup.hardware.peak, setup.hardware.calibration
    read_bytes = e.target.weights_s * peak.memory_bandwidth_bytes_per_s * calibration.memory_efficiency
    assert not calibration.head_sharded
    assert e.memory.weights_bytes >= 0.99 * read_bytes
