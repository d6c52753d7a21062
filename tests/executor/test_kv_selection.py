"""StreamingLLM reads attention sinks and the most recent entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicdec.executor.kv.selection import SINK_TOKENS, streaming_llm_slots

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("length", "kv_budget", "wanted"),
    [
        (0, 4, []),
        (3, 4, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (10, 1, [9]),
        (10, 2, [0, 9]),
        (10, 4, [0, 1, 8, 9]),
        (10, 5, [0, 1, 7, 8, 9]),
        (100, 40, [*range(16), *range(76, 100)]),
    ],
)
def test_sinks_and_recent_entries_are_read(length: int, kv_budget: int, wanted: list[int]) -> None:
    assert streaming_llm_slots(length, kv_budget, CPU).tolist() == wanted


@settings(deadline=None)
@given(length=st.integers(0, 3000), kv_budget=st.integers(1, 3000))
def test_the_whole_budget_is_used_in_order_and_without_duplicates(length: int, kv_budget: int) -> None:
    slots = streaming_llm_slots(length, kv_budget, CPU)
    assert slots.dtype == torch.long
    assert len(slots) == min(length, kv_budget)
    assert slots.tolist() == sorted(set(slots.tolist()))
    assert all(0 <= slot < length for slot in slots.tolist())


@settings(deadline=None)
@given(kv_budget=st.integers(1, 3000), fraction=st.floats(0, 1))
def test_everything_is_read_when_it_fits(kv_budget: int, fraction: float) -> None:
    length = round(kv_budget * fraction)
    assert streaming_llm_slots(length, kv_budget, CPU).tolist() == list(range(length))


@settings(deadline=None)
@given(kv_budget=st.integers(1, 500), beyond=st.integers(1, 3000))
def test_beyond_the_budget_there_are_sinks_and_the_most_recent_entries(kv_budget: int, beyond: int) -> None:
    length = kv_budget + beyond
    slots = streaming_llm_slots(length, kv_budget, CPU).tolist()
    sinks = min(SINK_TOKENS, kv_budget // 2)
    assert slots[:sinks] == list(range(sinks))
    assert slots[sinks:] == list(range(length - (kv_budget - sinks), length))
    assert slots[-1] == length - 1


def test_there_are_never_more_sinks_than_recent_entries() -> None:
    for kv_budget in range(1, 200):
        slots = streaming_llm_slots(1000, kv_budget, CPU)
        assert int((slots >= 500).sum()) >= int((slots < 500).sum())
