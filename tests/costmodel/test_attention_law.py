"""The attention law: formula computed by hand, waves, split-KV, monotonicity and bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from random_inputs import laws

from magicdec.costmodel.kernels.attention import TILE, AttentionLaw, attention_s

# 100 SMs of 1e10 bytes/s each, one CTA an SM: ten times what half the memory's bandwidth gives
ROUND = AttentionLaw(
    launch_s=1e-5,
    memory_efficiency=0.5,
    compute_efficiency=0.25,
    sm_bytes_per_s=1e10,
    wave_s=3e-6,
    merge_s=2e-6,
    split_s=1e-7,
    sharpness=12.0,
    tile_rows=64,
    instruction_rows=16,
)
SMS, ENTRY = 100, 4 * 128  # keys and values of one token and KV head, in 16 bits
sizes = {
    "b": st.integers(1, 300),
    "k": st.sampled_from([1, 2, 4, 8, 32]),
    "rows": st.integers(1, 200),
    "length": st.integers(1, 200_000),
}
shapes = st.fixed_dictionaries(sizes)


def parts(law: AttentionLaw, b: float, k: float, rows: float, length: float, **changes: Any) -> tuple[np.ndarray, ...]:
    """A call with head dimension 128 and 16-bit elements."""
    question: dict[str, Any] = {
        "sequences": b,
        "kv_heads": k,
        "query_rows": rows,
        "group": rows,
        "read_len": length,
        "flop": 4 * b * k * rows * length * 128,
        "kv_bytes": b * k * length * ENTRY,
        "query_bytes": b * k * rows * ENTRY,
        "flop_per_s": 1e14,
        "bytes_per_s": 1e12,
        "num_sms": SMS,
    }
    return attention_s(law, **{**question, **changes})


def seconds(law: AttentionLaw, b: float, k: float, rows: float, length: float, **changes: Any) -> float:
    return float(sum(parts(law, b, k, rows, length, **changes)))


def test_many_blocks_of_one_wave_take_their_bytes_at_the_reached_bandwidth() -> None:
    _, traffic_s, launch_s = parts(ROUND, 25, 4, 1, 100_000, flop=0)
    assert launch_s == 1e-5
    memory_s = (25 * 4 * 100_000 * ENTRY + 100 * ENTRY) / 0.5e12
    sm_s = (100_000 - TILE) * ENTRY / 1e10
    assert memory_s > 2 * sm_s * 0.99
    assert float(traffic_s) == pytest.approx((memory_s**12 + sm_s**12) ** (1 / 12), rel=1e-9)


def test_one_block_that_is_not_split_takes_what_one_sm_takes() -> None:
    sm_s = (100_000 - TILE) * ENTRY / 1e10
    assert seconds(ROUND, 1, 1, 1, 100_000, may_split=False, flop=0) == pytest.approx(1e-5 + sm_s, rel=1e-6)


def test_a_second_wave_takes_as_long_again() -> None:
    """With very fast memory only the SM time counts; the context is long, so the first tile is negligible."""
    law, quick = replace(ROUND, sharpness=400.0), {"bytes_per_s": 1e18, "flop": 0}
    one, two, full, three = (seconds(law, b, 1, 1, 100_000, **quick) - 1e-5 for b in (100, 101, 200, 201))
    assert one == pytest.approx(100_000 * ENTRY / 1e10, rel=0.002)
    assert two == full
    assert two == pytest.approx(2 * one, rel=0.005)
    assert three == pytest.approx(3 * one, rel=0.005)


def test_the_prologue_of_a_further_wave_depends_on_whether_queries_are_grouped() -> None:
    """With very fast SMs only the prologues count."""
    law = replace(ROUND, sharpness=400.0, sm_bytes_per_s=1e18, ungrouped_wave_factor=0.5)
    times = [seconds(law, 250, 1, rows, 1000, bytes_per_s=1e18, flop=0) - 1e-5 for rows in (1, 2)]
    assert times == pytest.approx([2 * 1.5e-6, 2 * 3e-6], rel=1e-6)


def test_a_partly_filled_last_wave_does_not_saturate_the_memory() -> None:
    """50 SMs saturate it: 120 blocks take as long as 150."""
    law = replace(ROUND, sharpness=12.0)
    for blocks, served in ((100, 100), (120, 150), (150, 150), (160, 160), (200, 200), (201, 250)):
        memory_s = served * (10_000 * ENTRY + ENTRY) / 0.5e12
        sm_s = np.ceil(blocks / 100) * (10_000 - TILE) * ENTRY / 1e10 + (np.ceil(blocks / 100) - 1) * 3e-6
        expected = (memory_s**12 + sm_s**12) ** (1 / 12)
        assert seconds(law, blocks, 1, 1, 10_000, flop=0) - 1e-5 == pytest.approx(expected, rel=1e-6), blocks


def test_splits_help_small_batches_and_none_that_fill_the_machine() -> None:
    whole, split = (np.array([seconds(ROUND, b, 1, 4, 64_000, may_split=may) for b in (1, 4, 16, 50, 51, 100)]) for may in (0, 1))
    assert (split <= whole).all()
    assert whole[0] / split[0] > 10
    assert (np.diff(whole / split) <= 1e-12).all()
    assert (whole / split)[4:].tolist() == [1, 1]


def test_the_best_number_of_splits_is_taken() -> None:
    for b, length in ((1, 500), (1, 5000), (1, 100_000), (7, 30_000), (40, 9000)):
        most = min(SMS // b, length / TILE)
        number = np.linspace(1, most, 4001)
        split_s = np.maximum(length / number - TILE, 0) * ENTRY / 1e10 + 2e-6 + 1e-7 * number
        best = min(float(split_s.min()), (length - TILE) * ENTRY / 1e10)
        assert seconds(ROUND, b, 1, 4, length, bytes_per_s=1e18, flop=0) - 1e-5 == pytest.approx(best, rel=1e-3), (b, length)


@pytest.mark.parametrize("law", [replace(ROUND, splits_kv=False), replace(ROUND, min_split_group=5)])
def test_a_kernel_that_does_not_split_never_does(law: AttentionLaw) -> None:
    assert seconds(law, 1, 1, 4, 64_000) == seconds(ROUND, 1, 1, 4, 64_000, may_split=False)
    assert seconds(law, 1, 1, 5, 64_000) == seconds(ROUND, 1, 1, 5, 64_000, may_split=law.splits_kv)


def test_draft_tokens_do_not_make_a_kernel_split_that_the_group_does_not() -> None:
    """Four query heads per KV head, for decoding one token and verifying five."""
    law = replace(ROUND, min_split_group=5)
    for rows in (4, 20):
        assert seconds(law, 1, 1, rows, 64_000, group=4) == seconds(ROUND, 1, 1, rows, 64_000, group=4, may_split=False)
        assert seconds(law, 1, 1, rows, 64_000, group=5) == seconds(ROUND, 1, 1, rows, 64_000)


def test_further_tiles_of_queries_read_no_more_of_the_cache() -> None:
    """With very fast SMs only the memory time counts."""
    law = replace(ROUND, sm_bytes_per_s=1e18, wave_s=0.0)
    times = [seconds(law, 109, 1, rows, 50_000, flop=0, query_bytes=0) for rows in (1, 64, 65, 128, 129)]
    assert times == pytest.approx([times[0]] * 5, rel=1e-9)


def test_query_rows_fill_instructions_and_then_tiles() -> None:
    slow = {"flop_per_s": 1e9, "may_split": False}
    times = [seconds(ROUND, 1, 1, rows, 1000, **slow) for rows in (1, 4, 16, 17, 32)]
    assert times[0] == pytest.approx(times[1], rel=1e-3)
    assert times[1] == pytest.approx(times[2], rel=1e-3)
    assert times[3] == pytest.approx(2 * times[2], rel=1e-2)
    assert times[4] == pytest.approx(times[3], rel=1e-3)
    arithmetic_s = 4 * 16 * 1000 * 128 / (1e9 * 0.25)
    assert times[0] == pytest.approx(arithmetic_s, rel=1e-2)


def test_queries_beyond_a_tile_are_further_blocks() -> None:
    """60 blocks of two tiles fill more than one wave of 100."""
    law, quick = replace(ROUND, sharpness=400.0, wave_s=2e-5), {"bytes_per_s": 1e18, "flop": 0, "query_bytes": 0}
    assert seconds(law, 60, 1, 65, 1000, **quick) == pytest.approx(seconds(law, 120, 1, 1, 1000, **quick), rel=1e-9)
    assert seconds(law, 60, 1, 64, 1000, **quick) == pytest.approx(seconds(law, 60, 1, 1, 1000, **quick), rel=1e-9)
    assert seconds(law, 60, 1, 65, 1000, **quick) > 1.5 * seconds(law, 60, 1, 64, 1000, **quick)


def test_several_ctas_of_an_sm_share_its_rate() -> None:
    two = replace(ROUND, ctas_per_sm=2)
    quick = {"bytes_per_s": 1e18, "flop": 0, "may_split": False}
    assert seconds(two, 200, 1, 1, 5000, **quick) - 1e-5 == pytest.approx(2 * (seconds(ROUND, 100, 1, 1, 5000, **quick) - 1e-5))


def test_transposing_is_paid_for_several_sequences_and_grouped_queries_alone() -> None:
    law = replace(ROUND, transpose_s=5e-6)
    for b, k, rows in ((1, 8, 4), (8, 1, 4), (8, 8, 1)):
        assert seconds(law, b, k, rows, 1000) == seconds(ROUND, b, k, rows, 1000)
    assert seconds(law, 8, 8, 4, 1000) == pytest.approx(seconds(ROUND, 8, 8, 4, 1000) + 5e-6, rel=1e-12)


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 12.0])
def test_the_three_times_are_joined_by_their_power_mean(sharpness: float) -> None:
    law = replace(ROUND, sharpness=sharpness)
    exposed_s, traffic_s, _ = parts(law, 100, 1, 16, 10_000, flop=1e8)
    memory_s, compute_s = 100 * (10_000 + 16) * ENTRY / 0.5e12, 1e8 / 0.25e14
    sm_s = (10_000 - TILE) * ENTRY / 1e10
    expected = (memory_s**sharpness + sm_s**sharpness + compute_s**sharpness) ** (1 / sharpness)
    assert float(exposed_s + traffic_s) == pytest.approx(expected, rel=1e-12)
    if sharpness == 1:
        assert float(traffic_s) == pytest.approx(memory_s + sm_s)
        assert float(exposed_s) == pytest.approx(compute_s, rel=1e-6)


@given(laws(AttentionLaw), shapes)
def test_no_call_beats_the_peaks_or_its_launch(law: AttentionLaw, shape: dict[str, int]) -> None:
    b, k, rows, length = (shape[key] for key in ("b", "k", "rows", "length"))
    exposed_s, traffic_s, launch_s = parts(law, **shape)
    assert min(exposed_s, traffic_s) >= 0
    assert launch_s >= law.launch_s
    assert exposed_s + traffic_s >= b * k * length * ENTRY / 1e12 * (1 - 1e-12)
    assert exposed_s + traffic_s >= 4 * b * k * rows * length * 128 / 1e14 * (1 - 1e-12)


@given(laws(AttentionLaw), shapes, st.integers(1, 100))
def test_a_call_grows_with_sequences_heads_and_context(law: AttentionLaw, shape: dict[str, int], more: int) -> None:
    before = seconds(law, **shape) * (1 - 1e-9)
    for key in ("b", "k", "length"):
        assert seconds(law, **{**shape, key: shape[key] + more}) >= before, key


@given(laws(AttentionLaw, min_split_group=1, ungrouped_wave_factor=1.0), shapes, st.integers(1, 100))
@example(replace(ROUND, sm_bytes_per_s=5e11 / 30, compute_efficiency=1.0), {"b": 109, "k": 1, "rows": 64, "length": 50_000}, 1)
def test_a_call_grows_with_its_queries(law: AttentionLaw, shape: dict[str, int], more: int) -> None:
    assert seconds(law, **{**shape, "rows": shape["rows"] + more}) >= seconds(law, **shape) * (1 - 1e-9)


@given(laws(AttentionLaw), shapes, st.floats(1, 100))
def test_faster_parts_never_slow_a_call(law: AttentionLaw, shape: dict[str, int], factor: float) -> None:
    before = seconds(law, **shape) * (1 + 1e-9)
    assert seconds(law, **shape, bytes_per_s=factor * 1e12) <= before
    assert seconds(law, **shape, flop_per_s=factor * 1e14) <= before
    assert seconds(replace(law, sm_bytes_per_s=factor * law.sm_bytes_per_s), **shape) <= before
    assert seconds(replace(law, sharpness=min(factor * law.sharpness, 12.0)), **shape) <= before
    assert seconds(replace(law, splits_kv=True), **shape) <= before * (1 + 1e-9)


def test_a_cache_found_in_l2_streams_faster_where_the_sms_are_the_limit() -> None:
    quick = {"bytes_per_s": 1e18, "flop": 0, "may_split": False}
    cold, warm = (seconds(ROUND, 1, 1, 1, 50_000, sm_speedup=speedup, **quick) - 1e-5 for speedup in (1.0, 4.0))
    assert cold == pytest.approx(4 * warm)


@given(laws(AttentionLaw), shapes, st.integers(1, 300), st.integers(1, 5))
def test_several_times_as_many_sms_never_slow_a_call(law: AttentionLaw, shape: dict[str, int], sms: int, times: int) -> None:
    assert seconds(law, **shape, num_sms=times * sms) <= seconds(law, **shape, num_sms=sms) * (1 + 1e-9)


@given(laws(AttentionLaw), shapes, st.integers(1, 300), st.integers(1, 300))
def test_more_sms_slow_a_call_by_no_more_than_a_last_wave_that_does_not_saturate(
    law: AttentionLaw, shape: dict[str, int], sms: int, more: int
) -> None:
    """Fewer, fuller waves may leave a last one of few CTAs; they take as long as those that saturate the memory."""
    slots, pairs = (sms + more) * law.ctas_per_sm, shape["b"] * shape["k"]
    saturating = 1e12 * law.memory_efficiency / (law.sm_bytes_per_s / law.ctas_per_sm)
    tail = saturating / pairs if saturating < slots < pairs else 0.0
    assert seconds(law, **shape, num_sms=sms + more) <= seconds(law, **shape, num_sms=sms) * (1 + tail) * (1 + 1e-9)


def test_a_last_wave_of_few_ctas_slows_a_call_as_it_does_on_gpus() -> None:
    """In the public tables, 256 pairs take an A100 with 216 places 1.2 times as long a byte as 128 or 512 do."""
    law = replace(ROUND, memory_efficiency=0.859, sm_bytes_per_s=0.859 * 1e12 / 51, ctas_per_sm=2)  # 102 CTAs saturate
    per_pair = {pairs: seconds(law, pairs, 1, 4, 64_000, num_sms=108) / pairs for pairs in (128, 256, 512, 1024)}
    assert per_pair[256] > 1.15 * max(per_pair[128], per_pair[512], per_pair[1024])
    assert per_pair[256] < 1.3 * per_pair[512]
