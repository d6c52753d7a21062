"""The best gamma at every point, compared with a loop over single gammas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.best_gamma import evaluate_best_gamma, evaluate_gammas
from magicdec.costmodel.planning.search import GAMMAS
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid

STREAMING, NGRAM = Draft("self", "streaming_llm"), Draft("ngram")
GRID: dict[str, Any] = {"batch_size": [[1], [16], [128]], "context_len": [1000, 8000, 64_000]}
INPUTS: dict[str, tuple[Draft, dict[str, Any]]] = {
    "looked up": (STREAMING, {**GRID, "kv_budget": 512, "curves": published_curves()}),
    "unknown": (NGRAM, GRID),
    "given": (NGRAM, {**GRID, "acceptance_rate": np.array([0.3, 0.95])[:, None, None]}),
    "by position": (STREAMING, {**GRID, "kv_budget": 256, "acceptance_by_position": [0.9, 0.5]}),
    "scalar": (STREAMING, {"batch_size": 64, "context_len": 32_000, "kv_budget": 512, "acceptance_rate": 0.8}),
    "mix": (
        STREAMING,
        {"batch_size": [1, 64], "context_len": [100, 30_000], "context_weights": [0.2, 0.8], "kv_budget": [[64], [512]]}
        | {"curves": published_curves(), "max_context_len": 40_000},
    ),
}


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


@pytest.mark.parametrize("name", INPUTS)
def test_the_best_gamma_is_that_of_a_loop(deployment: Deployment, name: str) -> None:
    draft, inputs = INPUTS[name]
    singles = [evaluate_grid(deployment, draft, gamma=gamma, **inputs).round for gamma in GAMMAS]
    shape = np.broadcast_shapes(*(single.speedup.shape for single in singles))
    merits = np.stack([np.broadcast_to(single.speedup, shape) for single in singles])
    if name == "unknown":
        assert np.isnan(merits).all()
        merits = -np.stack([np.broadcast_to(single.minimum_acceptance_rate(), shape) for single in singles])
    expected = np.array(GAMMAS)[np.nan_to_num(merits, nan=-np.inf).argmax(axis=0)]
    found = evaluate_best_gamma(deployment, draft, **inputs)
    np.testing.assert_array_equal(found.round.gamma, expected)
    np.testing.assert_array_equal(found.round.speedup, evaluate_grid(deployment, draft, gamma=expected, **inputs).round.speedup)
    assert found.round.speedup.shape == shape


def test_the_gammas_are_the_first_axis(deployment: Deployment) -> None:
    e = evaluate_gammas(deployment, STREAMING, gammas=[1, 2], batch_size=[1, 8, 64], context_len=4000, acceptance_rate=0.8)
    assert e.round.speedup.shape == (2, 3)
    assert e.round.gamma.ravel().tolist() == [1, 2]


def test_without_a_draft_gamma_is_zero(deployment: Deployment) -> None:
    e = evaluate_best_gamma(deployment, Draft(), batch_size=[1, 8], context_len=4000)
    assert e.round.gamma == 0
    assert (e.round.speedup == 1).all()


def test_only_the_given_gammas_are_considered(deployment: Deployment) -> None:
    e = evaluate_best_gamma(deployment, STREAMING, gammas=[3], batch_size=1, context_len=4000, acceptance_rate=0.99)
    assert e.round.gamma == 3
