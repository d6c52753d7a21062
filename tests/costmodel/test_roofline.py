from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.forward import Cost, Work, forward_cost
from costmodel.hardware import Calibration, HardwareProfile, Peak
from costmodel.roofline import BOUNDS, VERIFY_KERNELS, StepTime, allreduce_s, padded_rows, processor_balance, step_time
from costmodel.transformer import TransformerConfig

ROUND = HardwareProfile(
    "round",
    "numbers that divide well",
    Peak({"float32": 1e13, "bfloat16": 1e14}, 1e12, 8e10, 1e11, 100, 4e7),
    Calibration(
        memory_efficiency=0.5,
        attention_memory_efficiency=0.25,
        compute_efficiency=0.5,
        attention_compute_efficiency=0.25,
        overlap=1.0,
        query_tiles=(16, 64, 128),
        layer_overhead_s=1e-5,
        step_overhead_s=1e-4,
        allreduce_latency_s=1e-5,
        interconnect_efficiency=0.5,
        one_shot_bytes=1000.0,
        two_shot_latency_factor=1.5,
    ),
)


def calibrated(**changes: Any) -> HardwareProfile:
    return replace(ROUND, calibration=replace(ROUND.calibration, **changes))


def rated(hardware: HardwareProfile, factor: float, *keys: str) -> HardwareProfile:
    """The same machine with some peaks multiplied."""
    peaks: dict[str, Any] = {
        key: {t: factor * rate for t, rate in hardware.peak.flop_per_s.items()}
        if key == "flop_per_s"
        else factor * getattr(hardware.peak, key)
        for key in keys
    }
    return replace(hardware, peak=replace(hardware.peak, **peaks))


efficiencies = st.floats(0.05, 1.0)


@st.composite
def machines(draw: st.DrawFn) -> HardwareProfile:
    seconds = st.floats(0, 1e-3)
    calibration = Calibration(
        memory_efficiency=draw(efficiencies),
        attention_memory_efficiency=draw(efficiencies),
        compute_efficiency=draw(efficiencies),
        attention_compute_efficiency=draw(efficiencies),
        overlap=draw(st.floats(0, 1)),
        query_tiles=draw(st.sampled_from([(1,), (16, 64, 128), (8,)])),
        splits_kv=draw(st.booleans()),
        layer_overhead_s=draw(seconds),
        step_overhead_s=draw(seconds),
        allreduce_latency_s=draw(seconds),
        interconnect_efficiency=draw(efficiencies),
        one_shot_bytes=draw(st.floats(0, 1e7)),
        two_shot_latency_factor=draw(st.floats(1, 3)),
    )
    peak = Peak(
        {"float32": draw(st.floats(1e10, 1e16))},
        draw(st.floats(1e9, 1e13)),
        8e10,
        draw(st.floats(1e9, 1e12)),
        draw(st.integers(1, 300)),
        4e7,
    )
    return HardwareProfile("random", "", peak, calibration)


@st.composite
def passes(draw: st.DrawFn) -> tuple[Cost, int]:
    """Counts of a random pass of a random model, and the GPUs that share it."""
    kv_heads, group = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4, 8]))
    model = TransformerConfig(
        "random",
        "llama",
        num_layers=draw(st.integers(1, 80)),
        d_model=draw(st.integers(64, 8192)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 128])),
        d_ff=draw(st.integers(64, 30_000)),
        vocab_size=draw(st.integers(256, 200_000)),
        max_context_len=131_072,
    )
    gpus = draw(st.sampled_from([gpus for gpus in (1, 2, 4, 8) if gpus <= model.num_kv_heads]))
    cost = forward_cost(
        model,
        batch_size=draw(st.integers(1, 512)),
        query_len=draw(st.integers(1, 2000)),
        context_len=draw(st.integers(0, 131_072)),
        kv_budget=draw(st.sampled_from([64.0, 512.0, np.inf])),
        tensor_parallel=gpus,
    )
    return cost, gpus


kernels = st.sampled_from(VERIFY_KERNELS)


def priced(seen: tuple[Cost, int], hardware: HardwareProfile, kernel: Any = "shared_kv_splitkv") -> StepTime:
    cost, gpus = seen
    return step_time(cost, hardware, "float32", tensor_parallel=gpus, verify_kernel=kernel)


def by_hand(**works: tuple[float, float]) -> Cost:
    """A pass with the given (FLOP, bytes) by class, of one layer on one GPU."""
    names = ("projections", "mlp", "head", "attention", "elementwise")
    parts = {name: Work(*(np.array(x) for x in works.get(name, (0.0, 0.0)))) for name in names}
    one = np.array(1.0)
    return Cost(
        **parts,
        attention_blocks=one,
        query_len=one,
        query_rows=one,
        read_len=one,
        allreduce_bytes=one,
        num_allreduces=0,
        num_layers=1,
    )


def test_a_memory_bound_class_takes_its_bytes_at_the_reached_bandwidth() -> None:
    step = step_time(by_hand(mlp=(1e9, 1e9)), ROUND, "bfloat16")
    assert step.weights_s == pytest.approx(1e9 / (1e12 * 0.5))
    assert step.compute_s == 0
    assert step.overhead_s == pytest.approx(1e-4 + 1e-5)


def test_a_compute_bound_class_takes_its_flop_at_the_reached_rate() -> None:
    step = step_time(by_hand(mlp=(1e13, 1e9)), ROUND, "bfloat16")
    assert step.compute_s == pytest.approx(1e13 / (1e14 * 0.5))
    assert step.weights_s == 0
    assert step_time(by_hand(mlp=(1e13, 1e9)), ROUND, "float32").compute_s == pytest.approx(10 * step.compute_s)


def test_without_overlap_arithmetic_and_traffic_add_up() -> None:
    step = step_time(by_hand(mlp=(1e13, 1e9), attention=(1e12, 1e9)), calibrated(overlap=0.0, splits_kv=True), "bfloat16")
    assert step.weights_s == pytest.approx(1e9 / 0.5e12)
    assert step.kv_s == pytest.approx(1e9 / 0.25e12)
    assert step.compute_s == pytest.approx(1e13 / 0.5e14 + 1e12 / 0.25e14)


def test_classes_do_not_hide_behind_one_another() -> None:
    alone = [step_time(by_hand(**{name: (1e13, 1e9)}), ROUND, "bfloat16").compute_s for name in ("projections", "mlp")]
    together = step_time(by_hand(projections=(1e13, 1e9), mlp=(1e13, 1e9)), ROUND, "bfloat16").compute_s
    assert together == pytest.approx(sum(alone))


@given(passes(), machines(), kernels)
def test_the_parts_add_up_to_the_total(seen: tuple[Cost, int], hardware: HardwareProfile, kernel: Any) -> None:
    step = priced(seen, hardware, kernel)
    assert set(step.parts) == set(BOUNDS)
    assert step.total_s == pytest.approx(sum(float(part) for part in step.parts.values()), rel=1e-12)
    assert min(float(part) for part in step.parts.values()) >= 0


@given(passes(), machines(), kernels)
def test_the_bound_is_the_largest_part(seen: tuple[Cost, int], hardware: HardwareProfile, kernel: Any) -> None:
    step = priced(seen, hardware, kernel)
    assert step.parts[str(step.bound)] == max(step.parts.values())


@given(passes(), machines(), kernels)
def test_no_step_beats_the_peaks(seen: tuple[Cost, int], hardware: HardwareProfile, kernel: Any) -> None:
    cost, total_s = seen[0], priced(seen, hardware, kernel).total_s
    assert total_s >= cost.bytes / hardware.peak.memory_bandwidth_bytes_per_s * (1 - 1e-12)
    assert total_s >= cost.flop / hardware.peak.flop_per_s["float32"] * (1 - 1e-12)


@pytest.mark.parametrize("peak", ["memory_bandwidth_bytes_per_s", "flop_per_s", "interconnect_bandwidth_bytes_per_s"])
@given(seen=passes(), hardware=machines(), kernel=kernels, factor=st.floats(1, 100))
def test_a_higher_peak_never_slows(
    peak: str, seen: tuple[Cost, int], hardware: HardwareProfile, kernel: Any, factor: float
) -> None:
    faster = priced(seen, rated(hardware, factor, peak), kernel).total_s
    assert faster <= priced(seen, hardware, kernel).total_s * (1 + 1e-12)


@given(passes(), machines())
def test_overlapping_more_never_slows(seen: tuple[Cost, int], hardware: HardwareProfile) -> None:
    apart, together = (replace(hardware, calibration=replace(hardware.calibration, overlap=overlap)) for overlap in (0.0, 1.0))
    assert priced(seen, together).total_s <= priced(seen, hardware).total_s * (1 + 1e-12)
    assert priced(seen, hardware).total_s <= priced(seen, apart).total_s * (1 + 1e-12)


@given(passes(), machines())
def test_reading_the_cache_once_a_token_is_never_cheaper_than_once_a_pass(
    seen: tuple[Cost, int], hardware: HardwareProfile
) -> None:
    assert priced(seen, hardware, "per_token").total_s >= priced(seen, hardware).total_s


def test_reading_the_cache_once_a_token_costs_verification_that_much_more(llama: TransformerConfig, a100: HardwareProfile) -> None:
    cost = forward_cost(llama, batch_size=16, query_len=[1, 2, 5], context_len=32_000)
    shared = step_time(cost, a100, "bfloat16")
    per_token = step_time(cost, a100, "bfloat16", verify_kernel="per_token")
    assert per_token.kv_s / shared.kv_s == pytest.approx([1, 2, 5])
    assert per_token.total_s[0] == shared.total_s[0]
    assert (per_token.total_s[1:] > shared.total_s[1:]).all()


def test_a_kernel_that_does_not_split_leaves_processors_idle_at_small_batch(
    llama: TransformerConfig, a100: HardwareProfile
) -> None:
    cost = forward_cost(llama, batch_size=[1, 64], query_len=5, context_len=32_000)
    split = step_time(cost, a100, "bfloat16").kv_s
    whole = step_time(cost, a100, "bfloat16", verify_kernel="shared_kv_no_split").kv_s
    assert whole / split == pytest.approx([108 / 8, 1.0])


@pytest.mark.parametrize(
    ("blocks", "share"), [(1, 1.0), (128, 1.0), (215, 1.0), (216, 1.0), (256, 256 / 324), (324, 1.0), (512, 512 / 540)]
)
def test_splitting_keeps_processors_busy_below_two_blocks_each(blocks: int, share: float) -> None:
    assert processor_balance(np.array(float(blocks)), 108, True) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    ("blocks", "share"), [(1, 1 / 108), (54, 0.5), (108, 1.0), (128, 128 / 216), (256, 256 / 324), (512, 512 / 540)]
)
def test_without_splitting_the_last_wave_is_partly_empty(blocks: int, share: float) -> None:
    assert processor_balance(np.array(float(blocks)), 108, False) == pytest.approx(share, rel=1e-15)


@given(st.integers(1, 5000), st.integers(1, 300), st.booleans())
def test_one_more_block_never_finishes_earlier(blocks: int, num_sms: int, splits: bool) -> None:
    now, more = (float(n / processor_balance(np.array(float(n)), num_sms, splits)) for n in (blocks, blocks + 1))
    assert more >= now * (1 - 1e-12)


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 1), (2, 16), (4, 16), (16, 16), (17, 64), (64, 64), (65, 128), (128, 128), (129, 256), (300, 384)]
)
def test_query_rows_are_padded_to_the_next_tile(rows: int, padded: int) -> None:
    assert padded_rows(np.array(float(rows)), (16, 64, 128)) == padded


def test_a_tile_of_one_pads_nothing() -> None:
    rows = np.array([1.0, 2.0, 7.0, 100.0])
    assert padded_rows(rows, (1,)).tolist() == rows.tolist()


def test_a_small_allreduce_reads_every_peer_once() -> None:
    assert allreduce_s(np.array(1000.0), ROUND, 8) == pytest.approx(1e-5 + 7 * 1000 / 0.5e11)


def test_a_large_allreduce_exchanges_twice_a_share() -> None:
    assert allreduce_s(np.array(1001.0), ROUND, 8) == pytest.approx(1.5e-5 + 7 * 2 / 8 * 1001 / 0.5e11)


def test_one_gpu_reduces_nothing() -> None:
    assert allreduce_s(np.array([10.0, 1e9]), ROUND, 1).tolist() == [0, 0]


def test_a_pass_pays_for_two_allreduces_a_layer(llama: TransformerConfig, a100: HardwareProfile) -> None:
    cost = forward_cost(llama, batch_size=16, query_len=1, context_len=8000, tensor_parallel=8)
    step = step_time(cost, a100, "bfloat16", tensor_parallel=8)
    assert step.communication_s == pytest.approx(2 * 32 * float(allreduce_s(np.array(16 * 4096 * 2.0), a100, 8)))
