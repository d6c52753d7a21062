"""Measuring acceptance: one point per sparse budget, with the rate that decoding gives."""

from __future__ import annotations

import math

import pytest
from tiny_models import random_prompts, tiny_model

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import run
from magicdec.executor.measuring.acceptance import AcceptanceGrid, measure_acceptance

TEXT = random_prompts((100,), seed=4)[0]


def test_there_is_a_point_for_every_budget_below_its_context() -> None:
    grid = AcceptanceGrid((4, 20, 30), (20, 40), rows=3, gamma=3, max_new_tokens=8)
    points = list(measure_acceptance(tiny_model(), TEXT, grid))
    assert [(point.context_len, point.kv_budget) for point in points] == [(20, 4), (40, 4), (40, 20), (40, 30)]
    assert all(0 <= point.acceptance_rate <= 1 for point in points)
    assert len({point.acceptance_rate for point in points}) > 1
    assert len(points) == grid.num_points


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_rate_is_that_of_decoding_from_evenly_spaced_places(rows: int) -> None:
    model = tiny_model()
    (point,) = measure_acceptance(model, TEXT, AcceptanceGrid((8,), (40,), rows=rows, gamma=3, max_new_tokens=12))
    starts = [round(row * 60 / max(rows - 1, 1)) for row in range(rows)]
    requests = [Request(str(start), TEXT[start : start + 40]) for start in starts]
    log = run(model, None, requests, Strategy("self", "streaming_llm", 8, 3), GenerationSettings(12)).log
    rate, reached = log.acceptance_rate, sum(log.drafted_by_position)
    assert rate is not None
    assert 0 < rate < 1
    assert point.acceptance_rate == rate
    assert point.standard_error == pytest.approx(math.sqrt(rate * (1 - rate) / reached))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["streaming_llm", "snapkv", "topk", "quest"])
def test_every_policy_is_measured_as_itself(policy: str) -> None:
    model = tiny_model()
    grid = AcceptanceGrid((4, 40), (60,), rows=4, gamma=3, max_new_tokens=24, kv_policy=policy)
    points = list(measure_acceptance(model, TEXT, grid))
    requests = [Request(str(start), TEXT[start : start + 60]) for start in (0, 13, 26, 39)]
    for point in points:
        strategy = Strategy("self", policy, point.kv_budget, 3)
        assert point.acceptance_rate == run(model, None, requests, strategy, GenerationSettings(24)).log.acceptance_rate
    assert 0 < points[0].acceptance_rate < points[1].acceptance_rate < 1


def test_quantised_entries_are_measured_once_per_context_and_more_bits_are_accepted_more() -> None:
    rates = {}
    for kv_dtype in ("int8", "int4", "fp8"):
        grid = AcceptanceGrid((4, 16), (30, 60), rows=4, gamma=3, max_new_tokens=24, kv_policy="full", kv_dtype=kv_dtype)
        points = list(measure_acceptance(tiny_model(), TEXT, grid))
        assert [(point.kv_budget, point.context_len) for point in points] == [(None, 30), (None, 60)]
        rates[kv_dtype] = points[1].acceptance_rate
    assert rates["int4"] < rates["fp8"] <= 1
    assert rates["int4"] < rates["int8"] <= 1
