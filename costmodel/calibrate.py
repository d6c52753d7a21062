"""From measured step times to a fitted profile: a least-squares fit of a few parameters, with its residuals."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from costmodel.errors import bad
from costmodel.forward import Array, forward_cost
from costmodel.hardware import Calibration, Fit, HardwareProfile
from costmodel.roofline import step_time
from costmodel.transformer import TransformerConfig, resolve_model

# What may be fitted: where it starts, and the physical range it stays in.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "memory_efficiency": (0.8, 0.2, 1.0),
    "attention_memory_efficiency": (0.8, 0.2, 1.0),
    "compute_efficiency": (0.6, 0.05, 1.0),
    "attention_compute_efficiency": (0.5, 0.02, 1.0),
    "overlap": (0.6, 0.0, 1.0),
    "layer_overhead_s": (5e-5, 0.0, 1e-2),
    "step_overhead_s": (1e-4, 0.0, 1e-1),
    "allreduce_latency_s": (3e-5, 0.0, 1e-3),
    "interconnect_efficiency": (0.8, 0.2, 1.0),
    "two_shot_latency_factor": (1.4, 1.0, 3.0),
}


@dataclass(frozen=True)
class Observation:
    """One measured pass.

    Attributes:
        model: What ran.
        batch_size, query_len, context_len, kv_budget: The pass shape.
        measured_s: Its time. [s]
        tensor_parallel: GPUs that shared it.
    """

    model: TransformerConfig
    batch_size: int
    query_len: int
    context_len: int
    measured_s: float
    kv_budget: float = float("inf")
    tensor_parallel: int = 1


def predicted_s(profile: HardwareProfile, observation: Observation) -> float:
    """What the cost model says of an observed pass. [s]"""
    cost = forward_cost(
        observation.model,
        batch_size=observation.batch_size,
        query_len=observation.query_len,
        context_len=observation.context_len,
        kv_budget=observation.kv_budget,
        tensor_parallel=observation.tensor_parallel,
        head_sharded=profile.calibration.head_sharded,
    )
    priced = step_time(cost, profile, observation.model.dtype, tensor_parallel=observation.tensor_parallel)
    return float(priced.total_s)


def fit_calibration(
    profile: HardwareProfile,
    observations: Sequence[Observation],
    parameters: Sequence[str],
    *,
    data: str,
) -> HardwareProfile:
    """The profile with `parameters` fitted to measured passes; its other parameters stay as they are.

    Minimises the relative error, robustly, so that a disturbed measurement does not bend the rest.

    Args:
        profile: Peaks, and the calibration to start from.
        observations: Measured passes, more than there are parameters.
        parameters: Names out of `BOUNDS`.
        data: What was measured, for the file.

    Raises:
        InputError: Too few observations.
    """
    if len(observations) <= len(parameters):
        raise bad(data, "", f"more than {len(parameters)} measurements to fit as many parameters", len(observations))
    start, low, high = (np.array([BOUNDS[name][i] for name in parameters]) for i in range(3))

    def with_values(values: Array) -> HardwareProfile:
        fitted: dict[str, Any] = dict(zip(parameters, map(float, values), strict=True))
        return replace(profile, calibration=replace(profile.calibration, **fitted))

    def residuals(values: Array) -> Array:
        candidate = with_values(values)
        return np.array([np.log(predicted_s(candidate, seen) / seen.measured_s) for seen in observations])

    solution = least_squares(residuals, start, bounds=(low, high), x_scale=start, loss="soft_l1", f_scale=0.05)
    errors = np.abs(np.expm1(residuals(solution.x)))
    best = with_values(solution.x)
    fit = Fit(
        data=data,
        fitted=tuple(parameters),
        num_points=len(observations),
        median_error=_round(np.median(errors)),
        mean_error=_round(errors.mean()),
        worst_error=_round(errors.max()),
        date=date.today().isoformat(),
    )
    rounded: dict[str, Any] = {name: _round(getattr(best.calibration, name)) for name in parameters}
    return replace(best, calibration=replace(best.calibration, **rounded, fit=fit))


@cache
def published_timings() -> tuple[Mapping[str, str], ...]:
    """The step times of arXiv 2408.11049, a row a scenario, as text."""
    file = resources.files("costmodel") / "published" / "magicdec_timings.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def observations_of(row: Mapping[str, str]) -> list[Observation]:
    """The target, verify and draft step of one published row. A small draft runs on as many GPUs as it has KV heads."""
    target, gpus = resolve_model(row["target"]), int(row["tensor_parallel"])
    batch, context, gamma = int(row["batch_size"]), int(row["context_len"]), int(row["gamma"])
    drafter = resolve_model(row["draft_model"]) if row["draft_kind"] == "model" else target
    drafter_gpus = min(gpus, drafter.num_kv_heads) if row["draft_kind"] == "model" else gpus
    draft_s = float(row["measured_gamma_draft_step_s"]) / gamma
    return [
        Observation(target, batch, 1, context, float(row["measured_target_step_s"]), tensor_parallel=gpus),
        Observation(target, batch, gamma + 1, context, float(row["measured_verify_step_s"]), tensor_parallel=gpus),
        Observation(drafter, batch, 1, context, draft_s, float(row["kv_budget"]), drafter_gpus),
    ]


def round_overhead_of(row: Mapping[str, str]) -> float:
    """What a published round took beyond its draft and verify steps. [s]"""
    round_s = float(row["measured_speculative_tpot_s"]) * float(row["mean_acceptance_length"])
    return round_s - float(row["measured_gamma_draft_step_s"]) - float(row["measured_verify_step_s"])


def fit_published(profile: HardwareProfile) -> HardwareProfile:
    """The profile fitted to the published step times of its GPU.

    Rows of one model on one degree of parallelism cannot tell reading weights, launching kernels and all-reduce latency
    apart, so of these only the last is fitted.

    Raises:
        InputError: No published rows for this GPU.
    """
    rows = [row for row in published_timings() if row["hardware"] == profile.name]
    if not rows:
        known = ", ".join(sorted({row["hardware"] for row in published_timings()}))
        raise bad("--from-published", "", f"one of the GPUs with published step times ({known})", profile.name)
    observations = list({seen: None for row in rows for seen in observations_of(row)})
    overhead = statistics.median(round_overhead_of(row) for row in rows)
    start = replace(Calibration(), head_sharded=False, round_overhead_s=_round(max(overhead, 0.0)))
    parameters = (
        "attention_memory_efficiency",
        "interconnect_efficiency",
        "allreduce_latency_s",
        "two_shot_latency_factor",
        "overlap",
    )
    data = f"{len(rows)} rows of MagicDec tables 1, 3, 4, 6 (arXiv 2408.11049); round_overhead_s is their median"
    return fit_calibration(replace(profile, calibration=start), observations, parameters, data=data)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
