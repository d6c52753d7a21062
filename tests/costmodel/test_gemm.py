"""The law of matrix products: its formula, its limits, and that no size is free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import laws

from magicdec.costmodel.kernels.gemm import DEPTH_REFERENCE, GemmLaw, exposed_times, gemm_s, padded_rows

ROUND = GemmLaw(launch_s=1e-5, depth_s=2e-6, compute_efficiency=0.5, memory_efficiency=0.25, sharpness=2.0)
FLOP_PER_S, BYTES_PER_S = 1e14, 1e12
dimensions = st.integers(1, 30_000)
seconds = st.floats(0, 1)


def product(law: GemmLaw, m: float, n: float, k: float, **peaks: float) -> float:
    """Seconds of one product of 16-bit matrices."""
    rates: dict[str, Any] = {"flop_per_s": FLOP_PER_S, "bytes_per_s": BYTES_PER_S, **peaks}
    parts = gemm_s(law, rows=m, inputs=k, flop=2 * m * n * k, moved_bytes=2 * (n * k + m * (n + k)), **rates)
    return float(sum(parts))


def test_a_product_is_launch_depth_and_the_root_of_squares_of_arithmetic_and_traffic() -> None:
    m, n, k = 300, 2000, 1024
    compute_s, memory_s = 2 * m * n * k / 0.5e14, 2 * (n * k + m * (n + k)) / 0.25e12
    assert product(ROUND, m, n, k) == pytest.approx(1e-5 + 2e-6 / 2 + float(np.hypot(compute_s, memory_s)), rel=1e-12)


def test_the_depth_is_that_of_its_reference() -> None:
    assert DEPTH_REFERENCE == 4096
    _, _, beside = gemm_s(
        ROUND, rows=1, inputs=[1024, 4096, 16384], flop=0, moved_bytes=0, flop_per_s=FLOP_PER_S, bytes_per_s=BYTES_PER_S
    )
    assert beside == pytest.approx(1e-5 + 2e-6 * np.array([0.5, 1, 2]))


@pytest.mark.parametrize(("sharpness", "together"), [(1.0, 7.0), (2.0, 5.0), (12.0, (3**12 + 4**12) ** (1 / 12))])
def test_sharpness_goes_from_the_sum_to_the_larger(sharpness: float, together: float) -> None:
    for one, other in ((3.0, 4.0), (4.0, 3.0)):
        assert sum(exposed_times(np.array(one), np.array(other), sharpness)) == pytest.approx(together, rel=1e-12)
    assert sum(exposed_times(np.array(3.0), np.array(4.0), 400.0)) == pytest.approx(4.0, rel=1e-12)


@given(seconds, seconds, st.floats(1, 12))
def test_the_larger_is_told_in_full_and_the_smaller_by_what_does_not_hide(compute: float, memory: float, p: float) -> None:
    exposed_s, read_s = exposed_times(np.array(compute), np.array(memory), p)
    total_s = float(exposed_s + read_s)
    assert max(compute, memory) <= total_s * (1 + 1e-12)
    assert total_s <= (compute + memory) * (1 + 1e-12)
    assert float(exposed_s if compute > memory else read_s) == max(compute, memory)
    assert -1e-15 <= float(read_s if compute > memory else exposed_s) <= min(compute, memory) * (1 + 1e-9) + 1e-15


@given(seconds, seconds, st.floats(1, 12), st.floats(1, 12))
def test_more_sharpness_never_slows(compute: float, memory: float, p: float, q: float) -> None:
    blunt, sharp = (float(sum(exposed_times(np.array(compute), np.array(memory), s))) for s in sorted((p, q)))
    assert sharp <= blunt * (1 + 1e-12)


@given(laws(GemmLaw), dimensions, dimensions, dimensions)
def test_no_product_beats_the_peaks_or_its_launch(law: GemmLaw, m: int, n: int, k: int) -> None:
    total_s = product(law, m, n, k)
    assert total_s >= 2 * m * n * k / FLOP_PER_S * (1 - 1e-12)
    assert total_s >= 2 * (n * k + m * (n + k)) / BYTES_PER_S * (1 - 1e-12)
    assert total_s >= law.launch_s


@given(laws(GemmLaw), dimensions, dimensions, dimensions, st.integers(1, 5000))
def test_a_product_grows_with_each_of_its_dimensions(law: GemmLaw, m: int, n: int, k: int, more: int) -> None:
    before = product(law, m, n, k) * (1 - 1e-12)
    assert product(law, m + more, n, k) >= before
    assert product(law, m, n + more, k) >= before
    assert product(law, m, n, k + more) >= before


@given(laws(GemmLaw), dimensions, dimensions, dimensions, st.floats(1, 100))
def test_a_higher_peak_or_efficiency_never_slows_a_product(law: GemmLaw, m: int, n: int, k: int, factor: float) -> None:
    before = product(law, m, n, k) * (1 + 1e-12)
    assert product(law, m, n, k, flop_per_s=factor * FLOP_PER_S) <= before
    assert product(law, m, n, k, bytes_per_s=factor * BYTES_PER_S) <= before
    for name in ("compute_efficiency", "memory_efficiency"):
        assert product(replace(law, **{name: min(factor * getattr(law, name), 1.0)}), m, n, k) <= before


@pytest.mark.parametrize(
    ("rows", "padded"),
    [(1, 1), (2, 2), (3, 4), (5, 8), (33, 64), (64, 64), (65, 128), (100, 128), (128, 128), (129, 256), (257, 384), (300, 384)],
)
def test_rows_fill_a_power_of_two_up_to_a_tile_and_whole_tiles_beyond(rows: int, padded: int) -> None:
    assert padded_rows(np.array(float(rows)), 128) == padded


def test_a_tile_of_one_pads_nothing() -> None:
    rows = np.array([0.5, 1.0, 2.0, 7.0, 100.0])
    assert padded_rows(rows, 1).tolist() == rows.tolist()


@given(st.integers(1, 5000), st.sampled_from([1, 2, 64, 128, 256]))
def test_padding_fills_less_than_twice_the_rows_and_less_than_a_tile_more(rows: int, tile: int) -> None:
    padded = float(padded_rows(np.array(float(rows)), tile))
    assert rows <= padded < 2 * rows + (rows == 1)
    assert padded < rows + tile


def test_padding_is_paid_in_arithmetic_alone() -> None:
    law = replace(ROUND, tile_rows=128, sharpness=12.0)
    assert product(law, 129, 20_000, 20_000) == pytest.approx(product(law, 256, 20_000, 20_000), rel=0.01)
    free = {"flop_per_s": 1e30}
    assert product(law, 129, 20_000, 20_000, **free) == product(replace(law, tile_rows=1), 129, 20_000, 20_000, **free)


def test_products_with_nothing_take_their_launch() -> None:
    nothing = gemm_s(ROUND, rows=0.0, inputs=4096, flop=0, moved_bytes=0, flop_per_s=FLOP_PER_S, bytes_per_s=BYTES_PER_S)
    assert [float(part) for part in nothing] == [0, 0, pytest.approx(1.2e-5)]
