"""Invariants for any model, hardware and workload: on random ones, and on the shipped profiles."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_inputs import gpus_for, machines, models, pass_shapes

from magicdec.costmodel.hardware.catalog import profile_files, resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.transformer import BYTES_PER_ELEMENT, TransformerConfig
from magicdec.costmodel.passes.forward import Cost, forward_cost
from magicdec.costmodel.passes.roofline import BOUNDS, VERIFY_KERNELS, StepTime, VerifyKernel, step_time
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

kernels = st.sampled_from(VERIFY_KERNELS)
fewer = settings(max_examples=20)


@st.composite
def passes(draw: st.DrawFn) -> tuple[TransformerConfig, dict[str, Any], int]:
    """A model, a pass shape and the GPUs that share it."""
    model = draw(models())
    return model, draw(pass_shapes()), draw(st.sampled_from(gpus_for(model)))


def counted(seen: tuple[TransformerConfig, dict[str, Any], int], hardware: HardwareProfile, **changes: Any) -> Cost:
    model, shape, gpus = seen
    sharded = hardware.calibration.engine.head_sharded
    return forward_cost(model, **{**shape, **changes}, tensor_parallel=gpus, head_sharded=sharded)


def priced(
    seen: tuple[TransformerConfig, dict[str, Any], int],
    hardware: HardwareProfile,
    kernel: VerifyKernel = "shared_kv_splitkv",
    **changes: Any,
) -> StepTime:
    return step_time(counted(seen, hardware, **changes), hardware, seen[0].dtype, tensor_parallel=seen[2], verify_kernel=kernel)


def rated(hardware: HardwareProfile, factor: float, key: str) -> HardwareProfile:
    """The same machine with one peak multiplied."""
    old: Any = getattr(hardware.peak, key)
    new = {t: factor * rate for t, rate in old.items()} if isinstance(old, dict) else factor * old
    return replace(hardware, peak=replace(hardware.peak, **{key: new}))


@fewer
@given(passes(), machines(), kernels)
def test_the_parts_add_up_to_the_total_and_the_bound_is_the_largest(seen: Any, hardware: HardwareProfile, kernel: Any) -> None:
    step = priced(seen, hardware, kernel)
    assert set(step.parts) == set(BOUNDS)
    assert step.total_s == pytest.approx(sum(float(part) for part in step.parts.values()), rel=1e-12)
    assert min(float(part) for part in step.parts.values()) >= -1e-12 * float(step.total_s)
    assert step.parts[str(step.bound)] == max(step.parts.values())


@fewer
@given(passes(), machines(), kernels)
def test_no_step_beats_the_peaks(seen: Any, hardware: HardwareProfile, kernel: Any) -> None:
    cost, step = counted(seen, hardware), priced(seen, hardware, kernel)
    assert step.total_s >= cost.bytes / hardware.peak.memory_bandwidth_bytes_per_s * (1 - 1e-9)
    rates = [(products.flop, products.matrix.dtype) for products in cost.products] + [(cost.attention.flop, seen[0].dtype)]
    assert step.total_s >= sum(float(flop) / hardware.flop_per_s(dtype) for flop, dtype in rates) * (1 - 1e-9)
    gpus = seen[2]
    wire_bytes = cost.num_allreduces * cost.allreduce_bytes * 2 * (gpus - 1) / gpus
    assert step.communication_s >= wire_bytes / hardware.peak.interconnect_bandwidth_bytes_per_s * (1 - 1e-9)


@pytest.mark.parametrize("peak", ["memory_bandwidth_bytes_per_s", "flop_per_s", "interconnect_bandwidth_bytes_per_s"])
@fewer
@given(seen=passes(), hardware=machines(), kernel=kernels, factor=st.floats(1, 100))
def test_a_higher_peak_never_slows(peak: str, seen: Any, hardware: HardwareProfile, kernel: Any, factor: float) -> None:
    faster = priced(seen, rated(hardware, factor, peak), kernel).total_s
    assert faster <= priced(seen, hardware, kernel).total_s * (1 + 1e-9)


@fewer
@given(passes(), machines(), kernels, st.integers(2, 5))
def test_several_times_as_many_sms_never_slow(seen: Any, hardware: HardwareProfile, kernel: Any, times: int) -> None:
    """Any other number may: see `test_attention_law.py`."""
    assert priced(seen, rated(hardware, times, "num_sms"), kernel).total_s <= priced(seen, hardware, kernel).total_s * (1 + 1e-9)


@fewer
@given(passes(), machines(), kernels, st.integers(1, 50))
def test_more_sequences_or_context_never_take_less(seen: Any, hardware: HardwareProfile, kernel: Any, more: int) -> None:
    if seen[0].latent is not None:
        seen[1]["query_len"] = 1  # with more queries there are two ways, and the one of less arithmetic may take longer
    before = priced(seen, hardware, kernel).total_s * (1 - 1e-9)
    for key in ("batch_size", "context_len"):
        assert priced(seen, hardware, kernel, **{key: seen[1][key] + more}).total_s >= before, key


@fewer
@given(passes(), machines(ungrouped_wave_factor=1.0, transpose_s=0.0))
def test_reading_the_cache_once_a_token_is_never_cheaper_than_once_a_pass(seen: Any, hardware: HardwareProfile) -> None:
    assert priced(seen, hardware, "per_token").total_s >= priced(seen, hardware).total_s * (1 - 1e-9)


@fewer
@given(passes(), machines())
def test_not_splitting_is_never_cheaper(seen: Any, hardware: HardwareProfile) -> None:
    assert priced(seen, hardware, "shared_kv_no_split").total_s >= priced(seen, hardware).total_s * (1 - 1e-9)


@fewer
@given(passes(), machines(), kernels)
def test_verifying_one_token_costs_the_same_as_decoding(seen: Any, hardware: HardwareProfile, kernel: Any) -> None:
    seen[1]["query_len"] = 1
    assert priced(seen, hardware, kernel).total_s == priced(seen, hardware).total_s


@fewer
@given(passes(), machines(), st.integers(0, 100_000))
def test_a_budget_beyond_the_context_is_full_attention(seen: Any, hardware: HardwareProfile, beyond: int) -> None:
    capped = priced(seen, hardware, kv_budget=max(seen[1]["context_len"] + beyond, 1))
    assert capped.total_s == priced(seen, hardware, kv_budget=np.inf).total_s


# Whole rounds


DRAFTS = {
    "streaming": Draft("self", "streaming_llm"),
    "top-k": Draft("self", "topk"),
    "quest in int4": Draft("self", "quest", kv_dtype="int4"),
    "compressed": Draft("self", weight_dtype="int8", kv_dtype="int8"),
    "eagle": Draft("eagle3"),
    "n-gram": Draft("ngram"),
}


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    model = draw(models())
    whole = [gpus for gpus in gpus_for(model) if model.latent or model.num_kv_heads % gpus == 0 or gpus % model.num_kv_heads == 0]
    gpus = draw(st.sampled_from(whole))
    return Deployment(model, draw(machines()), gpus, gpus, draw(kernels))


@fewer
@given(deployments(), st.sampled_from(sorted(DRAFTS)), st.integers(1, 512), st.integers(1, 200_000), st.floats(0, 1))
def test_gamma_zero_is_autoregressive_decoding_on_any_machine(
    deployment: Deployment, draft: str, batch: int, context: int, rate: float
) -> None:
    e = evaluate_grid(deployment, DRAFTS[draft], batch_size=batch, context_len=context, gamma=0, acceptance_rate=rate)
    assert e.round.speedup == e.speedup_low == e.speedup_high == 1
    assert e.round.round_s == e.round.target_step_s == e.target.total_s
    assert e.verify.total_s == e.target.total_s


@fewer
@given(deployments(), st.integers(1, 512), st.integers(1, 200_000), st.integers(0, 100_000))
def test_a_self_draft_that_reads_everything_takes_the_targets_step_but_for_cold_caches(
    deployment: Deployment, batch: int, context: int, beyond: int
) -> None:
    shape = {"batch_size": batch, "context_len": context, "gamma": 3, "kv_budget": context + beyond, "acceptance_rate": 1.0}
    e = evaluate_grid(deployment, DRAFTS["streaming"], **shape)
    cold_s = deployment.hardware.calibration.engine.cold_pass_s
    assert e.draft.total_s + cold_s == pytest.approx(float(e.target.total_s), rel=1e-12)


SPARSE = ("streaming", "top-k", "quest in int4")
workloads = st.fixed_dictionaries({"batch_size": st.integers(1, 512), "context_len": st.integers(1, 200_000)})
budgets = st.integers(1, 8192)


@fewer
@given(deployments(), st.sampled_from(sorted(DRAFTS)), workloads, budgets, st.integers(0, 16), st.floats(0, 1), st.floats(0, 1))
def test_more_acceptance_never_speeds_up_less(
    deployment: Deployment, draft: str, workload: dict[str, int], budget: int, gamma: int, one: float, other: float
) -> None:
    shape = {**workload, "gamma": gamma, "kv_budget": budget}
    low, high = (evaluate_grid(deployment, DRAFTS[draft], **shape, acceptance_rate=rate) for rate in sorted((one, other)))
    assert high.round.speedup >= low.round.speedup * (1 - 1e-9)
    assert high.speedup_low >= low.speedup_low * (1 - 1e-9)


@fewer
@given(deployments(), st.sampled_from(SPARSE), workloads, budgets, st.integers(1, 100_000))
def test_a_larger_budget_never_drafts_for_less(
    deployment: Deployment, draft: str, workload: dict[str, int], budget: int, more: int
) -> None:
    small, large = (
        evaluate_grid(deployment, DRAFTS[draft], **workload, gamma=3, kv_budget=entries, acceptance_rate=0.8)
        for entries in (budget, budget + more)
    )
    assert large.round.gamma_draft_step_s >= small.round.gamma_draft_step_s * (1 - 1e-9)
    copied_s = small.round.overhead_s - large.round.overhead_s  # a draft that reads everything copies nothing
    assert large.round.round_s + np.maximum(copied_s, 0) >= small.round.round_s * (1 - 1e-9)
    assert large.memory.total_bytes >= small.memory.total_bytes * (1 - 1e-9)


@fewer
@given(deployments(), st.sampled_from(sorted(DRAFTS)), workloads, st.floats(1, 100))
def test_more_memory_never_fits_less_and_changes_no_time(
    deployment: Deployment, draft: str, workload: dict[str, int], factor: float
) -> None:
    roomier = replace(deployment, hardware=rated(deployment.hardware, factor, "memory_bytes"))
    before, after = (
        evaluate_grid(where, DRAFTS[draft], **workload, gamma=3, kv_budget=64, acceptance_rate=0.8)
        for where in (deployment, roomier)
    )
    assert bool(after.fits_in_memory) >= bool(before.fits_in_memory)
    assert after.round.round_s == before.round.round_s


def numbers_of(e: Evaluation) -> dict[str, Any]:
    """Everything an evaluation says of a point."""
    found = {f"{name} {part}": value for name in ("target", "draft", "verify") for part, value in getattr(e, name).parts.items()}
    found |= {f"memory {name}": value for name, value in vars(e.memory).items()}
    found |= {name: getattr(e.round, name) for name in ("gamma_draft_step_s", "round_s", "speculative_tpot_s", "speedup")}
    return {**found, "fits": e.fits_in_memory, "low": e.speedup_low, "high": e.speedup_high, "select": e.round.select_step_s}


def grid_and_points(deployment: Deployment, draft: Draft) -> list[tuple[str, float, float]]:
    """Every number of a grid beside that of its point alone."""
    batches, contexts, gammas, budgets = [1, 7, 64], [3.5, 700, 32_000], [0, 1, 5], [64, np.inf]
    axes = np.array(batches)[:, None, None, None], np.array(contexts)[:, None, None], np.array(gammas)[:, None], np.array(budgets)
    names = ("batch_size", "context_len", "gamma", "kv_budget")
    shape = np.broadcast_shapes(*(axis.shape for axis in axes))
    grid = numbers_of(evaluate_grid(deployment, draft, **dict(zip(names, axes, strict=True)), acceptance_rate=0.7))
    pairs = []
    for index in np.ndindex(shape):
        point = dict(zip(names, (np.broadcast_to(axis, shape)[index] for axis in axes), strict=True))
        alone = numbers_of(evaluate_grid(deployment, draft, **point, acceptance_rate=0.7))
        pairs += [(name, float(np.broadcast_to(grid[name], shape)[index]), float(alone[name])) for name in grid]
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
@settings(max_examples=2)
@given(deployment=deployments())
def test_the_grid_equals_the_scalar_path_on_any_machine(deployment: Deployment, draft: str) -> None:
    for name, in_grid, alone in grid_and_points(deployment, DRAFTS[draft]):
        assert in_grid == pytest.approx(alone, rel=1e-11, abs=1e-18), name


def test_the_grid_equals_the_scalar_path_to_the_last_bit() -> None:
    deployment = Deployment(resolve_model("Mixtral-8x7B"), resolve_profile("h200-sxm"), 8, 8)
    for name, in_grid, alone in grid_and_points(deployment, DRAFTS["streaming"]):
        assert in_grid == alone, name


# The shipped profiles, over the built-in models


BATCHES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512])
CONTEXTS = np.array([128, 1000, 4000, 16_000, 64_000, 128_000])
QUERIES = np.arange(1, 18)
ALIKE = ("Llama-3.1-8B", "Llama-2-7B-32K", "Qwen3-235B-A22B", "Qwen2-1.5B", "Yi-34B", "DeepSeek-V3", "gpt-oss-20b", "Gemma-3-27B")


def step_times(profile: str, model_name: str, kernel: VerifyKernel) -> np.ndarray:
    """Of every batch, number of queries and context, on 1 GPU and on 8. [s]"""
    hardware, model = resolve_profile(profile), resolve_model(model_name)
    deployments = [Deployment(model, hardware, gpus, gpus, kernel) for gpus in (1, 8) if model.num_heads % gpus == 0]
    return np.stack(
        [deployment.pass_time(BATCHES[:, None, None], QUERIES[:, None], CONTEXTS).total_s for deployment in deployments]
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", profile_files())
def test_on_shipped_profiles_more_sequences_context_or_draft_tokens_never_take_less(profile: str) -> None:
    for kernel, model in itertools.product(VERIFY_KERNELS, ALIKE):
        times = step_times(profile, model, kernel)
        for axis in (1, 3):
            assert (np.diff(times, axis=axis) >= -1e-9 * times.min()).all(), (kernel, model, axis)
        assert (times[:, :, 1:] >= times[:, :, :1] * (1 - 1e-9)).all(), (kernel, model, "verification beside decoding")
        verifying = times[:, :, 1:]
        assert (np.diff(verifying, axis=2) / verifying[:, :, :-1]).min() >= -1e-9, (kernel, model, "draft tokens")


@pytest.mark.parametrize("profile", profile_files())
def test_on_shipped_profiles_no_decoding_step_beats_reading_its_bytes(profile: str) -> None:
    hardware = resolve_profile(profile)
    for name in builtin_configs():
        model = resolve_model(name)
        time_s = Deployment(model, hardware).pass_time(BATCHES[:, None], 1, CONTEXTS).total_s
        cost = forward_cost(model, batch_size=1, query_len=1, context_len=CONTEXTS)
        kv = cost.attention.bytes + cost.state.bytes
        active = sum(m.params * m.used / m.experts * BYTES_PER_ELEMENT[m.dtype] for m in model.matrices())
        least_s = (active + BATCHES[:, None] * kv) / hardware.peak.memory_bandwidth_bytes_per_s
        assert (time_s >= least_s).all(), name
