"""Critical context lengths, crossovers, required acceptance rates, and bottlenecks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.roofline import BOUNDS
from magicdec.costmodel.planning.regimes import (
    LARGE_BATCH,
    LONGEST,
    SMALL_BATCH,
    admissible_budgets,
    best_speedup,
    bound_map,
    critical_context_len,
    crossover_batch_size,
    first_root,
    minimum_acceptance,
)
from magicdec.costmodel.speculation.acceptance import find_curve, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid

STREAMING, CURVES, GAMMAS = Draft("self", "streaming_llm"), published_curves(), range(1, 11)
SMALL = Draft("model", "streaming_llm", resolve_model("TinyLlama-1.1B"))


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


def eight(model: str, hardware: str) -> Deployment:
    return Deployment(resolve_model(model), resolve_profile(hardware), 8, 8)


@cache
def critical(model: str, hardware: str = "a100-sxm-80gb", **changes: Any) -> float:
    question: dict[str, Any] = {"gammas": GAMMAS, "kv_budget": 512, "curves": CURVES}
    found = critical_context_len(eight(model, hardware), STREAMING, **{**question, **changes})
    assert found is not None
    return found


def speedups(
    deployment: Deployment, batch_size: ArrayLike, context_len: ArrayLike, draft: Draft = STREAMING, **changes: Any
) -> np.ndarray:
    question: dict[str, Any] = {"gammas": GAMMAS, "kv_budget": 512, "curves": CURVES}
    return best_speedup(deployment, draft, batch_size=batch_size, context_len=context_len, **{**question, **changes})


# The best gamma.


def test_the_best_speedup_is_the_largest_over_gamma(deployment: Deployment) -> None:
    at_each = [
        float(
            evaluate_grid(
                deployment, STREAMING, batch_size=64, context_len=32_000, gamma=gamma, kv_budget=512, curves=CURVES
            ).round.speedup
        )
        for gamma in GAMMAS
    ]
    assert speedups(deployment, 64, 32_000) == pytest.approx(max(at_each), rel=1e-12)
    assert speedups(deployment, 64, 32_000, gammas=[2]) == pytest.approx(at_each[1], rel=1e-12)


def test_batch_and_context_broadcast(deployment: Deployment) -> None:
    assert speedups(deployment, [[1], [8]], [1000, 2000, 4000]).shape == (2, 3)
    assert speedups(deployment, 8, [1000, 2000]).shape == (2,)
    assert speedups(deployment, 8, 1000).shape == ()


def test_unknown_acceptance_has_no_speedup(deployment: Deployment) -> None:
    assert np.isnan(speedups(deployment, [1, 8], 1000, Draft("ngram"))).all()
    assert not np.isnan(speedups(deployment, [1, 8], 1000, Draft("ngram"), acceptance_rate=0.5)).any()


# The critical context.


def test_the_critical_context_of_llama_3_is_about_4000_tokens() -> None:
    """MagicDec (arXiv 2408.11049), section 3: on 8 A100."""
    assert 3000 <= critical("Llama-3.1-8B") <= 5500


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_multi_head_attention_has_a_much_shorter_critical_context(hardware: str) -> None:
    assert critical("Llama-2-7B-32K", hardware) < critical("Llama-3.1-8B", hardware) / 1.4


def test_on_the_a100_multi_head_attention_has_a_third_of_the_critical_context() -> None:
    assert critical("Llama-2-7B-32K") < critical("Llama-3.1-8B") / 2.5


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Llama-2-7B-32K"])
def test_a_gpu_with_more_arithmetic_per_byte_has_a_shorter_critical_context(model: str) -> None:
    assert critical(model, "h100-sxm") < critical(model, "a100-sxm-80gb")


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Llama-2-7B-32K"])
@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_below_the_critical_context_a_larger_batch_gains_less_and_above_more(model: str, hardware: str) -> None:
    found = critical(model, hardware)
    below, at, above = (speedups(eight(model, hardware), [SMALL_BATCH, LARGE_BATCH], s) for s in (0.8 * found, found, 1.25 * found))
    assert below[1] < below[0]
    assert at[1] == pytest.approx(at[0], rel=1e-6)
    assert above[1] > above[0]


def test_far_above_the_critical_context_speedup_rises_with_every_doubling_of_the_batch(deployment: Deployment) -> None:
    batches = 2 ** np.arange(0, 9)
    assert (np.diff(speedups(deployment, batches[2:], 32_000)) > 0).all()
    short = speedups(deployment, batches[4:], 1000)
    assert (np.diff(short) < 1e-3).all()
    assert short[-1] < short[0]


def test_other_batches_can_be_compared() -> None:
    found = critical("Llama-3.1-8B", batch_sizes=(32, 128))
    below, above = (speedups(eight("Llama-3.1-8B", "a100-sxm-80gb"), [32, 128], s) for s in (0.8 * found, 1.25 * found))
    assert below[1] < below[0]
    assert above[1] > above[0]


def test_a_given_acceptance_is_used(deployment: Deployment) -> None:
    sure, poor = (critical("Llama-3.1-8B", curves=(), acceptance_rate=rate) for rate in (0.95, 0.6))
    assert sure < poor, "the more is accepted, the earlier a large batch gains"


def test_a_draft_that_is_never_accepted_gains_from_no_batch_at_any_context() -> None:
    """Each round costs more than an autoregressive step, so every batch size loses."""
    deployment = eight("Llama-3.1-8B", "a100-sxm-80gb")
    assert (speedups(deployment, [SMALL_BATCH, LARGE_BATCH], [[1000], [32_000]], acceptance_rate=0.0) < 1).all()


def test_without_a_known_acceptance_there_is_no_critical_context(deployment: Deployment) -> None:
    assert critical_context_len(deployment, STREAMING, gammas=GAMMAS, kv_budget=512) is None


def test_the_critical_context_is_never_one_that_the_draft_reads_whole() -> None:
    assert critical("Llama-2-7B-32K", kv_budget=4096) >= 4096
    assert 128 <= critical("Llama-2-7B-32K", kv_budget=64) <= LONGEST


# Roots.


def test_a_root_is_found_to_many_digits() -> None:
    assert first_root(lambda x: np.asarray(x) - 1234.5, 1, 1e5) == pytest.approx(1234.5, rel=1e-9)


@given(st.floats(2, 9e4))
def test_wherever_the_root_is_the_function_is_positive_there_and_not_just_below(root: float) -> None:
    found = first_root(lambda x: np.asarray(x) - root, 1, 1e5)
    assert found is not None
    assert found > root >= found * (1 - 1e-9)


def test_a_function_that_is_positive_at_once_has_its_root_at_the_low_end() -> None:
    assert first_root(lambda x: np.ones_like(x), 3, 100) == 3
    assert first_root(lambda x: 5 - np.asarray(x), 3, 100) == 3


@pytest.mark.parametrize("never", [lambda x: -np.ones_like(x), lambda x: 0 * np.asarray(x), lambda x: np.full_like(x, np.nan)])
def test_a_function_that_is_positive_nowhere_has_no_root(never: Any) -> None:
    assert first_root(never, 3, 100) is None


def test_a_root_at_the_high_end_is_found() -> None:
    assert first_root(lambda x: np.asarray(x) - 99.9999, 3, 100) == pytest.approx(99.9999, rel=1e-9)


def test_of_several_roots_the_first_is_taken() -> None:
    assert first_root(lambda x: np.sin(np.log(x)), 0.1, 1e5) == pytest.approx(1, rel=1e-6)
    assert first_root(lambda x: np.sin(np.log(x)), 30, 1e5) == pytest.approx(np.exp(2 * np.pi), rel=1e-6)


def test_an_unknown_stretch_is_not_positive() -> None:
    assert first_root(lambda x: np.where(np.asarray(x) < 50, np.nan, 1.0), 3, 100) == pytest.approx(50, rel=1e-6)


# The crossover.


@cache
def crossover(hardware: str, context_len: float, first: Draft = SMALL, second: Draft = STREAMING, **changes: Any) -> float | None:
    deployment = eight("Llama-2-7B-32K", hardware)
    return crossover_batch_size(
        deployment, first, second, context_len=context_len, gammas=GAMMAS, kv_budgets=(512, 512), curves=CURVES, **changes
    )


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_a_small_draft_wins_at_small_batches_and_self_speculation_at_large_ones(hardware: str) -> None:
    """MagicDec (arXiv 2408.11049), Fig. 7: Llama-2-7B-32K with TinyLlama-1.1B."""
    deployment = eight("Llama-2-7B-32K", hardware)
    found = crossover(hardware, 32_000)
    assert found is not None
    assert 2 < found < 64
    small = [speedups(deployment, batch, 32_000, SMALL) for batch in (1, found - 1, found, 256)]
    itself = [speedups(deployment, batch, 32_000) for batch in (1, found - 1, found, 256)]
    assert [bool(s > t) for s, t in zip(itself, small, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_at_short_contexts_the_small_draft_wins_whatever_the_batch(hardware: str) -> None:
    assert crossover(hardware, 1000) is None
    deployment = eight("Llama-2-7B-32K", hardware)
    for batch in (1, 16, 128):
        assert speedups(deployment, batch, 1000, SMALL) > speedups(deployment, batch, 1000)


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_the_longer_the_context_the_earlier_self_speculation_wins(hardware: str) -> None:
    found = [crossover(hardware, context) for context in (16_000, 24_000, 32_000)]
    assert None not in found
    assert found == sorted(found, reverse=True)
    assert found[0] != found[-1]


def test_a_crossover_is_a_whole_number_of_sequences() -> None:
    found = crossover("a100-sxm-80gb", 32_000)
    assert found is not None
    assert found == int(found)


def test_a_draft_never_overtakes_itself_nor_one_that_is_cheaper_and_as_good() -> None:
    assert crossover("a100-sxm-80gb", 32_000, STREAMING, STREAMING) is None


def test_a_crossover_beyond_the_largest_batch_is_none() -> None:
    found = crossover("a100-sxm-80gb", 32_000)
    assert found is not None
    assert crossover("a100-sxm-80gb", 32_000, largest=int(found) - 2) is None


def test_a_draft_that_leads_from_the_start_overtakes_at_batch_one() -> None:
    assert crossover("a100-sxm-80gb", 1000, STREAMING, SMALL) == 1


# The acceptance that is needed.


def needed(deployment: Deployment, speedup: float, budgets: ArrayLike = (64, 512, 4096), **changes: Any) -> np.ndarray:
    question: dict[str, Any] = {"batch_size": 128, "context_len": 32_000, "gammas": GAMMAS}
    return minimum_acceptance(deployment, STREAMING, kv_budgets=budgets, speedup=speedup, **{**question, **changes})


def test_more_speedup_needs_more_acceptance(deployment: Deployment) -> None:
    rates = np.stack([needed(deployment, speedup) for speedup in (1.0, 1.2, 1.5, 2.0)])
    assert not np.isnan(rates).any()
    assert (np.diff(rates, axis=0) > 0).all()
    assert ((rates > 0) & (rates < 1)).all()


@settings(max_examples=15)
@given(st.integers(1, 256), st.integers(600, 120_000), st.floats(0.5, 3), st.floats(0, 2))
def test_wanting_more_never_needs_less(batch: int, context: int, speedup: float, more: float) -> None:
    deployment = eight("Llama-3.1-8B", "h100-sxm")
    low, high = (needed(deployment, s, batch_size=batch, context_len=context) for s in (speedup, speedup + more))
    known = ~np.isnan(high)
    assert not np.isnan(low[known]).any(), "what reaches the larger speedup reaches the smaller"
    assert (high[known] >= low[known] - 1e-12).all()


def test_a_larger_budget_costs_more_and_needs_more_acceptance(deployment: Deployment) -> None:
    assert (np.diff(needed(deployment, 1.2, (64, 512, 2048, 4096))) > 0).all()


def test_with_the_needed_acceptance_the_speedup_is_reached(deployment: Deployment) -> None:
    for budget, rate in zip((64, 512, 4096), needed(deployment, 1.5), strict=True):
        reached = speedups(deployment, 128, 32_000, kv_budget=budget, curves=(), acceptance_rate=float(rate))
        assert reached == pytest.approx(1.5, rel=0.01), "but for the rounds in which everything was accepted"
        assert speedups(deployment, 128, 32_000, kv_budget=budget, curves=(), acceptance_rate=float(rate) - 0.02) < 1.5


def test_a_speedup_that_no_acceptance_reaches_needs_an_unknown_one(deployment: Deployment) -> None:
    assert np.isnan(needed(deployment, 20.0)).all()
    assert np.isnan(needed(deployment, 1.5, (64, 31_999))).tolist() == [False, True]


def test_other_gammas_can_only_lower_what_is_needed(deployment: Deployment) -> None:
    assert (needed(deployment, 1.2) <= needed(deployment, 1.2, gammas=[3])).all()
    assert (needed(deployment, 1.2, gammas=[3]) == needed(deployment, 1.2, gammas=[3, 3])).all()


def test_budgets_are_admitted_whose_measured_acceptance_reaches_what_is_needed(deployment: Deployment) -> None:
    answer = find_curve(CURVES, "Llama-3.1-8B", STREAMING)
    assert answer is not None
    budgets = [64, 512, 4096, 16_000, 40_000]
    where: dict[str, Any] = {"batch_size": 128, "context_len": 32_000, "gammas": GAMMAS}
    admitted = {
        speedup: admissible_budgets(deployment, STREAMING, kv_budgets=budgets, speedup=speedup, curve=answer.curve, **where)
        for speedup in (0.5, 1.0, 1.3, 1.5, 5.0)
    }
    for speedup, found in admitted.items():
        rates = answer.curve.rate(np.minimum(budgets, 32_000), 32_000)
        assert found == [
            k for k, rate, least in zip(budgets, rates, needed(deployment, speedup, budgets), strict=True) if rate >= least
        ]
    assert admitted[0.5] == budgets
    assert 40_000 not in admitted[1.0], "a draft that reads everything gains nothing"
    assert 512 in admitted[1.3]
    assert admitted[5.0] == []
    sizes = [len(found) for found in admitted.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_an_admitted_budget_reaches_the_speedup_and_one_that_is_not_does_not(deployment: Deployment) -> None:
    answer = find_curve(CURVES, "Llama-3.1-8B", STREAMING)
    assert answer is not None
    budgets = [64, 256, 512, 2048, 8192, 16_000]
    admitted = admissible_budgets(
        deployment, STREAMING, batch_size=64, context_len=32_000, gammas=GAMMAS, kv_budgets=budgets, speedup=1.3, curve=answer.curve
    )
    assert 0 < len(admitted) < len(budgets)
    for budget in budgets:
        reached = speedups(deployment, 64, 32_000, kv_budget=budget)
        assert reached >= 1.3 * 0.99 if budget in admitted else reached < 1.3 * 1.01


# What bounds a step.


def test_a_bound_map_is_what_single_steps_are_bound_by(deployment: Deployment) -> None:
    batches, contexts = [1, 64, 256], [1000, 32_000]
    found = bound_map(deployment, batches, contexts)
    assert found.shape == (3, 2)
    for i, batch in enumerate(batches):
        for j, context in enumerate(contexts):
            assert found[i, j] == str(evaluate_grid(deployment, Draft(), batch_size=batch, context_len=context).target.bound)
            assert found[i, j] in BOUNDS


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_with_batch_a_short_context_turns_compute_bound_and_a_long_one_kv_bound(hardware: str) -> None:
    """MagicDec (arXiv 2408.11049), section 3, for one GPU: at a short context a large batch is bound by arithmetic, at a long
    one by the KV cache; at batch 1 by the weights."""
    found = bound_map(Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware), 1, 1), [1, 1024], [100, 32_000])
    assert found.tolist() == [["weights", "weights"], ["compute", "kv"]]


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm", "h200-sxm", "l40s"])
@pytest.mark.parametrize("gpus", [1, 8])
def test_longer_contexts_shift_time_to_the_kv_cache_and_larger_batches_to_arithmetic(hardware: str, gpus: int) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware), gpus, gpus)
    step = deployment.pass_time(np.array([1, 16, 128, 512])[:, None], 1, np.array([500, 4000, 32_000, 100_000]))
    share = {name: part / step.total_s for name, part in step.parts.items()}
    assert (np.diff(share["kv"], axis=1) > 0).all()
    assert (np.diff(share["kv"][1:], axis=0) > 0).all()
    assert (np.diff(share["compute"][-1]) < 0).all(), "of a large batch"
    assert (np.diff(share["compute"][:, 0]) > 0).all(), "at a short context"


def test_once_bound_by_the_kv_cache_always_so(deployment: Deployment) -> None:
    found = bound_map(deployment, 2 ** np.arange(11), 1000 * 2 ** np.arange(8)) == "kv"
    assert found.any()
    assert not found.all()
    assert (np.diff(found.astype(int), axis=1) >= 0).all(), "a longer context stays bound by it"


def test_replicas_share_the_batch_in_a_bound_map(llama: TransformerConfig, a100: HardwareProfile) -> None:
    one, two = Deployment(llama, a100, 1, 1), Deployment(llama, a100, 2, 1)
    assert (bound_map(one, [32, 512], [100, 4000]) == bound_map(two, [64, 1024], [100, 4000])).all()
    assert (bound_map(one, [1], [100]) == bound_map(replace(two, num_gpus=8), [3], [100])).all()
    shared = replace(two, num_gpus=8)
    assert bound_map(shared, [128], [4000]) == bound_map(one, [16], [4000]) == "weights"
    assert bound_map(one, [128], [4000]) == "kv"
