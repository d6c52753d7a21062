"""Measuring acceptance: a point for each sparse budget, and the rate that decoding itself gives."""

from __future__ import annotations

import math

import pytest
from tiny_models import random_prompts, tiny_model

from costmodel.strategy import Strategy
from executor.acceptance import measure_acceptance
from executor.run import Prompt, run_batch

TEXT = random_prompts((100,), seed=4)[0]


def test_there_is_a_point_for_every_budget_below_its_context() -> None:
    told: list[int] = []
    points = measure_acceptance(
        tiny_model(),
        TEXT,
        kv_budgets=(4, 20, 30),
        context_lens=(20, 40),
        rows=3,
        gamma=3,
        max_new_tokens=8,
        progress=told.append,
    )
    assert [(point.context_len, point.kv_budget) for point in points] == [(20, 4), (40, 4), (40, 20), (40, 30)]
    assert all(0 <= point.acceptance_rate <= 1 for point in points)
    assert len({point.acceptance_rate for point in points}) > 1
    assert sum(told) == 6


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_rate_is_that_of_decoding_from_places_spread_over_the_text(rows: int) -> None:
    model = tiny_model()
    (point,) = measure_acceptance(model, TEXT, kv_budgets=(8,), context_lens=(40,), rows=rows, gamma=3, max_new_tokens=12)
    starts = [round(row * 60 / max(rows - 1, 1)) for row in range(rows)]
    prompts = [Prompt(str(start), TEXT[start : start + 40]) for start in starts]
    trace = run_batch(model, None, prompts, Strategy("self", "streaming_llm", 8, 3), max_new_tokens=12).trace
    rate, reached = trace.acceptance_rate, sum(trace.drafted_by_position)
    assert rate is not None
    assert 0 < rate < 1
    assert point.acceptance_rate == rate
    assert point.standard_error == pytest.approx(math.sqrt(rate * (1 - rate) / reached))
