"""The all-reduce law: both algorithms computed by hand, their crossover, monotonicity and bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import laws

from magicdec.costmodel.kernels.collectives import AllreduceLaw, allreduce_s

ROUND = AllreduceLaw(
    latency_s=1e-5,
    peer_latency_s=1e-6,
    one_shot_efficiency=0.5,
    two_shot_efficiency=0.25,
    two_shot_latency_factor=2.0,
    pipeline_fill=0.0,
)
LINK = 1e11
gpus = st.sampled_from([2, 4, 8, 16])
payloads = st.floats(0, 1e9)


def seconds(law: AllreduceLaw, payload: float, num_gpus: int, link: float = LINK) -> float:
    return float(allreduce_s(law, payload, num_gpus, link))


def test_a_small_payload_is_read_from_every_peer_at_once() -> None:
    assert seconds(ROUND, 1000, 8) == pytest.approx(1e-5 + 7e-6 + 7 * 1000 / 0.5e11, rel=1e-12)


def test_a_large_payload_is_exchanged_twice_a_share() -> None:
    assert seconds(ROUND, 1e8, 8) == pytest.approx(2 * 1.7e-5 + 2 * 7 / 8 * 1e8 / 0.25e11, rel=1e-12)


def test_filling_the_pipeline_adds_the_root_of_latency_and_transfer() -> None:
    law, wire_s = replace(ROUND, pipeline_fill=2.0), 2 * 7 / 8 * 1e8 / 0.25e11
    assert seconds(law, 1e8, 8) == pytest.approx(3.4e-5 + wire_s + 2 * np.sqrt(3.4e-5 * wire_s), rel=1e-12)


def test_the_ways_cross_where_they_take_as_long() -> None:
    """7 n / 0.5e11 + L = 1.75 n / 0.25e11 + 2 L, at n = L / 7e-11."""
    crossing = 1.7e-5 / 7e-11
    one, two = replace(ROUND, two_shot_efficiency=0.02, two_shot_latency_factor=6.0), replace(ROUND, one_shot=False)
    for payload in (0.5, 0.99, 1.01, 3.0):
        fastest = seconds(one if payload < 1 else two, payload * crossing, 8)
        assert seconds(ROUND, payload * crossing, 8) == pytest.approx(fastest, rel=1e-12), payload
    assert seconds(one, crossing, 8) == pytest.approx(seconds(two, crossing, 8), rel=1e-9)


def test_a_library_without_one_shot_takes_two() -> None:
    assert seconds(replace(ROUND, one_shot=False), 0, 8) == pytest.approx(2 * 1.7e-5)


def test_a_shared_host_is_split_over_the_gpus() -> None:
    law = replace(ROUND, shared_bytes_per_s=8e9)
    assert seconds(law, 1e8, 8) == pytest.approx(2 * 1.7e-5 + 2 * 7 / 8 * 1e8 / 1e9, rel=1e-12)
    assert seconds(law, 1000, 8) == pytest.approx(min(1.7e-5 + 7 * 1000 / 1e9, 3.4e-5 + 2 * 7 / 8 * 1000 / 1e9), rel=1e-12)


@given(laws(AllreduceLaw), st.floats(0, 1e12))
def test_one_gpu_reduces_nothing(law: AllreduceLaw, payload: float) -> None:
    assert allreduce_s(law, np.array([0.0, payload]), 1, LINK).tolist() == [0, 0]


@given(laws(AllreduceLaw), payloads, gpus)
def test_no_allreduce_beats_the_links_or_its_latency(law: AllreduceLaw, payload: float, num_gpus: int) -> None:
    assert seconds(law, payload, num_gpus) >= 2 * (num_gpus - 1) / num_gpus * payload / LINK * (1 - 1e-12)
    assert seconds(law, payload, num_gpus) >= law.latency_s + law.peer_latency_s * (num_gpus - 1)


@given(laws(AllreduceLaw), payloads, payloads, gpus)
def test_a_larger_payload_or_node_never_takes_less(law: AllreduceLaw, one: float, other: float, num_gpus: int) -> None:
    small, large = sorted((one, other))
    assert seconds(law, small, num_gpus) <= seconds(law, large, num_gpus) * (1 + 1e-12)
    assert seconds(law, small, num_gpus) <= seconds(law, small, 2 * num_gpus) * (1 + 1e-12)


@given(laws(AllreduceLaw), payloads, gpus, st.floats(1, 100))
def test_faster_links_never_slow(law: AllreduceLaw, payload: float, num_gpus: int, factor: float) -> None:
    before = seconds(law, payload, num_gpus) * (1 + 1e-12)
    assert seconds(law, payload, num_gpus, factor * LINK) <= before
    for name in ("one_shot_efficiency", "two_shot_efficiency"):
        assert seconds(replace(law, **{name: min(factor * getattr(law, name), 1.0)}), payload, num_gpus) <= before
    assert seconds(replace(law, one_shot=True), payload, num_gpus) <= before
