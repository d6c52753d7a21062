"""Running a strategy on requests: refusals, the longest prompt that fits, drafters and batches."""

from __future__ import annotations

import pytest
from decoding import requests_of, strategy_of
from tiny_models import continue_without_cache, perturbed, random_prompts, tiny_model

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.executor import generate
from magicdec.executor.drafting.drafters import ModelDrafter
from magicdec.executor.drafting.factory import make_drafter
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE, batches, check_requests, check_runnable, run

SELF = Strategy("self", "streaming_llm", 8, 4)
SMALL = Strategy("model", "full", None, 4, "small")


def random_requests(*lengths: int) -> list[Request]:
    return requests_of(random_prompts(lengths))


# Refusals.


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_runnable_strategies_are_not_refused(kind: str, policy: str) -> None:
    target = tiny_model()
    check_runnable(strategy_of(kind, policy, 4), target, perturbed(target, 0.1) if kind == "model" else None)


def test_an_unlisted_draft_is_refused_and_the_listed_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "RUNNABLE", (("none", "full"), ("model", "full")))
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
def test_unsupported_strategies_are_refused_by_key(strategy: Strategy, key: str) -> None:
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


def test_a_limit_that_leaves_no_room_for_a_prompt_is_refused_by_the_name_of_the_parameter() -> None:
    with pytest.raises(InputError, match=r"^max_new_tokens: expected less than the model's context of 50 tokens, found 50$"):
        check_requests([Request("a", [1])], tiny_model(max_context_len=50), 50, "texts.jsonl")


def test_a_token_beyond_the_vocabulary_is_named() -> None:
    with pytest.raises(InputError, match="expected token ids below the vocabulary size of 31, found 31"):
        check_requests([Request("a", [1, 31])], tiny_model(), 5, "texts.jsonl")


def test_an_empty_prompt_is_named() -> None:
    with pytest.raises(InputError) as caught:
        check_requests([Request("good", [1]), Request("hollow", [])], tiny_model(), 5, "texts.jsonl")
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("texts.jsonl", "hollow")
    assert "empty" in problem.found


def test_a_prompt_too_long_for_the_model_is_named_with_both_lengths() -> None:
    model = tiny_model(max_context_len=50)
    check_requests([Request("fits", [1] * 40)], model, 10, "texts.jsonl")
    with pytest.raises(InputError) as caught:
        check_requests([Request("fits", [1] * 40), Request("long", [1] * 41)], model, 10, "texts.jsonl")
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("texts.jsonl", "long")
    assert "40 tokens" in problem.expected
    assert "50 positions" in problem.expected
    assert problem.found == "41 tokens"


def test_every_bad_prompt_is_named_at_once() -> None:
    bad = [Request("a", []), Request("b", [1]), Request("c", [1] * 300), Request("d", [])]
    with pytest.raises(InputError) as caught:
        check_requests(bad, tiny_model(), 5, "-")
    assert [problem.key for problem in caught.value.problems] == ["a", "c", "d"]


@pytest.mark.parametrize("strategy", [NO_SPECULATION, SELF, SMALL, Strategy("model", "streaming_llm", 8, 4, "small")], ids=str)
def test_a_prompt_that_just_fits_can_be_continued(strategy: Strategy) -> None:
    """A round drafts up to gamma tokens beyond the last emitted one, where the model has no positions."""
    target = tiny_model(max_context_len=50)
    requests = random_requests(38, 44)
    check_requests(requests, target, 6, "-")
    result = run(target, perturbed(target, 0.06), requests, strategy, GenerationSettings(6))
    assert result.outputs == [continue_without_cache(target, request.tokens, 6) for request in requests]
    assert result.prefill_s > 0


def test_a_draft_model_with_too_few_positions_is_refused() -> None:
    target = tiny_model()
    draft = tiny_model(seed=1, max_context_len=40)
    requests = random_requests(30, 64)
    check_runnable(SMALL, target, draft)
    check_requests(requests, target, 20, "-")
    with pytest.raises(InputError, match=r"draft model: max_position_embeddings: expected at least 84 positions, found 40"):
        run(target, draft, requests, SMALL, GenerationSettings(20))


# Drafters and batches.


def test_autoregressive_decoding_has_no_drafter_and_the_others_read_the_cache_they_should() -> None:
    target, draft = tiny_model(), tiny_model(seed=1, num_layers=1)
    batch = Batch(target, random_requests(3, 1), GenerationSettings(5), gamma=4)
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


def test_batches_are_cut_in_order_and_the_last_may_be_smaller() -> None:
    requests = random_requests(1, 2, 3, 4, 5)
    assert [[request.id for request in part] for part in batches(requests, 2)] == [["0", "1"], ["2", "3"], ["4"]]
    assert [len(part) for part in batches(requests, 5)] == [len(part) for part in batches(requests, 9)] == [5]
    assert list(batches([], 2)) == []
