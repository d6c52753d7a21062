"""Engine fits: they recover known parameters, and reproduce the shipped calibrations from the published rows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.calibration.engine_fit import (
    PUBLISHED_ENGINES,
    MeasuredPass,
    Observation,
    fit_passes,
    fit_published,
    observations_of,
    predicted_s,
    published_rows,
    published_start,
    round_overhead_of,
    with_values,
)
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import Calibration, HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.forward import forward_cost
from magicdec.costmodel.passes.roofline import step_time

TRUTH = {
    "gemm.memory_efficiency": 0.71,
    "gemm.compute_efficiency": 0.43,
    "attention.memory_efficiency": 0.62,
    "engine.layer_overhead_s": 2.3e-5,
}
FITTED_GPUS = ("a100-sxm-80gb", "h100-sxm", "l40")


def value_of(profile: HardwareProfile, name: str) -> Any:
    part, key = name.split(".")
    return getattr(getattr(profile.calibration, part), key)


def measured_on(truth: HardwareProfile, model: TransformerConfig, noise: float) -> list[Observation]:
    """Times of passes on hardware with known parameters; two model sizes separate weights from overhead."""
    random = np.random.default_rng(11049)
    models = (model, replace(model, d_model=512, d_ff=1024, num_heads=4, num_kv_heads=4))
    shapes = [(m, b, q, s) for m in models for b in (1, 64) for q in (1, 4, 512) for s in (100, 4000, 32_000)]
    passes = [Observation((MeasuredPass(*shape),), 1.0) for shape in shapes]
    return [replace(seen, measured_s=predicted_s(truth, seen) * float(np.exp(noise * random.standard_normal()))) for seen in passes]


@pytest.fixture(scope="module")
def truth(bare: HardwareProfile) -> HardwareProfile:
    return with_values(bare, TRUTH)


def test_an_observation_is_predicted_as_its_passes_one_after_the_other(a100: HardwareProfile, llama: TransformerConfig) -> None:
    decode, verify = MeasuredPass(llama, 4, 1, 1000, tensor_parallel=2), MeasuredPass(llama, 4, 3, 1000, 512.0)
    cost = forward_cost(llama, batch_size=4, query_len=1, context_len=1000, tensor_parallel=2, head_sharded=False)
    alone = float(step_time(cost, a100, "bfloat16", tensor_parallel=2).total_s)
    assert not a100.calibration.engine.head_sharded
    assert predicted_s(a100, Observation((decode,), 1.0)) == alone
    one, other = (predicted_s(a100, Observation((seen,), 1.0)) for seen in (decode, verify))
    both = Observation((replace(decode, times=3), verify), 1.0)
    assert predicted_s(a100, both) == pytest.approx(3 * one + other, rel=1e-12)
    waited = Observation((decode, replace(verify, times=None)), 1.0)
    wait = a100.calibration.engine.verify_wait
    assert wait > 0
    assert predicted_s(a100, waited) == pytest.approx(one + wait * other, rel=1e-12)


def test_a_fit_recovers_the_parameters_of_the_machine(
    bare: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig
) -> None:
    fitted = fit_passes(bare, measured_on(truth, llama, 0.01), tuple(TRUTH), data="made up")
    for name, value in TRUTH.items():
        assert value_of(fitted, name) == pytest.approx(value, rel=0.05), name
        assert value != pytest.approx(value_of(bare, name), rel=0.05), "a fit that stays where it starts would pass"
    fit = fitted.calibration.fit_of("engine")
    assert fit is not None
    assert fit.num_points == 36
    assert fit.fitted == tuple(TRUTH)
    assert 0.002 < fit.median_error <= fit.worst_error < 0.05
    assert fit.data == "made up"


def test_one_disturbed_measurement_does_not_bend_the_fit(
    bare: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig
) -> None:
    seen = measured_on(truth, llama, 0.0)
    seen[4] = replace(seen[4], measured_s=5 * seen[4].measured_s)
    fitted = fit_passes(bare, seen, tuple(TRUTH), data="made up")
    for name, value in TRUTH.items():
        assert value_of(fitted, name) == pytest.approx(value, rel=0.05), name
    fit = fitted.calibration.fit_of("engine")
    assert fit is not None
    assert fit.worst_error > 0.5


def test_parameters_that_the_passes_cannot_tell_stay_where_they_started(
    bare: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig
) -> None:
    """All-reduces, where there is one GPU."""
    idle = ("allreduce.latency_s", "allreduce.two_shot_efficiency")
    fitted = fit_passes(bare, measured_on(truth, llama, 0.01), (*TRUTH, *idle), data="made up")
    for name in idle:
        assert value_of(fitted, name) == pytest.approx(value_of(bare, name), rel=1e-3), name
    assert value_of(fitted, "gemm.memory_efficiency") == pytest.approx(0.71, rel=0.05)


def test_what_is_not_fitted_stays_as_it_is(a100: HardwareProfile, llama: TransformerConfig) -> None:
    seen = measured_on(with_values(a100, {"gemm.memory_efficiency": 0.6}), llama, 0.0)
    fitted = fit_passes(a100, seen, ("gemm.memory_efficiency",), data="made up")
    found = value_of(fitted, "gemm.memory_efficiency")
    assert found == pytest.approx(0.6, rel=0.03)
    back = with_values(fitted, {"gemm.memory_efficiency": value_of(a100, "gemm.memory_efficiency")})
    assert replace(back, calibration=replace(back.calibration, fits=a100.calibration.fits)) == a100
    kept = [fit for fit in a100.calibration.fits if fit.part != "engine"]
    assert [fit for fit in fitted.calibration.fits if fit.part != "engine"] == kept
    assert [fit.data for fit in fitted.calibration.fits if fit.part == "engine"] == ["made up"]


def test_too_few_observations_are_refused(bare: HardwareProfile, truth: HardwareProfile, llama: TransformerConfig) -> None:
    seen = measured_on(truth, llama, 0.0)
    with pytest.raises(InputError, match=r"made up: expected more than 4 measurements, .*found 4"):
        fit_passes(bare, seen[:4], tuple(TRUTH), data="made up")


# The published rows


def rows_of(gpu: str) -> list[dict[str, str]]:
    return [row for row in published_rows("magicdec_timings") if row["hardware"] == gpu]


@cache
def refitted(gpu: str, without: str | None = None) -> HardwareProfile:
    return fit_published(resolve_profile(gpu), without=without)


def errors_of_rows(profile: HardwareProfile, of_model: str | None = None) -> dict[str, np.ndarray]:
    """Relative errors of the published steps of a GPU, by step; where a model is given, of the passes it leads."""
    errors: dict[str, list[float]] = {"target step": [], "verify step": [], "draft steps": []}
    for row in rows_of(profile.name):
        for step, seen in observations_of(row, profile).items():
            if of_model is None or seen.passes[0].model.name == of_model:
                errors[step].append(predicted_s(profile, seen) / seen.measured_s - 1)
    return {step: np.abs(values) for step, values in errors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_the_shipped_calibration_is_the_published_fit_of_its_own_kernels(gpu: str) -> None:
    shipped, again = resolve_profile(gpu).calibration, refitted(gpu).calibration
    for part in ("gemm", "attention", "allreduce", "engine", "table_attention"):
        assert getattr(again, part) == getattr(shipped, part), part
    assert [replace(fit, date="") for fit in again.fits] == [replace(fit, date="") for fit in shipped.fits]


@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_a_fit_does_not_depend_on_the_one_before(gpu: str) -> None:
    """A fit starts from kernel tables and known facts, not from the previous fit."""
    shipped = resolve_profile(gpu)
    moved = with_values(shipped, {name: 0.9 * value_of(shipped, name) for name in PUBLISHED_ENGINES[gpu].free})
    starts = [published_start(profile, rows_of(gpu)).calibration for profile in (shipped, moved)]
    assert starts[0] == starts[1]


@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_the_published_steps_are_met_in_sample(gpu: str) -> None:
    errors = errors_of_rows(refitted(gpu))
    assert {step: len(found) for step, found in errors.items()} == dict.fromkeys(errors, len(rows_of(gpu)))
    assert errors["target step"].mean() <= 0.03
    assert errors["verify step"].mean() <= 0.03
    assert errors["draft steps"].mean() <= 0.05


@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_the_errors_that_are_stated_are_those_of_the_fit(gpu: str) -> None:
    profile = refitted(gpu)
    seen = dict.fromkeys(one for row in rows_of(gpu) for one in observations_of(row, profile).values())
    errors = np.array([abs(predicted_s(profile, one) / one.measured_s - 1) for one in seen])
    fit = profile.calibration.fit_of("engine")
    assert fit is not None
    assert fit.num_points == len(errors) > len(fit.fitted)
    assert fit.mean_error == pytest.approx(errors.mean(), rel=0.01)
    assert fit.median_error == pytest.approx(np.median(errors), rel=0.01)
    assert fit.worst_error == pytest.approx(errors.max(), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["TinyLlama-1.1B", "Llama-2-7B-32K"])
def test_a_model_that_was_left_out_of_the_fit_is_met_all_the_same(model: str) -> None:
    left_out = refitted("a100-sxm-80gb", model)
    fit, whole = (profile.calibration.fit_of("engine") for profile in (left_out, refitted("a100-sxm-80gb")))
    assert fit is not None
    assert whole is not None
    assert fit.num_points < whole.num_points
    errors = np.concatenate(list(errors_of_rows(left_out, model).values()))
    assert len(errors) >= 17
    assert errors.mean() <= 0.06


def test_the_h100_is_met_by_the_kernels_and_the_engine_it_starts_from() -> None:
    """Kernel tables and a default layer overhead; no fit to whole passes."""
    start = published_start(resolve_profile("h100-sxm"), rows_of("h100-sxm"))
    errors = errors_of_rows(start)
    assert max(found.mean() for found in errors.values()) <= 0.06


def test_fitted_parameters_stay_off_their_bounds_and_near_their_start() -> None:
    for gpu, known in PUBLISHED_ENGINES.items():
        start, fitted = published_start(resolve_profile(gpu), rows_of(gpu)), refitted(gpu)
        for name in known.free:
            moved = np.log(value_of(fitted, name) / value_of(start, name))
            assert abs(moved) < 1.5, (gpu, name, moved)


def test_a_gpu_without_published_times_is_refused(h200: HardwareProfile) -> None:
    with pytest.raises(InputError, match=r"profile: .*a100-sxm-80gb, h100-sxm, l40.*found h200-sxm"):
        fit_published(h200)


@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_kernels_from_tables_stay_but_where_the_engine_is_said_to_run_another(gpu: str) -> None:
    known, shipped, start = PUBLISHED_ENGINES[gpu], resolve_profile(gpu), published_start(resolve_profile(gpu), rows_of(gpu))
    assert start.calibration.gemm == shipped.calibration.gemm
    table = shipped.calibration.table_attention or shipped.calibration.attention
    assert start.calibration.attention == replace(table, **known.attention)
    assert start.calibration.allreduce == replace(shipped.calibration.allreduce, **known.allreduce)
    assert start.calibration.table_attention == (table if known.attention else None)
    assert published_start(start, rows_of(gpu)).calibration == start.calibration


def small_row() -> dict[str, str]:
    return next(row for row in rows_of("a100-sxm-80gb") if row["draft_kind"] == "model" and row["context_len"] == "8000")


def test_a_published_row_holds_three_observations(a100: HardwareProfile) -> None:
    seen = observations_of(small_row(), a100)
    (target,), (verify,), draft = (seen[step].passes for step in ("target step", "verify step", "draft steps"))
    assert (target.query_len, verify.query_len) == (1, 3)
    assert target.model.name == verify.model.name == "Llama-2-7B-32K"
    assert {one.model.name for one in draft if one.times} == {"TinyLlama-1.1B"}
    assert [(one.times, one.query_len) for one in draft] == [(1, 2), (1, 1), (None, 3)], "one reread, and a verification waited for"
    assert (target.tensor_parallel, draft[0].tensor_parallel) == (8, 4)
    assert (target.kv_budget, draft[0].kv_budget) == (float("inf"), 512)
    assert [one.measured_s for one in seen.values()] == [0.01653, 0.0184, 0.00861]


def test_an_engine_that_rereads_nothing_drafts_gamma_times(h200: HardwareProfile) -> None:
    row = {**small_row(), "gamma": "5"}
    (draft,) = observations_of(row, h200)["draft steps"].passes
    assert (draft.times, draft.query_len) == (5, 1)


def test_a_single_draft_step_may_be_the_one_that_rereads(a100: HardwareProfile) -> None:
    draft = observations_of({**small_row(), "gamma": "1"}, a100)["draft steps"].passes
    assert [(one.times, one.query_len) for one in draft if one.model.name == "TinyLlama-1.1B"] == [(1, 2)]


def test_the_overhead_of_a_published_round_is_what_its_passes_leave() -> None:
    assert round_overhead_of(small_row()) == pytest.approx(0.01302 * 2.18 - 0.00861 - 0.0184)


@pytest.mark.parametrize("gpu", FITTED_GPUS)
def test_the_shipped_round_overhead_is_the_median_of_the_rows(gpu: str) -> None:
    overheads = [round_overhead_of(row) for row in rows_of(gpu)]
    assert resolve_profile(gpu).calibration.engine.round_overhead_s == pytest.approx(max(np.median(overheads), 0), rel=0.005)


def test_every_published_model_and_gpu_is_known() -> None:
    for name in ("magicdec_timings", "magicdec_optimal_gamma"):
        for row in published_rows(name):
            resolve_model(row["target"])
            assert not row["draft_model"] or resolve_model(row["draft_model"])
            assert resolve_profile(row["hardware"]).calibration != Calibration()
