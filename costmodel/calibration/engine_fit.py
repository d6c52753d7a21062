"""Profiles fitted to the times of whole passes: engine overheads on a GPU, or all parameters on a CPU.

The published step times were measured with the engine of MagicDec (arXiv 2408.11049).
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..base.errors import bad
from ..hardware.profile import Calibration, EngineLaw, Fit, HardwareProfile
from ..models.catalog import resolve_model
from ..models.transformer import TransformerConfig, model_kind
from ..passes.forward import Array, forward_cost
from ..passes.roofline import step_time
from ..speculation.drafts import Draft
from .fitting import bounds_of, errors_of, fit_values, rounded, with_parameters

# Prior width of parameters around the values from kernel tables or defaults, in units of log.
EFFICIENCY_SPREAD, OVERHEAD_SPREAD = 0.1, 0.5

PUBLISHED_ENGINE = "the engine of the paper"
SIXTEEN_BITS = ("bfloat16", "float16")  # priced alike


@dataclass(frozen=True)
class MeasuredPass:
    """A forward pass that was measured.

    Attributes:
        model: The model.
        batch_size, query_len, context_len, kv_budget: Arguments of `forward_cost`.
        tensor_parallel: GPUs that shared the pass.
        times: Number of repetitions; None for the wait after a verification (`EngineLaw.verify_wait`).
        cold: As in `step_time`.
    """

    model: TransformerConfig
    batch_size: int
    query_len: int
    context_len: int
    kv_budget: float = float("inf")
    tensor_parallel: int = 1
    times: int | None = 1
    cold: bool = True


@dataclass(frozen=True)
class Observation:
    """Passes that ran one after the other, and their total time.

    Attributes:
        passes: The passes.
        measured_s: Total time. [s]
    """

    passes: tuple[MeasuredPass, ...]
    measured_s: float


def predicted_s(profile: HardwareProfile, observation: Observation) -> float:
    """Predict the total time of an observation. [s]"""
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
    return float(step_time(cost, profile, one.model.dtype, tensor_parallel=one.tensor_parallel, cold=one.cold).total_s)


def log_ratios(profile: HardwareProfile, observations: Sequence[Observation]) -> Array:
    """Return log(predicted / measured) of each observation."""
    return np.array([np.log(predicted_s(profile, seen) / seen.measured_s) for seen in observations])


def fit_passes(
    profile: HardwareProfile, observations: Sequence[Observation], parameters: Sequence[str], *, data: str, engine: str = ""
) -> HardwareProfile:
    """Fit some parameters of a profile to measured passes; all others stay unchanged.

    Args:
        profile: The profile to start from.
        observations: Measured passes; more of them than parameters.
        parameters: Names such as `engine.layer_overhead_s`.
        data: Description of the measurements, for the profile file.
        engine: What ran them.

    Raises:
        InputError: Too few observations.
    """
    if len(observations) <= len(parameters):
        raise bad(data, "", f"more than {len(parameters)} measurements, to fit {len(parameters)} parameters", len(observations))
    start = {name: float(getattr(*_owner(profile.calibration, name))) for name in parameters}
    bounds = {name: _bounds(profile.calibration, name) for name in parameters}
    values = fit_values(
        start,
        bounds,
        lambda values: log_ratios(with_values(profile, values), observations),
        tolerance=0.05,
        spread={name: EFFICIENCY_SPREAD if name.endswith("memory_efficiency") else OVERHEAD_SPREAD for name in parameters},
    )
    best = with_values(profile, values)
    errors = errors_of(log_ratios(best, observations))
    models = [one.model for seen in observations for one in seen.passes]
    dtypes = {dtype for model in models for dtype in (SIXTEEN_BITS if model.bytes_per_element == 2 else (model.dtype,))}
    fit = Fit(
        "engine",
        data,
        tuple(parameters),
        len(observations),
        *errors,
        date.today().isoformat(),
        engine=engine,
        model_kinds=tuple(sorted({model_kind(model) for model in models})),
        weight_dtypes=tuple(sorted(dtypes)),
        parallel=(max(one.tensor_parallel for seen in observations for one in seen.passes),),
    )
    kernels = tuple(known for known in best.calibration.fits if known.part != "engine")
    return replace(best, calibration=replace(best.calibration, fits=(*kernels, fit)))


def with_values(profile: HardwareProfile, values: Mapping[str, float]) -> HardwareProfile:
    """Return a profile with some calibration parameters changed; names are like `gemm.launch_s`."""
    calibration = profile.calibration
    for name, value in values.items():
        part, key = name.split(".")
        calibration = replace(calibration, **{part: with_parameters(getattr(calibration, part), {key: value})})
    return replace(profile, calibration=calibration)


def _bounds(calibration: Calibration, name: str) -> tuple[float, float]:
    """Physical range of a parameter with a name such as `gemm.launch_s`."""
    law, key = _owner(calibration, name)
    law_type: type = type(law)
    return bounds_of(law_type, key)


def _owner(calibration: Calibration, name: str) -> tuple[object, str]:
    """Split a name such as `gemm.launch_s` into the law and the field."""
    part, key = name.split(".")
    return getattr(calibration, part), key


@cache
def published_rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a file with published measurements.

    Args:
        name: `magicdec_timings` or `magicdec_optimal_gamma`; sources are in published/README.md.
    """
    file = Path(__file__).parents[1] / "published" / f"{name}.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def observations_of(row: Mapping[str, str], profile: HardwareProfile) -> dict[str, Observation]:
    """Return the target step, verification and draft steps of one published row. A small draft uses one GPU per KV head.

    Args:
        row: A row of `magicdec_timings`.
        profile: The profile whose engine law says how draft steps run.
    """
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
    if engine.draft_rereads_last:  # in large batches, nearly always some sequence accepted all draft tokens
        drafting = [replace(draft_step, query_len=2), *([replace(draft_step, times=gamma - 1)] if gamma > 1 else [])]
    if engine.verify_wait:
        drafting.append(replace(verify, times=None))
    return {
        "target step": Observation((step,), float(row["measured_target_step_s"])),
        "verify step": Observation((verify,), float(row["measured_verify_step_s"])),
        "draft steps": Observation(tuple(drafting), float(row["measured_gamma_draft_step_s"])),
    }


def round_overhead_of(row: Mapping[str, str]) -> float:
    """Time of a published round minus its draft and verification steps. [s]"""
    round_s = float(row["measured_speculative_tpot_s"]) * float(row["mean_acceptance_length"])
    return round_s - float(row["measured_gamma_draft_step_s"]) - float(row["measured_verify_step_s"])


class AttentionChanges(TypedDict, total=False):
    """Fields of `AttentionLaw` to change."""

    min_split_group: int
    transpose_s: float
    sharpness: float
    sm_bytes_per_s: float


class AllreduceChanges(TypedDict, total=False):
    """Fields of `AllreduceLaw` to change."""

    latency_s: float
    peer_latency_s: float
    two_shot_efficiency: float
    pipeline_fill: float
    shared_bytes_per_s: float


@dataclass(frozen=True)
class PublishedEngine:
    """The engine behind the published step times of one GPU.

    Attributes:
        engine: Known facts, and start values of the fit.
        free: Fitted parameters.
        attention: Parameters of its attention kernel that differ from the kernel tables.
        allreduce: Parameters of its collectives or links that differ from the kernel tables; start values if they are free.
        other_links: Whether the links of the node are unrelated to those of the kernel tables.
    """

    engine: EngineLaw
    free: tuple[str, ...]
    attention: AttentionChanges = field(default_factory=AttentionChanges)
    allreduce: AllreduceChanges = field(default_factory=AllreduceChanges)
    other_links: bool = False


# The A100 and L40 rows come from an older engine than the H100 rows: it has more kernels per layer, and samples with softmax and
# top-k over unsharded logits.
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
        allreduce={"two_shot_efficiency": 0.3},  # collectives of PyTorch use few thread blocks
    ),
    "h100-sxm": PublishedEngine(
        EngineLaw(),
        ("engine.layer_overhead_s", "allreduce.latency_s"),
        allreduce={"latency_s": 1e-5},  # they also copy the payload first
    ),
    "l40": PublishedEngine(  # two rows; the kernel tables are from an L40S node with different links
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
    """Return the profile with the known facts of the published engine, before fitting.

    Args:
        profile: A profile with kernel laws from tables.
        rows: Published rows of this GPU.
    """
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
    """Fit the overheads of the published engine to the published step times of a GPU; kernel laws from tables stay.

    Args:
        profile: A profile with kernel laws from `fit_tables`.
        without: Name of a model to hold out of the fit.

    Raises:
        InputError: There are no published rows for this GPU.
    """
    rows = [row for row in published_rows("magicdec_timings") if row["hardware"] == profile.name]
    if not rows:
        expected = f"a GPU with published step times ({', '.join(PUBLISHED_ENGINES)})"
        raise bad("profile", "", expected, profile.name)
    start = published_start(profile, rows)
    seen = dict.fromkeys(one for row in rows for one in observations_of(row, start).values())
    observations = [one for one in seen if one.passes[0].model.name != without]
    data = f"{len(rows)} rows of MagicDec tables 1, 3, 4, 6 (arXiv 2408.11049); round overhead is the median of these rows"
    return fit_passes(start, observations, PUBLISHED_ENGINES[profile.name].free, data=data, engine=PUBLISHED_ENGINE)
