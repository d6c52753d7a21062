"""Sampled text through the whole executor: every draft keeps the target's distribution, and a request's text is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from decoding import decode_all, decode_one_batch, strategy_of
from scipy import stats
from tiny_models import logits_TV, perturbed, random_prompts, tiny_model

from magicdec.executor.drafting.factory import make_policy
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.sampling import Sampling, logits_to_probs
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE, run
from magicdec.executor.model.transformer import Transformer

VOCABULARY = 5
NEW_TOKENS = 3
ROWS = 2000
PROMPT = random_prompts((24,), VOCABULARY)[0]
# False-alarm rate of one draft and setting, over the choice of seeds; the seeds are fixed.
FALSE_ALARM = 1e-6
SETTINGS = [Sampling(1.3, seed=1), Sampling(1.0, top_p=0.85, min_p=0.02, seed=2)]


@cache
def models() -> tuple[Transformer, Transformer]:
    target = tiny_model(seed=4, vocab_size=VOCABULARY, num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, d_ff=16)
    return target, perturbed(target, 0.3)


@cache
def prefilled(sampling: Sampling) -> Batch:
    """Many rows with the same prompt, prefilled once for all tests; each test rewinds them."""
    requests = [Request(str(row), PROMPT) for row in range(ROWS)]
    batch = Batch(models()[0], requests, GenerationSettings(NEW_TOKENS, sampling=sampling), gamma=2)
    batch.prefill()
    return batch


def joint(model: Transformer, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of each continuation, by enumeration without a cache."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW_TOKENS):
        longer = {}
        for tokens, probability in found.items():
            for token, p in enumerate(logits_to_probs(logits_TV(model, [*PROMPT, *tokens])[-1], sampling).tolist()):
                if p > 0:
                    longer[(*tokens, token)] = probability * p
        found = longer
    return found


def assert_follows_the_joint_distribution(outputs: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Chi-square test over all continuations; the rare ones are pooled into one class."""
    law = joint(models()[0], sampling)
    counts = dict.fromkeys(law, 0)
    for output in outputs:
        counts[tuple(output)] += 1  # a KeyError here means a continuation of probability zero
    rare = [tokens for tokens, p in law.items() if p * len(outputs) < 5]
    seen = [counts[tokens] for tokens in law if tokens not in rare] + [sum(counts[tokens] for tokens in rare)] * bool(rare)
    wanted = [law[tokens] for tokens in law if tokens not in rare] + [sum(law[tokens] for tokens in rare)] * bool(rare)
    assert len(wanted) > 10
    assert stats.chisquare(seen, [p * len(outputs) / sum(wanted) for p in wanted]).pvalue > FALSE_ALARM


# Every draft with one of the settings, in turns; n-grams (certain drafts) and a full draft model (drawn ones) with both.
DISTRIBUTION_CASES = [
    (kind, policy, sampling)
    for index, (kind, policy) in enumerate(RUNNABLE)
    for sampling in (SETTINGS if (kind, policy) in {("ngram", "full"), ("model", "full")} else SETTINGS[index % 2 :][:1])
]


def assert_a_draft_keeps_the_distribution(kind: str, policy: str, sampling: Sampling) -> None:
    batch = prefilled(sampling)
    batch.rewind()
    log = decode_all(batch, make_policy(strategy_of(kind, policy, 2, 6), batch, models()[1]))
    assert_follows_the_joint_distribution(log.outputs, sampling)
    if kind != "none":
        assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy", "sampling"), DISTRIBUTION_CASES)
def test_three_tokens_follow_the_joint_distribution_of_the_target(kind: str, policy: str, sampling: Sampling) -> None:
    assert_a_draft_keeps_the_distribution(kind, policy, sampling)


@pytest.mark.slow
def test_strategies_that_take_turns_keep_the_distribution() -> None:
    """After a rejection another drafter reuses the random numbers of the same positions; they must not have influenced anything."""
    for sampling in SETTINGS:
        batch = prefilled(sampling)
        batch.rewind()
        turns = [
            make_policy(strategy_of(kind, policy, gamma, 6), batch, models()[1])
            for kind, policy, gamma in (("model", "topk", 2), ("ngram", "full", 1), ("self", "quest", 2))
        ]
        calls = iter(range(100))
        policy = SimpleNamespace(select=lambda active, context: turns[next(calls) % 3].select(active, context))  # noqa: B023
        log = decode_all(batch, policy)
        assert_follows_the_joint_distribution(log.outputs, sampling)
        assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0
        assert len(log.rounds) == 3


@pytest.mark.slow
def test_the_check_notices_acceptance_that_is_too_generous(monkeypatch: pytest.MonkeyPatch) -> None:
    from magicdec.executor.engine import sampling

    honest = sampling.accept_sampled
    monkeypatch.setattr(sampling, "accept_sampled", lambda draft, q, p, u: honest(draft, q, p, u * 0.5))
    with pytest.raises(AssertionError):
        assert_a_draft_keeps_the_distribution("model", "full", SETTINGS[0])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_a_sampled_text_is_the_same_alone_in_a_batch_and_in_a_stream(kind: str, policy: str) -> None:
    target = tiny_model()
    draft = perturbed(target, 0.06)
    requests = [Request(name, tokens) for name, tokens in zip("abcdef", random_prompts((1, 9, 40, 30, 2, 64)), strict=True)]
    strategy = strategy_of(kind, policy, 3, 8)
    settings = GenerationSettings(14, (3,), sampling=Sampling(0.8, top_p=0.95, seed=11))
    together = decode_one_batch(target, draft, requests, strategy, settings)
    alone = [decode_one_batch(target, draft, [request], strategy, settings).outputs[0] for request in requests]
    stream = run(target, draft, requests[::-1], strategy, settings, batch_size=2).outputs[::-1]
    assert together.outputs == alone == stream
    other = replace(settings, sampling=Sampling(0.8, top_p=0.95, seed=12))
    assert decode_one_batch(target, draft, requests, strategy, other).outputs != together.outputs
    assert len({tuple(output) for output in together.outputs}) > 3
    if kind != "none":
        assert sum(together.drafted_by_position) > sum(together.accepted_by_position) > 0


def test_every_sampled_token_is_one_that_the_filters_keep() -> None:
    target = tiny_model()
    sampling = Sampling(1.5, top_k=3, seed=5)
    requests = [Request("a", random_prompts((20,))[0])]
    settings = GenerationSettings(40, sampling=sampling)
    (output,) = decode_one_batch(target, None, requests, strategy_of("self", "topk", 4, 6), settings).outputs
    ranks = []
    for place, token in enumerate(output):
        logits_V = logits_TV(target, [*requests[0].tokens, *output[:place]])[-1]
        ranks.append(int((logits_V > logits_V[token]).sum()))
    assert max(ranks) == 2
    assert min(ranks) == 0
    assert torch.tensor(ranks).unique().tolist() == [0, 1, 2]
