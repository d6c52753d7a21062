"""`magicdec capacity`: the highest concurrency within limits, and the grid around it."""

from __future__ import annotations

import re

import pytest
from command_line import answered, refused, shown

import magicdec

ASKED = "capacity --model llama-3.1-8b --hardware h100-sxm --output-len 256 --batch-size 8-64 --context-len 2k-8k".split()
LIMITS = ["--max-tpot", "12ms", "--max-ttft", "400ms"]


def test_the_highest_concurrency_holds_the_limits_and_one_more_does_not() -> None:
    cells = answered(*ASKED, *LIMITS)["cells"]
    assert {cell["batch_size"] for cell in cells} == {8, 16, 32, 64}
    for context, most in {(cell["context_len"], cell["highest_batch_size"]) for cell in cells}:
        ask = {"context_len": context, "output_len": 256, "max_tpot_s": 0.012}
        held = magicdec.plan("llama-3.1-8b", "h100-sxm", batch_size=most, **ask)
        assert held.prediction.predicted_speculative_tpot_s <= 0.012
        with pytest.raises(magicdec.InputError):
            magicdec.plan("llama-3.1-8b", "h100-sxm", batch_size=most + 1, **ask)
    for cell in cells:
        within = cell["fits_in_memory"] and cell["predicted_tpot_s"] <= 0.012 and cell["predicted_ttft_s"] <= 0.4
        assert cell["passes"] == within
        assert cell["passes"] == (cell["batch_size"] <= cell["highest_batch_size"])


def test_the_table_marks_what_is_beyond_a_limit() -> None:
    words = shown(*ASKED, *LIMITS)
    cells = answered(*ASKED, *LIMITS)["cells"]
    assert len(re.findall(r"\d[a-z]?!", words)) == sum(not cell["passes"] and cell["fits_in_memory"] for cell in cells)
    assert max(map(len, words.splitlines())) <= 80


def test_limits_nobody_can_meet_are_named_with_by_how_much() -> None:
    assert re.search(r"--max-ttft: expected at least .* \(\d+\.\d\d times the limit\)", refused(*ASKED, "--max-ttft", "1ms"))
    assert re.search(r"--max-tpot: expected at least .* \(\d+\.\d\d times the limit\)", refused(*ASKED, "--max-tpot", "1ms"))
