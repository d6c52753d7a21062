from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.speculation.acceptance import mean_acceptance_length
from magicdec.costmodel.speculation.rounds import Round

seconds = st.floats(1e-6, 1.0)


def round_of(**changes: Any) -> Round:
    """Milliseconds that add up in the head: 4 x (1 + 0.5) + 12 + 2 = 20 for 4 tokens, against 10 a token."""
    parts: dict[str, Any] = {
        "gamma": 4,
        "mean_acceptance_length": 4.0,
        "target_step_s": 0.010,
        "draft_step_s": 0.001,
        "verify_step_s": 0.012,
        "select_step_s": 0.0005,
        "first_draft_s": 0.0,
        "overhead_s": 0.002,
    }
    return Round(**{name: np.asarray(value, np.float64) for name, value in {**parts, **changes}.items()})


def test_a_round_is_its_draft_steps_its_verification_and_its_overhead() -> None:
    r = round_of()
    assert r.gamma_draft_step_s == pytest.approx(0.006)
    assert r.round_s == pytest.approx(0.020)
    assert r.speculative_tpot_s == pytest.approx(0.005)
    assert r.speedup == pytest.approx(2.0)
    assert r.draft_cost == pytest.approx(0.15)
    assert r.verify_cost == pytest.approx(1.2)


def test_a_published_round_is_reproduced() -> None:
    """Table 6: Llama-3.1-8B on 8 H100, 128 sequences of 32,000 tokens, SnapKV 2049, gamma 6."""
    r = round_of(gamma=6, mean_acceptance_length=5.07, target_step_s=0.02607, draft_step_s=0.03333 / 6, verify_step_s=0.0316)
    assert r.gamma_draft_step_s == pytest.approx(0.03333 + 6 * 0.0005)
    without_selection = round_of(
        gamma=6,
        mean_acceptance_length=5.07,
        target_step_s=0.02607,
        draft_step_s=0.03333 / 6,
        verify_step_s=0.0316,
        select_step_s=0,
        overhead_s=0,
    )
    assert without_selection.speedup == pytest.approx(2.01, rel=0.02)


@given(seconds, seconds, seconds, seconds, seconds)
def test_drafting_nothing_is_autoregressive_decoding(
    target: float, draft: float, verify: float, select: float, overhead: float
) -> None:
    r = round_of(
        gamma=0,
        mean_acceptance_length=1,
        target_step_s=target,
        draft_step_s=draft,
        verify_step_s=verify,
        select_step_s=select,
        overhead_s=overhead,
    )
    assert r.speedup == 1
    assert r.round_s == r.speculative_tpot_s == target


def test_rounds_broadcast() -> None:
    r = round_of(gamma=[[0], [1], [4]], verify_step_s=[0.012, 0.024], mean_acceptance_length=[[1.0], [1.8], [4.0]])
    assert r.speedup.shape == (3, 2)
    assert r.speedup[0].tolist() == [1, 1]
    assert r.speedup[2, 0] == round_of().speedup


def test_the_first_draft_step_of_a_round_may_take_longer() -> None:
    r = round_of(first_draft_s=0.004)
    assert r.gamma_draft_step_s == pytest.approx(0.010)
    assert r.round_s == pytest.approx(0.024)
    assert round_of(gamma=0, first_draft_s=0.004, mean_acceptance_length=1).round_s == 0.010


@given(st.integers(1, 10), seconds, st.floats(0.1, 12), st.floats(0.5, 3))
def test_the_minimum_rate_yields_exactly_the_wanted_speedup(gamma: int, target: float, ratio: float, speedup: float) -> None:
    """Of a round that takes `ratio` autoregressive steps, all of it verification."""
    r = round_of(gamma=gamma, target_step_s=target, verify_step_s=ratio * target, draft_step_s=0, select_step_s=0, overhead_s=0)
    rate = float(r.minimum_acceptance_rate(speedup))
    if np.isnan(rate):
        assert float(mean_acceptance_length(gamma, 1.0)) < speedup * ratio * (1 + 1e-12)
        return
    reached = float(mean_acceptance_length(gamma, rate)) / ratio
    if rate == 0:
        assert reached >= speedup * (1 - 1e-12)
    else:
        assert 0 < rate <= 1
        assert reached == pytest.approx(speedup, rel=1e-6)


@pytest.mark.parametrize(("round_s", "rate"), [(0.0099, 0.0), (0.010, 0.0), (0.015, 0.5), (0.01999, 0.999), (0.0201, np.nan)])
def test_the_minimum_rate_of_one_draft_token_is_what_the_round_costs_beyond_a_step(round_s: float, rate: float) -> None:
    r = round_of(gamma=1, verify_step_s=round_s, draft_step_s=0, select_step_s=0, overhead_s=0)
    assert float(r.minimum_acceptance_rate()) == pytest.approx(rate, abs=1e-6, nan_ok=True)


def test_minimum_rates_broadcast_and_autoregressive_decoding_needs_none() -> None:
    r = round_of(gamma=[[0], [1], [4]], verify_step_s=[0.012, 0.024], mean_acceptance_length=[[1.0], [1.8], [4.0]])
    rates = r.minimum_acceptance_rate()
    assert rates.shape == (3, 2)
    assert rates[0].tolist() == [0, 0]
    assert rates[2, 0] == float(round_of().minimum_acceptance_rate())
    assert np.isnan(rates[1, 1]), "one token cannot pay for two steps and a half"
