"""Sampled text through the whole executor: its law is the target's for every draft, and a row's text is its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from tiny_models import logits_TV, perturbed, random_prompts, tiny_model

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.policy import Always
from magicdec.executor.engine.batch import Batch, Prompt
from magicdec.executor.engine.sampling import Sampling, logits_to_probs
from magicdec.executor.generate import RUNNABLE, make_drafter, run_batch, run_stream
from magicdec.executor.model.transformer import Transformer

VOCABULARY = 5
NEW_TOKENS = 3
ROWS = 2000
PROMPT = random_prompts((24,), VOCABULARY)[0]
# Of correct code one draft and setting in a million would fail this, over the choice of seeds; the seeds are fixed.
FALSE_ALARM = 1e-6
SETTINGS = [Sampling(1.3, seed=1), Sampling(1.0, top_p=0.85, min_p=0.02, seed=2)]


@cache
def models() -> tuple[Transformer, Transformer]:
    target = tiny_model(seed=4, vocab_size=VOCABULARY, num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, d_ff=16)
    return target, perturbed(target, 0.3)


def strategy_of(kind: str, policy: str, gamma: int, kv_budget: int) -> Strategy:
    if kind == "none":
        return Strategy()
    kv_dtype = "int4" if (kind, policy) == ("self", "full") else None
    return Strategy(kind, policy, None if policy == "full" else kv_budget, gamma, "small" if kind == "model" else None, kv_dtype)


def joint(model: Transformer, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every continuation, by enumeration without a cache."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW_TOKENS):
        longer = {}
        for tokens, probability in found.items():
            for token, p in enumerate(logits_to_probs(logits_TV(model, [*PROMPT, *tokens])[-1], sampling).tolist()):
                if p > 0:
                    longer[(*tokens, token)] = probability * p
        found = longer
    return found


def assert_follows_the_joint_law(outputs: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Chi-square over all continuations; those too rare for its approximation are one class together."""
    law = joint(models()[0], sampling)
    counts = dict.fromkeys(law, 0)
    for output in outputs:
        counts[tuple(output)] += 1  # a KeyError here is a continuation that cannot be
    rare = [tokens for tokens, p in law.items() if p * len(outputs) < 5]
    seen = [counts[tokens] for tokens in law if tokens not in rare] + [sum(counts[tokens] for tokens in rare)] * bool(rare)
    wanted = [law[tokens] for tokens in law if tokens not in rare] + [sum(law[tokens] for tokens in rare)] * bool(rare)
    assert len(wanted) > 10
    assert stats.chisquare(seen, [p * len(outputs) / sum(wanted) for p in wanted]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("sampling", SETTINGS, ids=["temperature", "top-p"])
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_three_tokens_in_a_row_follow_the_targets_joint_law(kind: str, policy: str, sampling: Sampling) -> None:
    target, draft = models()
    prompts = [Prompt(str(row), PROMPT) for row in range(ROWS)]
    strategy = strategy_of(kind, policy, 2, 6)
    result = run_batch(target, draft, prompts, strategy, max_new_tokens=NEW_TOKENS, sampling=sampling)
    assert_follows_the_joint_law(result.outputs, sampling)
    if kind != "none":
        assert sum(result.trace.drafted_by_position) > sum(result.trace.accepted_by_position) > 0


def test_strategies_that_take_turns_leave_the_law_as_it_is() -> None:
    """A position's numbers are used again after a draft was thrown away, here by another drafter: they decided nothing before."""
    target, draft = models()
    for sampling in SETTINGS:
        batch = Batch(
            target, [Prompt(str(row), PROMPT) for row in range(ROWS)], max_new_tokens=NEW_TOKENS, gamma=2, sampling=sampling
        )
        batch.prefill()
        turns = [
            Always(make_drafter(strategy_of(*kind, gamma, 6), batch, draft), gamma)
            for *kind, gamma in (("model", "topk", 2), ("ngram", "full", 1), ("self", "quest", 2))
        ]
        calls = iter(range(100))
        steer = SimpleNamespace(pick=lambda active, context: turns[next(calls) % 3].pick(active, context))  # noqa: B023
        trace = decode(batch, steer=steer)
        assert_follows_the_joint_law(batch.outputs(), sampling)
        assert sum(trace.drafted_by_position) > sum(trace.accepted_by_position) > 0
        assert len(trace.round_s) == 3


def test_the_check_notices_a_draft_that_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from magicdec.executor.engine import sampling

    honest = sampling.accept_sampled
    monkeypatch.setattr(sampling, "accept_sampled", lambda draft, q, p, u: honest(draft, q, p, u * 0.5))
    with pytest.raises(AssertionError):
        test_three_tokens_in_a_row_follow_the_targets_joint_law("model", "full", SETTINGS[0])


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_a_sampled_rows_text_is_the_same_alone_in_a_batch_and_in_a_stream(kind: str, policy: str) -> None:
    target = tiny_model()
    draft = perturbed(target, 0.06)
    prompts = [Prompt(name, tokens) for name, tokens in zip("abcdef", random_prompts((1, 9, 40, 30, 2, 64)), strict=True)]
    strategy = strategy_of(kind, policy, 3, 8)
    how = {"max_new_tokens": 14, "sampling": Sampling(0.8, top_p=0.95, seed=11), "stop_tokens": [3]}
    together = run_batch(target, draft, prompts, strategy, **how)
    alone = [run_batch(target, draft, [prompt], strategy, **how).outputs[0] for prompt in prompts]
    stream = run_stream(target, draft, prompts[::-1], strategy, batch_size=2, **how).outputs[::-1]
    assert together.outputs == alone == stream
    other = run_batch(target, draft, prompts, strategy, **{**how, "sampling": Sampling(0.8, top_p=0.95, seed=12)})
    assert other.outputs != together.outputs
    assert len({tuple(output) for output in together.outputs}) > 3
    if kind != "none":
        assert sum(together.trace.drafted_by_position) > sum(together.trace.accepted_by_position) > 0


def test_every_sampled_token_is_one_that_the_filters_leave() -> None:
    target = tiny_model()
    sampling = Sampling(1.5, top_k=3, seed=5)
    prompts = [Prompt("a", random_prompts((20,))[0])]
    (output,) = run_batch(target, None, prompts, strategy_of("self", "topk", 4, 6), max_new_tokens=40, sampling=sampling).outputs
    ranks = []
    for place, token in enumerate(output):
        logits_V = logits_TV(target, [*prompts[0].tokens, *output[:place]])[-1]
        ranks.append(int((logits_V > logits_V[token]).sum()))
    assert max(ranks) == 2
    assert min(ranks) == 0
    assert torch.tensor(ranks).unique().tolist() == [0, 1, 2]
