from __future__ import annotations

from typing import Any

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.search import GAMMAS, Candidate, candidates, rank
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid

STREAMING = Draft("self", "streaming_llm")
LONG = Workload(64, 32_000, 128)


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


def found(deployment: Deployment, workload: Workload = LONG, **changes: Any) -> list[Candidate]:
    return candidates(deployment, [STREAMING], workload, **{"curves": published_curves(), **changes})


def test_autoregressive_decoding_is_always_a_candidate(deployment: Deployment) -> None:
    plain = [candidate for candidate in found(deployment, batch_sizes=[1, 8]) if candidate.strategy == NO_SPECULATION]
    assert [candidate.batch_size for candidate in plain] == [1, 8]
    assert {candidate.speedup for candidate in plain} == {1.0}
    assert [candidate.strategy for candidate in candidates(deployment, [], LONG)] == [NO_SPECULATION]


def test_every_gamma_and_budget_is_a_candidate_once(deployment: Deployment) -> None:
    strategies = [candidate.strategy for candidate in found(deployment, gammas=[1, 4], kv_budgets=[64, 512])]
    speculative = [(strategy.gamma, strategy.kv_budget) for strategy in strategies if strategy != NO_SPECULATION]
    assert speculative == [(1, 64), (1, 512), (4, 64), (4, 512)]


def test_a_candidate_is_priced_as_the_same_question_alone(deployment: Deployment) -> None:
    (candidate,) = [
        c for c in found(deployment, batch_sizes=[8, 64]) if (c.batch_size, c.strategy.gamma, c.strategy.kv_budget) == (64, 3, 512)
    ]
    alone = evaluate_grid(
        deployment,
        STREAMING,
        batch_size=64,
        context_len=32_064,
        gamma=3,
        kv_budget=512,
        curves=published_curves(),
        max_context_len=32_128,
    )
    assert candidate.speedup == pytest.approx(float(alone.round.speedup), rel=1e-12)
    assert candidate.tpot_s == pytest.approx(float(alone.round.speculative_tpot_s), rel=1e-12)
    assert candidate.memory_bytes == alone.memory.total_bytes
    assert candidate.throughput_tokens_per_s == pytest.approx(64 / candidate.tpot_s)
    assert candidate.bound == str(alone.target.bound)
    assert sum(candidate.breakdown["verify"].values()) == pytest.approx(float(alone.round.verify_step_s))
    assert candidate.speedup_low < candidate.speedup < candidate.speedup_high


def test_budgets_that_read_everything_are_left_out(deployment: Deployment) -> None:
    budgets = {candidate.strategy.kv_budget for candidate in found(deployment, Workload(4, 600, 100))}
    assert budgets == {None, 64, 128, 256, 512}
    assert {candidate.strategy.kv_budget for candidate in found(deployment, Workload(4, 10, 100))} == {None, 64}


def test_the_best_comes_first_at_long_context_and_autoregressive_decoding_at_short(deployment: Deployment) -> None:
    ranked = rank(found(deployment))
    assert ranked[0].strategy.draft_kind == "self"

    def surely(candidate: Candidate) -> float:
        return candidate.tpot_s * candidate.speedup / candidate.speedup_low

    assert surely(ranked[0]) == min(surely(candidate) for candidate in found(deployment) if candidate.fits_in_memory)
    assert rank(found(deployment, Workload(1, 1000, 128)))[0].strategy == NO_SPECULATION


def test_a_gain_within_the_uncertainty_ranks_behind_autoregressive_decoding(deployment: Deployment) -> None:
    ranked = rank(found(deployment, Workload(32, 32_000, 128), gammas=GAMMAS))
    place = next(i for i, candidate in enumerate(ranked) if candidate.strategy == NO_SPECULATION)
    assert all(candidate.speedup_low > 1 for candidate in ranked[:place])
    assert all(candidate.speedup_low <= 1 for candidate in ranked[place + 1 :])
    assert any(candidate.speedup > 1 >= candidate.speedup_low for candidate in ranked[place + 1 :])


def test_what_does_not_fit_in_memory_is_not_ranked(deployment: Deployment) -> None:
    every = found(deployment, batch_sizes=[64, 1024])
    ranked = rank(every)
    assert {candidate.fits_in_memory for candidate in every} == {True, False}
    assert len(ranked) == sum(candidate.fits_in_memory for candidate in every)
    assert {candidate.batch_size for candidate in ranked} == {64}


def test_when_nothing_fits_the_least_need_is_named(deployment: Deployment) -> None:
    with pytest.raises(InputError, match=r"memory of one GPU: expected .*, found at least .* TB required"):
        rank(found(deployment, Workload(4096, 32_000, 128)))


def test_a_latency_limit_is_held(deployment: Deployment) -> None:
    every = found(deployment, batch_sizes=[1, 64, 128])
    ranked = rank(every, objective="throughput", max_tpot_s=0.02)
    assert 0 < len(ranked) < len(rank(every))
    assert all(candidate.tpot_s <= 0.02 for candidate in ranked)


def test_a_limit_that_nothing_holds_is_named_with_the_fastest(deployment: Deployment) -> None:
    every = found(deployment)
    with pytest.raises(InputError) as caught:
        rank(every, max_tpot_s=1e-4)
    (problem,) = caught.value.problems
    assert problem.where == "max_tpot_s"
    assert problem.found == "100 µs"
    assert f"{min(candidate.tpot_s for candidate in every) * 1e3:.1f} ms" in problem.expected


def test_the_objective_chooses_between_small_and_large_batches(deployment: Deployment) -> None:
    every = found(deployment, batch_sizes=[1, 128])
    fast, productive = rank(every)[0], rank(every, objective="throughput")[0]
    assert fast.batch_size == 1
    assert productive.batch_size == 128
    assert productive.throughput_tokens_per_s > 10 * fast.throughput_tokens_per_s
    assert productive.tpot_s > fast.tpot_s


def test_given_acceptance_replaces_the_curves(deployment: Deployment) -> None:
    poor, sure = (rank(found(deployment, acceptance_rate=rate, curves=()))[0] for rate in (0.05, 0.95))
    assert poor.strategy == NO_SPECULATION
    assert sure.strategy.gamma > 3
    assert sure.acceptance_rate == 0.95


def test_several_drafts_compete(deployment: Deployment, small_llama: TransformerConfig) -> None:
    small = Draft("model", "streaming_llm", small_llama)
    ranked = rank(candidates(deployment, [STREAMING, small], LONG, curves=published_curves()))
    assert {candidate.strategy.family for candidate in ranked} == {
        ("none", "full", None, None, None),
        ("self", "streaming_llm", None, None, None),
        ("model", "streaming_llm", "Llama-3.2-1B", None, None),
    }


def test_without_caution_candidates_are_ranked_by_what_is_expected(deployment: Deployment) -> None:
    every = found(deployment, gammas=GAMMAS)
    careful, bold = rank(every), rank(every, cautious=False)
    assert [one.tpot_s for one in bold] == sorted(one.tpot_s for one in bold)
    assert bold[0].speedup >= careful[0].speedup
    assert careful[0].speedup_low >= bold[0].speedup_low


def test_an_exact_output_makes_every_strategy_slower_and_plain_decoding_not(deployment: Deployment) -> None:
    some, exact = found(deployment), found(deployment, exact_output=True)
    assert [one.strategy for one in some] == [one.strategy for one in exact]
    assert all((a.tpot_s < b.tpot_s) == (a.strategy.gamma > 0) for a, b in zip(some, exact, strict=True))
