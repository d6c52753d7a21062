"""Fits of named parameters: they recover the truth, respect bounds, and leave undetermined parameters unchanged."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from magicdec.costmodel.calibration.fitting import bounds_of, errors_of, fit_values, rounded
from magicdec.costmodel.hardware.profile import EngineLaw
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.collectives import AllreduceLaw
from magicdec.costmodel.kernels.gemm import GemmLaw

SIZES = np.array([1.0, 10.0, 100.0, 1e3, 1e4])
START = {"latency_s": 3e-6, "rate_per_s": 1e9}
BOUNDS = {"latency_s": (0.0, 1e-3), "rate_per_s": (1e6, 1e12)}
TRUTH = {"latency_s": 8e-6, "rate_per_s": 3e9}


def seconds(values: dict[str, float]) -> np.ndarray:
    return np.asarray(values["latency_s"] + SIZES * 1e3 / values["rate_per_s"])


def fitted(measured: np.ndarray, **how: Any) -> dict[str, float]:
    return fit_values(START, BOUNDS, lambda values: np.log(seconds(values) / measured), **how)


def test_a_fit_finds_what_made_the_data() -> None:
    assert fitted(seconds(TRUTH)) == pytest.approx(TRUTH, rel=0.005)


def test_a_fit_of_noisy_data_is_near_what_made_them() -> None:
    noise = np.exp(0.03 * np.random.default_rng(0).standard_normal(SIZES.size))
    assert fitted(seconds(TRUTH) * noise) == pytest.approx(TRUTH, rel=0.1)


def test_one_disturbed_point_bends_little() -> None:
    measured = seconds(TRUTH)
    measured[1] *= 5
    assert fitted(measured) == pytest.approx(TRUTH, rel=0.15)


def test_a_fit_stays_within_the_bounds() -> None:
    found = fit_values(START, {**BOUNDS, "latency_s": (2e-6, 5e-6)}, lambda values: np.log(seconds(values) / seconds(TRUTH)))
    assert found["latency_s"] == pytest.approx(5e-6, rel=1e-3)
    assert found["latency_s"] <= 5e-6


@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_a_fit_may_start_on_a_bound(start: float) -> None:
    found = fit_values({**START, "latency_s": start}, BOUNDS, lambda values: np.log(seconds(values) / seconds(TRUTH)))
    assert found == pytest.approx(TRUTH, rel=0.01)


def test_what_the_data_cannot_tell_stays_where_it_started() -> None:
    idle = {**START, "unused": 0.4}
    bounds = {**BOUNDS, "unused": (0.0, 1.0)}
    found = fit_values(idle, bounds, lambda values: np.log(seconds(values) / seconds(TRUTH)), spread=dict.fromkeys(idle, 0.3))
    assert found["unused"] == pytest.approx(0.4, rel=1e-3)
    assert found["rate_per_s"] == pytest.approx(TRUTH["rate_per_s"], rel=0.2)


def test_a_value_e_folds_from_its_start_costs_as_much_as_a_point_that_is_off() -> None:
    """One point alone, a factor of 8 from the start: the fit goes nine tenths of the way in e-folds, or half of it."""

    def found(**how: Any) -> float:
        return fit_values({"x": 1.0}, {"x": (0.01, 100.0)}, lambda v: np.log([v["x"] / 8]), tolerance=100.0, **how)["x"]

    assert found() == pytest.approx(8, rel=0.005)
    assert np.log(found(spread={"x": 300.0})) == pytest.approx(0.9 * np.log(8), rel=0.01)
    assert np.log(found(spread={"x": 100.0})) == pytest.approx(0.5 * np.log(8), rel=0.01)


def test_each_parameter_has_a_spread_of_its_own() -> None:
    bounds = {"x": (0.01, 100.0), "y": (0.01, 100.0)}
    spread = {"x": 0.1, "y": 10.0}
    found = fit_values({"x": 1.0, "y": 1.0}, bounds, lambda v: np.log([v["x"] * v["y"] / 2]), tolerance=1.0, spread=spread)
    assert found["y"] == pytest.approx(2, rel=0.1)
    assert found["x"] == pytest.approx(1, rel=0.05)


def test_a_fit_is_the_same_every_time() -> None:
    assert fitted(seconds(TRUTH) * 1.07) == fitted(seconds(TRUTH) * 1.07)


def test_fitted_values_have_three_digits() -> None:
    assert all(value == rounded(value) for value in fitted(seconds(TRUTH) * 1.0123).values())
    assert [rounded(value) for value in (1.23456e-7, 98_765.0, 0.0)] == [1.23e-7, 98_800.0, 0.0]


def test_errors_are_those_of_ratios() -> None:
    assert errors_of(np.log([1.1, 0.8, 1.0, 1.5])) == (0.15, 0.2, 0.5)


@pytest.mark.parametrize("law", [GemmLaw, AttentionLaw, AllreduceLaw, EngineLaw])
def test_every_number_of_a_law_has_bounds_around_its_default(law: type) -> None:
    for field in fields(law):
        if not isinstance(field.default, bool):
            low, high = bounds_of(law, field.name)
            assert low <= field.default <= high, field.name
            assert 0 <= low < high
