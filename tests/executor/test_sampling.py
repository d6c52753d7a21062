"""Sampling: filters by hand, draws that depend only on row and position, and the distribution of rejection sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from magicdec.costmodel.base.errors import InputError
from magicdec.executor.engine.sampling import (
    ACCEPT,
    DRAFT,
    GREEDY,
    Sampler,
    Sampling,
    draw,
    logits_to_probs,
    row_seed,
    uniform,
)
from magicdec.executor.engine.verification import accept_sampled, count_accepted

CPU = torch.device("cpu")
LOGITS = torch.tensor([math.log(p) for p in (0.4, 0.3, 0.15, 0.1, 0.05)], dtype=torch.float64)


@dataclass(frozen=True)
class Answered:
    """Stub of a deferred pass with a fixed answer."""

    answer: torch.Tensor

    def greedy(self) -> torch.Tensor:
        return self.answer.argmax(-1)

    def logits(self) -> torch.Tensor:
        return self.answer


def probs(**settings: float) -> list[float]:
    found: list[float] = logits_to_probs(LOGITS, Sampling(**{"temperature": 1.0, **settings})).tolist()
    return found


def test_greedy_is_the_one_hot_case() -> None:
    assert logits_to_probs(LOGITS.expand(2, 3, -1), GREEDY).tolist() == [[[1.0, 0.0, 0.0, 0.0, 0.0]] * 3] * 2


def test_temperature_sharpens_and_flattens() -> None:
    assert probs() == pytest.approx([0.4, 0.3, 0.15, 0.1, 0.05])
    squared = [p**2 for p in (0.4, 0.3, 0.15, 0.1, 0.05)]
    assert probs(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 5),
        ({"top_p": 0.39}, 1),
        ({"top_p": 0.41}, 2),
        ({"top_p": 0.8}, 3),
        ({"min_p": 0.3}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 4, "top_p": 0.7, "min_p": 0.1}, 2),  # two of the tokens that top-k keeps reach 0.7
    ],
)
def test_filters_keep_the_most_likely_tokens_and_sum_to_one(settings: dict[str, float], kept: int) -> None:
    found = probs(**settings)
    total = sum((0.4, 0.3, 0.15, 0.1, 0.05)[:kept])
    assert found == pytest.approx([p / total if place < kept else 0.0 for place, p in enumerate((0.4, 0.3, 0.15, 0.1, 0.05))])


def test_a_temperature_near_zero_is_greedy_and_a_huge_one_is_uniform() -> None:
    assert probs(temperature=1e-300) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert probs(temperature=1e300) == pytest.approx([0.2] * 5)


def test_a_token_with_logit_minus_infinity_is_never_drawn() -> None:
    logits_V = torch.tensor([0.0, float("-inf"), 1.0])
    for sampling in (Sampling(1.0), Sampling(1.0, top_p=0.99), Sampling(1.0, min_p=0.1), Sampling(1.0, top_k=3)):
        assert logits_to_probs(logits_V, sampling)[1] == 0


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"temperature": 1.0, "min_p": 2.0}, "min_p"),
        ({"top_p": 0.9}, "temperature"),
    ],
)
def test_invalid_settings_are_refused_by_parameter_name(settings: dict[str, float], parameter: str) -> None:
    with pytest.raises(InputError) as caught:
        Sampling(**settings)
    assert [problem.where for problem in caught.value.problems] == [parameter]


def test_draws_are_uniform_and_uncorrelated_between_rows_positions_and_purposes() -> None:
    seeds_B = torch.tensor([row_seed(0, str(row)) for row in range(200)])
    numbers = torch.stack([uniform(seeds_B, torch.arange(100).expand(200, -1), purpose) for purpose in range(3)])
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    # False-alarm rate of each check below: 1e-6 over the choice of seeds; the seeds are fixed.
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-6
    for axis in range(3):
        there, shifted = numbers, numbers.roll(1, axis)
        correlation = torch.corrcoef(torch.stack([there.flatten(), shifted.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4.9 / math.sqrt(numbers.numel())


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    seeds_B, positions_BT = torch.tensor([5, -7, 5]), torch.tensor([[3, 4], [3, 4], [4, 3]])
    together = uniform(seeds_B, positions_BT, ACCEPT)
    assert together[0, 0] == together[2, 1] == uniform(torch.tensor([5]), torch.tensor([3]), ACCEPT)[0]
    assert together[0, 0] != together[1, 0]
    assert together[0, 0] != uniform(torch.tensor([5]), torch.tensor([3]), DRAFT)[0]


def test_seeds_differ_by_run_and_by_prompt() -> None:
    assert len({row_seed(seed, name) for seed in (0, 1) for name in ("a", "b", "")}) == 6
    assert row_seed(3, "a") == row_seed(3, "a")


def test_a_token_is_drawn_where_the_cumulative_weight_passes() -> None:
    weights_BV = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]]).expand(5, -1)
    numbers_B = torch.tensor([0.0, 0.2499, 0.2501, 0.9999, 1.0 - 2**-53], dtype=torch.float64)
    assert draw(weights_BV, numbers_B).tolist() == [1, 1, 3, 3, 3]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 6))
def test_one_hot_distributions_are_accepted_as_in_greedy_decoding(seed: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draft_BG = torch.randint(3, (4, gamma), generator=generator)
    target_BT = torch.randint(3, (4, gamma + 1), generator=generator)
    target_BT[0, :gamma] = draft_BG[0]
    probs_BTV = torch.nn.functional.one_hot(target_BT, 3).double()
    accepted_B, rest_BV = accept_sampled(draft_BG, None, probs_BTV, torch.rand(4, gamma, generator=generator).double())
    assert accepted_B.tolist() == count_accepted(draft_BG, target_BT).tolist()
    assert draw(rest_BV, torch.zeros(4).double()).tolist() == target_BT.gather(1, accepted_B[:, None])[:, 0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
@pytest.mark.parametrize("closeness", ["alike", "far apart", "disjoint"])
def test_the_emitted_token_follows_the_target_whatever_the_draft(closeness: str, certain: bool) -> None:
    """Chi-square over 40,000 rows, false-alarm rate 1e-6 over the choice of seeds; the seed is fixed."""
    generator = torch.Generator().manual_seed(3)
    target_V = torch.tensor([0.0, 0.5, 1.0, -1.0, -30.0, 0.3])
    draft_V = {
        "alike": target_V + 0.5 * torch.randn(6, generator=generator),
        "far apart": 3 * torch.randn(6, generator=generator),
        "disjoint": torch.tensor([-50.0, -50.0, -50.0, -50.0, 5.0, -50.0]),
    }[closeness]
    rows = 40_000
    sampler = Sampler(Sampling(1.0), rows, CPU)
    sampler.seeds_B = torch.tensor([row_seed(1, str(row)) for row in range(rows)])
    positions_BT = torch.tensor([[7, 8]]).expand(rows, -1)
    drafted_B, draft_probs_BV = sampler.propose(Answered(draft_V.expand(rows, -1)), positions_BT[:, 0])
    if certain:
        drafted_B, draft_probs_BV = torch.full_like(drafted_B, int(draft_V.argmax())), None
    probs_BGV = None if draft_probs_BV is None else draft_probs_BV[:, None]
    accepted_B, tokens_BT = sampler.verify(drafted_B[:, None], probs_BGV, Answered(target_V.expand(rows, 2, -1)), positions_BT)
    wanted_V = logits_to_probs(target_V, Sampling(1.0))
    likely = wanted_V > 1e-6
    counts_V = torch.bincount(tokens_BT[:, 0], minlength=6)
    assert int(counts_V[~likely].sum()) == 0
    assert stats.chisquare(counts_V[likely], (wanted_V[likely] / wanted_V[likely].sum() * rows)).pvalue > 1e-6
    share = float(accepted_B.double().mean())
    overlap = float(wanted_V[int(draft_V.argmax())]) if certain else float(torch.minimum(wanted_V, draft_probs_BV[0]).sum())
    assert share == pytest.approx(overlap, abs=0.02), "acceptance is the overlap of the two"
    assert closeness == "disjoint" or 0 < share < 1
    second = tokens_BT[accepted_B == 1, 1]
    if len(second) > 1000:
        counts_V = torch.bincount(second, minlength=6)
        assert stats.chisquare(counts_V[likely], wanted_V[likely] / wanted_V[likely].sum() * len(second)).pvalue > 1e-6
