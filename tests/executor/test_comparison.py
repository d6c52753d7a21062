"""Comparing a strategy with autoregressive decoding: in turns on the same prompts, and where outputs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import pytest
import torch
from decoding import requests_of
from tiny_models import continue_without_cache, logits_TV, perturbed, random_prompts, tiny_model

from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundRecord
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import make_batch
from magicdec.executor.kv.attention import PrefillAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.measuring.comparison import Comparison, compare, first_difference, log_probability_gap
from magicdec.executor.model.transformer import Transformer

SELF = Strategy("self", "streaming_llm", 8, 4)
SMALL = Strategy("model", "full", None, 4, "small")


def compared(
    target: Transformer, prompts: Sequence[Sequence[int]], strategy: Strategy, settings: GenerationSettings, repeats: int = 1
) -> tuple[Comparison, list[Request], list[RoundRecord]]:
    """A comparison, the requests that were prefilled for it, and the rounds that it reported."""
    read: list[Request] = []
    told: list[RoundRecord] = []
    batch = make_batch(target, requests_of(prompts), strategy, settings)
    batch.prefill(read.append)
    return compare(batch, perturbed(target, 0.06), strategy, repeats=repeats, on_round=told.append), read, told


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("strategy", [NO_SPECULATION, SELF, SMALL], ids=str)
def test_comparing_runs_both_from_the_same_prompts(strategy: Strategy, repeats: int) -> None:
    target, prompts = tiny_model(), random_prompts((3, 20))
    expected = [continue_without_cache(target, prompt, 12) for prompt in prompts]
    found, read, told = compared(target, prompts, strategy, GenerationSettings(12), repeats)
    assert found.log.outputs == found.autoregressive.outputs == expected
    assert found.autoregressive.drafted_by_position == []
    assert found.autoregressive.emitted == [2] * 12
    assert len(found.log.drafted_by_position) == strategy.gamma
    assert len(read) == 2, "the prompts are read once for both"
    assert [one.emitted for one in told] == [*found.autoregressive.emitted, *found.log.emitted] * repeats
    assert sum(found.log.emitted) == 24


def test_what_is_to_be_done_between_the_turns_is_done_before_between_and_after_them() -> None:
    batch = make_batch(tiny_model(), requests_of(random_prompts((20,))), SELF, GenerationSettings(6))
    batch.prefill()
    seen: list[str] = []
    compare(
        batch,
        None,
        SELF,
        repeats=2,
        on_round=lambda one: seen.append("speculative" if one.gamma else "plain"),
        between=lambda: seen.append("pause"),
    )
    turn = ["pause", "plain", "pause", "speculative"]
    assert [name for name, _ in groupby(seen)] == [*turn, *turn, "pause"]


def test_stop_tokens_apply_to_both_of_a_comparison() -> None:
    target, prompts = tiny_model(), random_prompts((20, 21))
    whole = [continue_without_cache(target, prompt, 12) for prompt in prompts]
    stop = whole[0][3]
    found, _, _ = compared(target, prompts, SELF, GenerationSettings(12, (stop,)))
    assert found.log.outputs == found.autoregressive.outputs
    assert found.log.outputs[0] == whole[0][: whole[0].index(stop) + 1]


@pytest.mark.parametrize(("policy", "selects"), [("topk", True), ("quest", True), ("snapkv", False), ("streaming_llm", False)])
def test_selecting_is_timed_where_every_draft_step_selects(policy: str, selects: bool) -> None:
    prompts = [list(range(30)), list(range(20))]
    found, _, _ = compared(tiny_model(), prompts, Strategy("self", policy, 8, 2), GenerationSettings(5))
    assert (found.select_step_s is not None) == selects
    assert found.log.outputs == found.autoregressive.outputs
    assert found.select_step_s is None or 0 < found.select_step_s < 1


# Where outputs differ.


@pytest.mark.parametrize(
    ("outputs", "expected", "wanted"),
    [
        ([[1, 2], [3]], [[1, 2], [3]], None),
        ([], [], None),
        ([[]], [[]], None),
        ([[1, 2], [3]], [[1, 0], [4]], (0, 1)),
        ([[1, 2], [3]], [[1, 2], [4]], (1, 0)),
        ([[1, 2], [3]], [[1, 2, 5], [3]], (0, 2)),
        ([[1, 2, 5], [3]], [[1, 2], [3]], (0, 2)),
        ([[1], []], [[1], [7]], (1, 0)),
        ([[9, 2]], [[1, 2, 3]], (0, 0)),
    ],
)
def test_the_first_difference_is_found(outputs: list[list[int]], expected: list[list[int]], wanted: tuple[int, int] | None) -> None:
    assert first_difference(outputs, expected) == wanted


def test_comparing_different_numbers_of_rows_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        first_difference([[1]], [[1], [2]])


def test_the_log_probability_gap_is_that_to_the_argmax() -> None:
    model = tiny_model()
    tokens = random_prompts((17,))[0]
    probs_V = logits_TV(model, tokens)[-1].softmax(-1)
    gaps = [log_probability_gap(model, tokens, token) for token in range(31)]
    assert min(gaps) == 0.0 == gaps[int(probs_V.argmax())]
    assert all(gap >= 0 for gap in gaps)
    assert gaps == pytest.approx([math.log(float(probs_V.max() / prob)) for prob in probs_V])


def windowed_argmax(model: Transformer, tokens: list[int]) -> int:
    cache = KvCache(model.config, 1, len(tokens), model.device, model.dtype)
    attend = PrefillAttention(cache, 0, 0, model.config.sliding_window)
    with torch.inference_mode():
        x_BTD = model(torch.tensor([tokens]), torch.arange(len(tokens))[None], attend)
        return int(model.logits(x_BTD[:, -1]).argmax())


def test_the_log_probability_gap_respects_a_sliding_window() -> None:
    model = tiny_model(seed=2, family="mistral", sliding_window=5)
    texts = random_prompts((4, 12, 30, 31, 32))
    assert [log_probability_gap(model, tokens, windowed_argmax(model, tokens)) for tokens in texts] == [0.0] * 5
