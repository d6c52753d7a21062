"""Policy tables: cell lookup, and errors of malformed tables."""

from __future__ import annotations

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy

SPARSE = Strategy("self", "streaming_llm", 512, 4)
TABLE = PolicyTable(
    batch_sizes=[1, 8, 64],
    context_lens=[1000, 32000],
    strategies=[NO_SPECULATION, SPARSE],
    choice=[[0, 0], [0, 1], [0, 1]],
    predicted_speedup=[[1.0, 1.0], [1.0, 1.4], [1.0, 2.1]],
)


@pytest.mark.parametrize(
    ("batch_size", "context_len", "expected"),
    [
        (1, 32000, NO_SPECULATION),
        (2, 32000, SPARSE),
        (8, 1000, NO_SPECULATION),
        (8, 1001, SPARSE),
        (64, 5000, SPARSE),
        (500, 200000, SPARSE),
    ],
)
def test_a_cell_reaches_up_to_its_own_value(batch_size: int, context_len: int, expected: Strategy) -> None:
    assert TABLE.at(batch_size, context_len) == expected


def test_equal_neighbours_of_a_column_are_merged() -> None:
    assert TABLE.column(32000) == [(1, 1, NO_SPECULATION), (2, 64, SPARSE)]
    assert TABLE.column(500) == [(1, 64, NO_SPECULATION)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_sizes": [8, 1, 64]}, "batch_sizes in ascending order"),
        ({"choice": [[0, 0]]}, "one row of choice per batch size"),
        ({"choice": [[0, 0], [0, 1], [0, 2]]}, "indices below the number of strategies"),
    ],
)
def test_a_malformed_table_is_told_what_is_wrong(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        PolicyTable(**{**vars(TABLE), **changes})
