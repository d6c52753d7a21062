"""From measured passes to a fitted profile: what an engine adds to its kernels, or all of it at once on a CPU.

The published step times were measured with the engine of MagicDec (arXiv 2408.11049).
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from ..base.errors import bad
from ..hardware.profile import Calibration, EngineLaw, Fit, HardwareProfile
from ..models.catalog import resolve_model
from ..models.transformer import TransformerConfig
from ..passes.forward import forward_cost
from ..passes.roofline import step_time
from ..speculation.drafts import Draft
from .fitting import Array, bounds_of, errors_of, fit_values, rounded

# How far parameters are believed to lie from where kernel tables or stated defaults put them, in e-folds.
EFFICIENCY_SPREAD, OVERHEAD_SPREAD = 0.1, 0.5


@dataclass(frozen=True)
class MeasuredPass:
    """A pass that ran, once or more.

    Attributes:
        model: What ran.
        batch_size, query_len, context_len, kv_budget: The pass shape.
        tensor_parallel: GPUs that shared it.
        times: How often it ran; None for a verification that was waited for (`EngineLaw.verify_wait`).
    """

    model: TransformerConfig
    batch_size: int
    query_len: int
    context_len: int
    kv_budget: float = float("inf")
    tensor_parallel: int = 1
    times: int | None = 1


@dataclass(frozen=True)
class Observation:
    """Passes that ran one after the other, and their time together. [s]"""

    passes: tuple[MeasuredPass, ...]
    measured_s: float


def predicted_s(profile: HardwareProfile, observation: Observation) -> float:
    """What the cost model says of observed passes. [s]"""
    waited = profile.calibration.engine.verify_wait
    return sum((waited if one.times is None else one.times) * _pass_s(profile, one) for one in observation.passes)


def _pass_s(profile: HardwareProfile, one: MeasuredPass) -> float:
    cost = forward_cost(
        one.model,
        batch_size=one.batch_size,
        query_len=one.query_len,
        context_len=one.context_len,
        kv_budget=one.kv_budget,
        tensor_parallel=one.tensor_parallel,
        head_sharded=profile.calibration.engine.head_sharded,
    )
    return float(step_time(cost, profile, one.model.dtype, tensor_parallel=one.tensor_parallel).total_s)


def log_ratios(profile: HardwareProfile, observations: Sequence[Observation]) -> Array:
    """Logarithms of predicted over measured."""
    return np.array([np.log(predicted_s(profile, seen) / seen.measured_s) for seen in observations])


def fit_passes(
    profile: HardwareProfile, observations: Sequence[Observation], parameters: Sequence[str], *, data: str
) -> HardwareProfile:
    """The profile with `parameters` fitted to measured passes; its other parameters stay as they are.

    Args:
        profile: Peaks, and the calibration to start from.
        observations: Measured passes, more than there are parameters.
        parameters: Names such as `engine.layer_overhead_s`.
        data: What was measured, for the file.

    Raises:
        InputError: Too few observations.
    """
    if len(observations) <= len(parameters):
        raise bad(data, "", f"more than {len(parameters)} measurements to fit as many parameters", len(observations))
    start = {name: float(getattr(*_owner(profile.calibration, name))) for name in parameters}
    bounds = {name: bounds_of(type(_owner(profile.calibration, name)[0]), name.split(".")[1]) for name in parameters}
    values = fit_values(
        start,
        bounds,
        lambda values: log_ratios(with_values(profile, values), observations),
        tolerance=0.05,
        spread={name: EFFICIENCY_SPREAD if name.endswith("memory_efficiency") else OVERHEAD_SPREAD for name in parameters},
    )
    best = with_values(profile, values)
    errors = errors_of(log_ratios(best, observations))
    fit = Fit("engine", data, tuple(parameters), len(observations), *errors, date.today().isoformat())
    kernels = tuple(known for known in best.calibration.fits if known.part != "engine")
    return replace(best, calibration=replace(best.calibration, fits=(*kernels, fit)))


def with_values(profile: HardwareProfile, values: Mapping[str, float]) -> HardwareProfile:
    """The profile with some parameters of its calibration changed, given by names such as `gemm.launch_s`."""
    calibration = profile.calibration
    for name, value in values.items():
        part, key = name.split(".")
        calibration = replace(calibration, **{part: replace(getattr(calibration, part), **{key: value})})
    return replace(profile, calibration=calibration)


def _owner(calibration: Calibration, name: str) -> tuple[Any, str]:
    part, key = name.split(".")
    return getattr(calibration, part), key


@cache
def published_rows(name: str) -> tuple[dict[str, str], ...]:
    """Rows of a file of published measurements: `magicdec_timings` or `magicdec_optimal_gamma`; sources in its README."""
    file = resources.files("magicdec.costmodel") / "published" / f"{name}.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def observations_of(row: Mapping[str, str], profile: HardwareProfile) -> dict[str, Observation]:
    """The target, verify and draft steps of one published row. A small draft runs on as many GPUs as it has KV heads."""
    target, gpus, gamma = resolve_model(row["target"]), int(row["tensor_parallel"]), int(row["gamma"])
    batch, context = int(row["batch_size"]), int(row["context_len"])
    draft = (
        Draft("model", "streaming_llm", resolve_model(row["draft_model"])) if row["draft_model"] else Draft("self", "streaming_llm")
    )
    draft_step = MeasuredPass(draft.model or target, batch, 1, context, float(row["kv_budget"]), draft.gpus(gpus))
    step = MeasuredPass(target, batch, 1, context, tensor_parallel=gpus)
    verify = replace(step, query_len=gamma + 1)
    engine = profile.calibration.engine
    drafting = [replace(draft_step, times=gamma)]
    if engine.draft_rereads_last:  # with so many sequences, one of them nearly always accepted everything
        drafting = [replace(draft_step, query_len=2), *([replace(draft_step, times=gamma - 1)] if gamma > 1 else [])]
    if engine.verify_wait:
        drafting.append(replace(verify, times=None))
    return {
        "target step": Observation((step,), float(row["measured_target_step_s"])),
        "verify step": Observation((verify,), float(row["measured_verify_step_s"])),
        "draft steps": Observation(tuple(drafting), float(row["measured_gamma_draft_step_s"])),
    }


def round_overhead_of(row: Mapping[str, str]) -> float:
    """What a published round took beyond its draft and verify steps. [s]"""
    round_s = float(row["measured_speculative_tpot_s"]) * float(row["mean_acceptance_length"])
    return round_s - float(row["measured_gamma_draft_step_s"]) - float(row["measured_verify_step_s"])


@dataclass(frozen=True)
class PublishedEngine:
    """Facts of the engine behind the published step times of a GPU, and what is fitted to them.

    Attributes:
        engine: Facts, and where the fit starts.
        free: Fitted parameters.
        attention: Parameters in which its attention kernel differs from that of the kernel tables.
        allreduce: Parameters in which its collectives, or the node's links, differ from those of the tables; where free, a start.
        other_links: The node's links are not those of the tables at all.
    """

    engine: EngineLaw
    free: tuple[str, ...]
    attention: dict[str, Any] = field(default_factory=dict)
    allreduce: dict[str, Any] = field(default_factory=dict)
    other_links: bool = False


# The A100 and L40 rows come from an older engine than the H100 rows: its layers consist of more kernels, and a softmax and a
# top-k over unsharded logits choose each token.
_OLDER = EngineLaw(layer_overhead_s=9e-5, logit_passes=12.0, head_sharded=False, draft_rereads_last=True, verify_wait=0.02)
PUBLISHED_ENGINES = {
    "a100-sxm-80gb": PublishedEngine(
        _OLDER,
        (
            "engine.layer_overhead_s",
            "engine.verify_wait",
            "attention.memory_efficiency",
            "attention.sm_bytes_per_s",
            "allreduce.two_shot_efficiency",
        ),
        attention={"min_split_group": 1, "transpose_s": 0.0, "sharpness": 8.0, "sm_bytes_per_s": 3.5e10},
        allreduce={"two_shot_efficiency": 0.3},  # PyTorch's own collectives use few thread blocks
    ),
    "h100-sxm": PublishedEngine(
        EngineLaw(),
        ("engine.layer_overhead_s", "allreduce.latency_s"),
        allreduce={"latency_s": 1e-5},  # and copy their payload first
    ),
    "l40": PublishedEngine(  # two rows; the tables are those of L40S in another host, whose links behave otherwise
        replace(_OLDER, draft_rereads_last=False, verify_wait=0.0),
        ("allreduce.peer_latency_s", "allreduce.two_shot_efficiency"),
        allreduce={
            "latency_s": 5e-6,
            "peer_latency_s": 9e-6,
            "two_shot_efficiency": 0.5,
            "pipeline_fill": 0.9,
            "shared_bytes_per_s": 1e15,
        },
        other_links=True,
    ),
}


def published_start(profile: HardwareProfile, rows: Sequence[Mapping[str, str]]) -> HardwareProfile:
    """The profile with the facts of the published engine, before anything is fitted."""
    known, kernels = PUBLISHED_ENGINES[profile.name], profile.calibration
    overhead = statistics.median(round_overhead_of(row) for row in rows)
    engine = replace(known.engine, round_overhead_s=rounded(max(overhead, 0.0)))
    table = kernels.table_attention or kernels.attention
    start = Calibration(
        kernels.gemm,
        replace(table, **known.attention),
        replace(kernels.allreduce, **known.allreduce),
        engine,
        table_attention=table if known.attention else None,
        fits=tuple(fit for fit in kernels.fits if fit.part != "allreduce" or not known.other_links),
    )
    return replace(profile, calibration=start)


def fit_published(profile: HardwareProfile, *, without: str | None = None) -> HardwareProfile:
    """The profile with what the published engine adds fitted to the published step times of its GPU; kernels from tables stay.

    Args:
        profile: With kernel laws, as `kernel_tables` fits them.
        without: A model whose passes are left out, to judge by.

    Raises:
        InputError: No published rows for this GPU.
    """
    rows = [row for row in published_rows("magicdec_timings") if row["hardware"] == profile.name]
    if not rows:
        expected = f"one of the GPUs with published step times ({', '.join(PUBLISHED_ENGINES)})"
        raise bad("--from-published", "", expected, profile.name)
    start = published_start(profile, rows)
    seen = dict.fromkeys(one for row in rows for one in observations_of(row, start).values())
    observations = [one for one in seen if one.passes[0].model.name != without]
    data = f"{len(rows)} rows of MagicDec tables 1, 3, 4, 6 (arXiv 2408.11049); round_overhead_s is their median"
    return fit_passes(start, observations, PUBLISHED_ENGINES[profile.name].free, data=data)
