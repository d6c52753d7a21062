from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from costmodel.calibrate import (
    BOUNDS,
    Observation,
    fit_calibration,
    fit_published,
    observations_of,
    predicted_s,
    published_timings,
    round_overhead_of,
)
from costmodel.errors import InputError
from costmodel.hardware import Calibration, HardwareProfile, resolve_profile
from costmodel.transformer import TransformerConfig

TRUTH = {"memory_efficiency": 0.71, "attention_memory_efficiency": 0.62, "compute_efficiency": 0.43, "layer_overhead_s": 2.3e-5}


def measured_on(truth: HardwareProfile, model: TransformerConfig, noise: float) -> list[Observation]:
    """Passes as a machine with known efficiencies would time them; of two sizes, to tell weights from overhead."""
    random = np.random.default_rng(11049)
    models = (model, replace(model, d_model=512, d_ff=1024, num_heads=4, num_kv_heads=4))
    shapes = [(m, b, q, s) for m in models for b in (1, 8, 64) for q in (1, 4, 512) for s in (100, 4000, 32_000)]
    passes = [Observation(*shape, 1.0) for shape in shapes]
    return [replace(seen, measured_s=predicted_s(truth, seen) * float(np.exp(noise * random.standard_normal()))) for seen in passes]


@pytest.fixture(scope="module")
def truth(h200: HardwareProfile) -> HardwareProfile:
    return replace(h200, calibration=replace(h200.calibration, **TRUTH))  # type: ignore[arg-type]


def test_a_fit_recovers_the_parameters_of_the_machine(
    h200: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig
) -> None:
    fitted = fit_calibration(h200, measured_on(truth, llama, 0.01), tuple(TRUTH), data="made up")
    for name, value in TRUTH.items():
        assert getattr(fitted.calibration, name) == pytest.approx(value, rel=0.05), name
        assert value != pytest.approx(BOUNDS[name][0], rel=0.05), "a fit that stays where it starts would pass"
    fit = fitted.calibration.fit
    assert fit is not None
    assert fit.num_points == 54
    assert fit.fitted == tuple(TRUTH)
    assert 0.002 < fit.median_error <= fit.worst_error < 0.05
    assert fit.data == "made up"


def test_one_disturbed_measurement_does_not_bend_the_fit(
    h200: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig
) -> None:
    seen = measured_on(truth, llama, 0.0)
    seen[4] = replace(seen[4], measured_s=5 * seen[4].measured_s)
    fitted = fit_calibration(h200, seen, tuple(TRUTH), data="made up")
    for name, value in TRUTH.items():
        assert getattr(fitted.calibration, name) == pytest.approx(value, rel=0.03), name
    assert fitted.calibration.fit is not None
    assert fitted.calibration.fit.worst_error > 0.5


def test_what_is_not_fitted_stays_as_it_is(h200: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig) -> None:
    start = replace(h200, calibration=replace(h200.calibration, overlap=0.123, round_overhead_s=0.5))
    fitted = fit_calibration(start, measured_on(truth, llama, 0.0), ("memory_efficiency",), data="made up")
    expected = replace(start.calibration, memory_efficiency=fitted.calibration.memory_efficiency, fit=fitted.calibration.fit)
    assert fitted.calibration == expected
    assert replace(fitted, calibration=start.calibration) == start


def test_too_few_observations_are_refused(h200: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig) -> None:
    seen = measured_on(truth, llama, 0.0)
    with pytest.raises(InputError, match=r"made up: expected more than 4 measurements .*, found 4"):
        fit_calibration(h200, seen[:4], tuple(TRUTH), data="made up")


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm", "l40"])
def test_the_shipped_calibration_is_the_published_fit(name: str) -> None:
    shipped = resolve_profile(name)
    bare = replace(shipped, calibration=Calibration())
    again, before = (asdict(profile.calibration) for profile in (fit_published(bare), shipped))
    for fitted in (again, before):
        fitted["fit"].pop("date")
    assert again == before


def test_a_gpu_without_published_times_is_refused(h200: HardwareProfile) -> None:
    with pytest.raises(InputError, match=r"--from-published: .*a100-sxm-80gb, h100-sxm, l40.*found h200-sxm"):
        fit_published(h200)


def test_a_published_row_holds_three_passes() -> None:
    row = next(row for row in published_timings() if row["draft_kind"] == "model" and row["context_len"] == "8000")
    target, verify, draft = observations_of(row)
    assert (target.query_len, verify.query_len, draft.query_len) == (1, 3, 1)
    assert (target.model.name, draft.model.name) == ("Llama-2-7B-32K", "TinyLlama-1.1B")
    assert (target.tensor_parallel, draft.tensor_parallel) == (8, 4)
    assert (target.kv_budget, draft.kv_budget) == (float("inf"), 512)
    assert draft.measured_s == pytest.approx(0.00861 / 2)
    assert (target.measured_s, verify.measured_s) == (0.01653, 0.0184)


def test_the_overhead_of_a_published_round_is_what_its_passes_leave() -> None:
    row = next(row for row in published_timings() if row["draft_kind"] == "model" and row["context_len"] == "8000")
    assert round_overhead_of(row) == pytest.approx(0.01302 * 2.18 - 0.00861 - 0.0184)
