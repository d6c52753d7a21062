"""Acceptance of draft tokens, and how many tokens a row emits: by hand and against a plain Python loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicdec.executor.engine.verification import count_accepted, count_emitted

STOP = 9


def accepted_of(draft: list[int], target: list[int]) -> int:
    (count,) = count_accepted(torch.tensor([draft], dtype=torch.long), torch.tensor([target])).tolist()
    return int(count)


def emitted_of(target: list[int], accepted: int, remaining: int, stops: list[int]) -> tuple[int, bool]:
    stop_tokens = torch.tensor(stops, dtype=torch.long)
    emitted_B, ends_B = count_emitted(torch.tensor([target]), torch.tensor([accepted]), torch.tensor([remaining]), stop_tokens)
    return int(emitted_B[0]), bool(ends_B[0])


@pytest.mark.parametrize(
    ("draft", "target", "wanted"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 0, 4], 2),
        ([1, 2, 3], [1, 0, 3, 4], 1),  # matches after the first mismatch do not count
        ([1, 2, 3], [0, 2, 3, 4], 0),
        ([1, 2, 3], [2, 3, 4, 5], 0),
        ([5, 5, 5], [5, 5, 5, 5], 3),
        ([7], [7, 1], 1),
        ([7], [1, 7], 0),
        ([], [3], 0),
    ],
)
def test_draft_tokens_are_accepted_up_to_the_first_mismatch(draft: list[int], target: list[int], wanted: int) -> None:
    assert accepted_of(draft, target) == wanted


@pytest.mark.parametrize(
    ("target", "accepted", "remaining", "wanted"),
    [
        ([1, 2, 3, 4], 3, 10, (4, False)),
        ([1, 2, 3, 4], 1, 10, (2, False)),
        ([1, 2, 3, 4], 0, 10, (1, False)),
        # a stop token at each place, among three accepted
        ([STOP, 2, 3, 4], 3, 10, (1, True)),
        ([1, STOP, 3, 4], 3, 10, (2, True)),
        ([1, 2, 3, STOP], 3, 10, (4, True)),
        ([STOP, STOP, STOP, STOP], 3, 10, (1, True)),
        # a stop token as the target's own token, and after it
        ([1, STOP, 3, 4], 1, 10, (2, True)),
        ([1, 2, STOP, 4], 1, 10, (2, False)),
        ([1, STOP, 3, 4], 0, 10, (1, False)),
        # the limit, alone and with a stop token before, at and after it
        ([1, 2, 3, 4], 3, 4, (4, True)),
        ([1, 2, 3, 4], 3, 3, (3, True)),
        ([1, 2, 3, 4], 3, 1, (1, True)),
        ([1, 2, 3, 4], 2, 4, (3, False)),
        ([1, STOP, 3, 4], 3, 3, (2, True)),
        ([1, 2, STOP, 4], 3, 3, (3, True)),
        ([1, 2, 3, STOP], 3, 3, (3, True)),
        # a row that is finished
        ([1, 2, 3, 4], 3, 0, (0, True)),
        ([STOP, 2, 3, 4], 3, 0, (0, True)),
    ],
)
def test_a_row_emits_up_to_its_first_stop_token_or_its_limit(
    target: list[int], accepted: int, remaining: int, wanted: tuple[int, bool]
) -> None:
    assert emitted_of(target, accepted, remaining, [STOP]) == wanted
    assert emitted_of(target, accepted, remaining, [8, STOP, 7]) == wanted


def test_without_stop_tokens_only_the_limit_ends_a_row() -> None:
    assert emitted_of([1, STOP, 3, 4], 3, 10, []) == (4, False)
    assert emitted_of([1, STOP, 3, 4], 3, 4, []) == (4, True)


def test_rows_are_counted_independently() -> None:
    draft_BG = torch.tensor([[1, 2], [1, 2], [1, 2], [1, 2]])
    target_BT = torch.tensor([[1, 2, 3], [1, 0, 3], [0, 2, 3], [STOP, 2, 3]])
    accepted_B = count_accepted(draft_BG, target_BT)
    assert accepted_B.tolist() == [2, 1, 0, 0]
    emitted_B, ends_B = count_emitted(target_BT, accepted_B, torch.tensor([5, 2, 0, 5]), torch.tensor([STOP]))
    assert emitted_B.tolist() == [3, 2, 0, 1]
    assert ends_B.tolist() == [False, True, True, True]


def loop(draft: list[int], target: list[int], remaining: int, stops: list[int]) -> tuple[int, int, bool]:
    """Accepted, emitted and whether the row ends, token by token."""
    accepted = 0
    while accepted < len(draft) and draft[accepted] == target[accepted]:
        accepted += 1
    emitted, ended = 0, remaining == 0
    for token in target[: accepted + 1]:
        if ended:
            break
        emitted += 1
        ended = token in stops or emitted == remaining
    return accepted, emitted, ended


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int], list[int]]:
    """Drafts and targets over a small vocabulary, so that they often agree."""
    gamma, batch_size = draw(st.integers(0, 8)), draw(st.integers(1, 4))
    tokens = st.integers(0, 2)
    draft = draw(st.lists(st.lists(tokens, min_size=gamma, max_size=gamma), min_size=batch_size, max_size=batch_size))
    answers = st.lists(tokens, min_size=gamma + 1, max_size=gamma + 1)
    copying = st.booleans()
    target = []
    for row in draft:
        answer = draw(answers)
        target.append([*row, answer[-1]] if draw(copying) else answer)
    remaining = draw(st.lists(st.integers(0, 10), min_size=batch_size, max_size=batch_size))
    return draft, target, remaining, draw(st.lists(tokens, max_size=2))


@settings(deadline=None)
@given(rounds())
def test_counts_equal_those_of_a_plain_loop(case: tuple[list[list[int]], list[list[int]], list[int], list[int]]) -> None:
    draft, target, remaining, stops = case
    draft_BG = torch.tensor(draft, dtype=torch.long).view(len(draft), -1)
    accepted_B = count_accepted(draft_BG, torch.tensor(target))
    stop_tokens = torch.tensor(stops, dtype=torch.long)
    emitted_B, ends_B = count_emitted(torch.tensor(target), accepted_B, torch.tensor(remaining), stop_tokens)
    found = list(zip(accepted_B.tolist(), emitted_B.tolist(), ends_B.tolist(), strict=True))
    assert found == [loop(*row, stops) for row in zip(draft, target, remaining, strict=True)]
