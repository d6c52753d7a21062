"""The n-gram drafter proposes what followed the last tokens earlier in the text."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_prompts

from magicdec.executor.drafting.drafters import NgramDrafter
from magicdec.executor.engine.sampling import GREEDY, Sampler

CPU = torch.device("cpu")


def proposed(tokens: list[list[int]], gamma: int) -> list[list[int]]:
    longest = max(map(len, tokens))
    tokens_BS = torch.tensor([row + [7] * (longest - len(row) + 5) for row in tokens])
    sampler = Sampler(GREEDY, len(tokens), CPU)
    draft_BG, probs = NgramDrafter().draft(tokens_BS, torch.tensor([len(row) for row in tokens]), gamma, sampler)
    assert probs is None
    found: list[list[int]] = draft_BG.tolist()
    return found


def lookup(tokens: list[int], gamma: int) -> list[int]:
    """The same in plain Python."""
    for n in (3, 2, 1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if len(tokens) > n and tokens[start : start + n] == tokens[-n:]:
                text = tokens[start + n :]
                return [text[i % len(text)] for i in range(gamma)]
    return [tokens[-1]] * gamma


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], [4, 9, 1, 2]),  # a match of three tokens
        ([1, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3], [4, 8, 2, 3]),  # a match of three before a more recent one of two
        ([2, 3, 4, 5, 6, 2, 3, 8, 8, 2, 3], [8, 8, 2, 3]),  # the more recent of two matches
        ([5, 6, 5], [6, 5, 6, 5]),  # reaches the end of the text and wraps around
        ([1, 2, 3], [3, 3, 3, 3]),  # no match
        ([4], [4, 4, 4, 4]),
        ([7, 7], [7, 7, 7, 7]),
    ],
)
def test_the_continuation_of_the_latest_longest_match_is_proposed(tokens: list[int], wanted: list[int]) -> None:
    assert proposed([tokens], 4) == [wanted] == [lookup(tokens, 4)]


def test_rows_of_unequal_length_are_looked_up_each_on_its_own() -> None:
    rows = [row for seed in range(40) for row in random_prompts((1, 2, 3, 9, 30), 4, seed)]
    assert proposed(rows, 6) == [lookup(row, 6) for row in rows]
