"""Running a strategy on prompts: what is refused, what is compared, and how several batches become one record."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import continue_without_cache, logits_TV, perturbed, random_prompts, tiny_model

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.executor import generate as run
from magicdec.executor.drafting.drafters import ModelDrafter
from magicdec.executor.engine.batch import Batch, Prompt
from magicdec.executor.engine.round_log import Trace, merge
from magicdec.executor.generate import (
    RUNNABLE,
    batches,
    check_prompts,
    check_runnable,
    first_difference,
    log_probability_gap,
    make_drafter,
    run_batch,
)
from magicdec.executor.kv.attention import PrefillAttention
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.transformer import Transformer

SELF = Strategy("self", "streaming_llm", 8, 4)
SMALL = Strategy("model", "full", None, 4, "small")


def prompts_of(*lengths: int) -> list[Prompt]:
    return [Prompt(f"p{row}", tokens) for row, tokens in enumerate(random_prompts(lengths))]


# What is refused.


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_what_is_listed_as_runnable_is_not_refused(kind: str, policy: str) -> None:
    target = tiny_model()
    kv_dtype = "int8" if (kind, policy) == ("self", "full") else None
    kv_budget = None if policy == "full" else 8
    strategy = Strategy(kind, policy, kv_budget, 0 if kind == "none" else 4, "small" if kind == "model" else None, kv_dtype)
    check_runnable(strategy, target, perturbed(target, 0.1) if kind == "model" else None)


def test_a_draft_that_is_not_listed_is_refused_and_the_listed_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RUNNABLE", (("none", "full"), ("model", "full")))
    with pytest.raises(InputError) as caught:
        check_runnable(SELF, tiny_model(), None)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("plan", "strategy")
    assert "none with full" in problem.expected
    assert "model with full" in problem.expected
    assert problem.found == str(SELF)


@pytest.mark.parametrize(
    ("strategy", "key"),
    [
        (Strategy("self", "pq", 8, 4), "strategy"),
        (Strategy("eagle3", gamma=4), "strategy"),
        (Strategy("mtp", gamma=4), "strategy"),
        (Strategy("self", "full", None, 4, weight_dtype="int8"), "strategy.weight_dtype"),
        (Strategy("self", "snapkv", 8, 4, kv_dtype="int8"), "strategy.kv_dtype"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_in_one_sentence(strategy: Strategy, key: str) -> None:
    with pytest.raises(InputError) as caught:
        check_runnable(strategy, tiny_model(), None)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("plan", key)


@pytest.mark.parametrize("vocab_size", [30, 32])
def test_a_draft_model_with_another_vocabulary_is_refused(vocab_size: int) -> None:
    with pytest.raises(InputError) as caught:
        check_runnable(SMALL, tiny_model(), tiny_model(vocab_size=vocab_size))
    (problem,) = caught.value.problems
    assert problem.key == "vocab_size"
    assert "31" in problem.expected
    assert problem.found == str(vocab_size)


def test_an_empty_prompt_is_named() -> None:
    with pytest.raises(InputError) as caught:
        check_prompts([Prompt("good", [1]), Prompt("hollow", [])], tiny_model(), 5, "texts.jsonl")
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("texts.jsonl", "hollow")
    assert "empty" in problem.found


def test_a_prompt_too_long_for_the_model_is_named_with_both_lengths() -> None:
    model = tiny_model(max_context_len=50)
    check_prompts([Prompt("fits", [1] * 40)], model, 10, "texts.jsonl")
    with pytest.raises(InputError) as caught:
        check_prompts([Prompt("fits", [1] * 40), Prompt("long", [1] * 41)], model, 10, "texts.jsonl")
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("texts.jsonl", "long")
    assert "40 tokens" in problem.expected
    assert "50 positions" in problem.expected
    assert problem.found == "41 tokens"


def test_every_bad_prompt_is_named_at_once() -> None:
    bad = [Prompt("a", []), Prompt("b", [1]), Prompt("c", [1] * 300), Prompt("d", [])]
    with pytest.raises(InputError) as caught:
        check_prompts(bad, tiny_model(), 5, "-")
    assert [problem.key for problem in caught.value.problems] == ["a", "c", "d"]


@pytest.mark.parametrize("strategy", [NO_SPECULATION, SELF, SMALL, Strategy("model", "streaming_llm", 8, 4, "small")], ids=str)
def test_a_prompt_that_just_fits_can_be_continued(strategy: Strategy) -> None:
    """A round looks up to gamma tokens beyond the last one that is emitted, where the model knows no positions."""
    target = tiny_model(max_context_len=50)
    prompts = prompts_of(38, 44)
    check_prompts(prompts, target, 6, "-")
    result = run_batch(target, perturbed(target, 0.06), prompts, strategy, max_new_tokens=6)
    assert result.outputs == [continue_without_cache(target, prompt.tokens, 6) for prompt in prompts]


def test_a_draft_model_with_too_few_positions_is_bad_input_or_does_no_harm() -> None:
    target = tiny_model()
    draft = tiny_model(seed=1, max_context_len=40)
    prompts = prompts_of(30, 64)
    refusal = outputs = None
    try:
        check_runnable(SMALL, target, draft)
        check_prompts(prompts, target, 20, "-")
        outputs = run_batch(target, draft, prompts, SMALL, max_new_tokens=20).outputs
    except InputError as error:
        refusal = str(error)
    if refusal is None:
        assert outputs == [continue_without_cache(target, prompt.tokens, 20) for prompt in prompts]
    else:
        assert "position" in refusal


# Drafters and batches.


def test_plain_decoding_has_no_drafter_and_the_others_read_the_cache_they_should() -> None:
    target, draft = tiny_model(), tiny_model(seed=1, num_layers=1)
    batch = Batch(target, prompts_of(3, 1), max_new_tokens=5, gamma=4)
    batch.prefill()
    assert make_drafter(NO_SPECULATION, batch, None) is None
    own = make_drafter(SELF, batch, None)
    assert isinstance(own, ModelDrafter)
    assert own.model is target
    assert own.cache is batch.cache
    other = make_drafter(SMALL, batch, draft)
    assert isinstance(other, ModelDrafter)
    assert other.model is draft
    assert other.cache is not batch.cache
    assert other.cache.k_LBKSH.shape[:2] == (1, 2)


def test_prompts_are_taken_in_order_so_many_at_a_time() -> None:
    prompts = prompts_of(1, 2, 3, 4, 5)
    assert [[prompt.id for prompt in part] for part in batches(prompts, 2)] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    assert [len(part) for part in batches(prompts, 5)] == [len(part) for part in batches(prompts, 9)] == [5]
    assert list(batches([], 2)) == []


@pytest.mark.parametrize("strategy", [NO_SPECULATION, SELF, SMALL], ids=str)
def test_comparing_runs_both_from_the_same_prompts(strategy: Strategy) -> None:
    target = tiny_model()
    prompts = prompts_of(3, 20)
    expected = [continue_without_cache(target, prompt.tokens, 12) for prompt in prompts]
    told: list[int] = []
    read: list[int] = []
    result = run_batch(
        target,
        perturbed(target, 0.06),
        prompts,
        strategy,
        max_new_tokens=12,
        compare=True,
        prefilled=read.append,
        progress=told.append,
    )
    assert result.outputs == result.plain_outputs == expected
    assert result.plain_trace is not None
    assert result.plain_trace.drafted_by_position == []
    assert result.plain_trace.emitted == [2] * 12
    assert len(result.trace.drafted_by_position) == strategy.gamma
    assert read == [0, 1], "the prompts are read once for both"
    assert told == [*result.plain_trace.emitted, *result.trace.emitted]
    assert sum(told) == 2 * 24


def test_without_comparing_nothing_is_compared() -> None:
    result = run_batch(tiny_model(), None, prompts_of(3), SELF, max_new_tokens=4)
    assert result.plain_outputs is None
    assert result.plain_trace is None
    assert result.prefill_s > 0


def test_stop_tokens_apply_to_both_of_a_comparison() -> None:
    target = tiny_model()
    prompts = prompts_of(20, 21)
    whole = [continue_without_cache(target, prompt.tokens, 12) for prompt in prompts]
    stop = whole[0][3]
    result = run_batch(target, None, prompts, SELF, max_new_tokens=12, stop_tokens=[stop], compare=True)
    assert result.outputs == result.plain_outputs
    assert result.outputs[0] == whole[0][: whole[0].index(stop) + 1]


def test_repeats_run_both_again_and_keep_one_trace_of_each() -> None:
    target = tiny_model()
    prompts = prompts_of(3, 20)
    told: list[int] = []
    read: list[int] = []
    result = run_batch(
        target, None, prompts, SELF, max_new_tokens=6, compare=True, repeats=3, prefilled=read.append, progress=told.append
    )
    assert result.outputs == result.plain_outputs == [continue_without_cache(target, prompt.tokens, 6) for prompt in prompts]
    assert read == [0, 1]
    assert sum(told) == 3 * 2 * 12
    assert sum(result.trace.emitted) == 12


def test_one_trace_is_made_of_several() -> None:
    first = Trace([0.1, 0.2], [1.0, 2.0], [1.5, 2.5], [4, 2], [2, 1], [3, 2], [2, 1], [1.5, 4.0], [3, 3])
    second = Trace([0.3], [3.0], [3.5], [5], [2], [2, 2], [2, 1], [3.5, 3.5], [2, 3])
    merged = merge([first, second])
    assert merged == Trace(
        [0.1, 0.2, 0.3],
        [1.0, 2.0, 3.0],
        [1.5, 2.5, 3.5],
        [4, 2, 5],
        [2, 1, 2],
        [5, 4],
        [4, 2],
        [1.5, 4.0, 3.5, 3.5],
        [3, 3, 2, 3],
    )
    assert merged.acceptance_rate == 6 / 9
    assert merged.mean_acceptance_length == 1 + 6 / 5
    assert merged.decode_s == 7.5
    assert merged.tpot_s == pytest.approx((1.5 / 3 + 4.0 / 3 + 3.5 / 2 + 3.5 / 3) / 4)
    assert merge([first]) == first
    assert first.drafted_by_position == [3, 2], "what is merged is left as it was"


def test_merged_traces_of_plain_decoding_stay_without_a_draft() -> None:
    plain = Trace([0.0], [1.0], [1.5], [2], [2], [], [], [1.5, 1.5], [1, 1])
    assert merge([plain, plain]).acceptance_rate is None
    assert merge([plain, plain]).row_tokens == [1, 1, 1, 1]


# What is said about differences.


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


def test_the_log_probability_gap_is_that_to_the_favourite() -> None:
    model = tiny_model()
    tokens = random_prompts((17,))[0]
    probs_V = logits_TV(model, tokens)[-1].softmax(-1)
    gaps = [log_probability_gap(model, tokens, token) for token in range(31)]
    assert min(gaps) == 0.0 == gaps[int(probs_V.argmax())]
    assert all(gap >= 0 for gap in gaps)
    assert gaps == pytest.approx([math.log(float(probs_V.max() / prob)) for prob in probs_V])


def windowed_favourite(model: Transformer, tokens: list[int]) -> int:
    cache = KvCache(model.config, 1, len(tokens), model.device, model.dtype)
    attend = PrefillAttention(cache, 0, 0, model.config.sliding_window)
    with torch.inference_mode():
        x_BTD = model(torch.tensor([tokens]), torch.arange(len(tokens))[None], attend)
        return int(model.logits(x_BTD[:, -1]).argmax())


def test_the_log_probability_gap_respects_a_sliding_window() -> None:
    model = tiny_model(seed=2, family="mistral", sliding_window=5)
    texts = random_prompts((4, 12, 30, 31, 32))
    assert [log_probability_gap(model, tokens, windowed_favourite(model, tokens)) for tokens in texts] == [0.0] * 5
