"""Speculative decoding emits what the target alone would: the oracle is a decoder without a cache that reads all tokens anew."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from decoding import StubDrafter, decode_all, requests_of, strategy_of
from scenes import NEW_TOKENS, PROMPT_LENGTHS, run_alone, scene
from tiny_models import TINY, continue_without_cache, logits_TV, perturbed, random_prompts, tiny_model

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.drafting.draft_policy import FixedPolicy
from magicdec.executor.drafting.drafters import Proposal
from magicdec.executor.drafting.factory import make_drafter
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.sampling import Sampler
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE, SPARSE
from magicdec.executor.measuring.comparison import log_probability_gap
from magicdec.executor.model.transformer import Transformer

GAMMAS = range(1, 9)
BUDGET_PAIRS = ((1, 20), (3, 64), (8, 500))  # a small one and a larger one each
DRAFTS = [(kind, policy) for kind, policy in RUNNABLE if kind != "none"]
# Drafts that are the target itself where the budget covers the context: neither n-grams nor quantised entries.
EXACT_DRAFTS = [(kind, policy) for kind, policy in DRAFTS if kind == "model" or policy in SPARSE]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("stopping", [False, True])
def test_autoregressive_decoding_emits_what_reading_everything_anew_does(num_kv_heads: int, stopping: bool) -> None:
    here = scene(num_kv_heads)
    stops = here.stop_tokens if stopping else ()
    outputs, log = run_alone(here.target, None, here.prompts, Strategy(), stops)
    assert outputs == here.expected(stops)
    assert log.drafted_by_position == []
    assert log.acceptance_rate is None
    assert log.mean_acceptance_length == 1.0


def test_the_stop_tokens_end_rows_at_different_places_and_leave_one_running() -> None:
    for num_kv_heads in (2, 4):
        here = scene(num_kv_heads)
        lengths = [len(output) for output in here.expected(here.stop_tokens)]
        assert max(lengths) == NEW_TOKENS
        assert len(set(lengths)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_speculative_output_is_that_of_autoregressive_decoding(kind: str, policy: str, gamma: int) -> None:
    """Every draft with every gamma; the other settings take turns.

    Over the gammas, each sparse draft meets every budget with and without stop tokens, and both models: grouped and ungrouped
    query heads.
    """
    turn = gamma - 1
    here = scene((2, 4)[(turn + DRAFTS.index((kind, policy))) % 2])
    drafted = accepted = 0
    for index, kv_budget in enumerate(BUDGET_PAIRS[turn % 3]):
        stops = here.stop_tokens if (turn // 3 + index) % 2 else ()
        strategy = strategy_of(kind, policy, gamma, kv_budget)
        outputs, log = run_alone(here.target, here.draft, here.prompts, strategy, stops)
        assert outputs == here.expected(stops), f"{strategy}, stop tokens {stops}"
        drafted += sum(log.drafted_by_position)
        accepted += sum(log.accepted_by_position)
    assert drafted > accepted > 0, "nothing was drafted, nothing accepted or nothing rejected"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_a_limit_that_falls_inside_a_round_cuts_the_output_there(kind: str, policy: str) -> None:
    """Every draft with every limit and every gamma; over the drafts, every limit with every gamma."""
    here = scene(2)
    for index, new_tokens in enumerate((1, 2, 3, 4, 5, 6, 9, 11)):
        gamma = (1, 4, 8)[(index + DRAFTS.index((kind, policy))) % 3]
        strategy = strategy_of(kind, policy, gamma, 20)
        outputs, _ = run_alone(here.target, here.draft, here.prompts, strategy, new_tokens=new_tokens)
        assert outputs == here.expected(new_tokens=new_tokens), strategy


@cache
def long_scene() -> tuple[Transformer, list[list[int]], list[list[int]]]:
    target, prompts = tiny_model(seed=5), random_prompts((3, 50), seed=5)
    return target, prompts, [continue_without_cache(target, prompt, 90) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_an_output_much_longer_than_the_budget_stays_that_of_autoregressive_decoding(kind: str, policy: str) -> None:
    """The compacted copy is selected anew several times, each time with a sixteenth of the budget left free."""
    target, prompts, expected = long_scene()
    outputs, log = run_alone(target, perturbed(target, 0.06), prompts, strategy_of(kind, policy, 4, 32), new_tokens=90)
    assert outputs == expected
    assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0


def test_a_smaller_draft_model_of_another_shape_changes_nothing_but_the_acceptance() -> None:
    here = scene(2)
    draft = tiny_model(seed=3, num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=24)
    for policy, kv_budget in (("full", None), ("streaming_llm", 6)):
        outputs, log = run_alone(here.target, draft, here.prompts, Strategy("model", policy, kv_budget, 3, "small"))
        assert outputs == here.expected()
        assert sum(log.drafted_by_position) > sum(log.accepted_by_position)


@cache
def windowed_scene(window: int) -> tuple[Transformer, list[list[int]], list[list[int]]]:
    target, prompts = tiny_model(seed=2, family="mistral", sliding_window=window), random_prompts(PROMPT_LENGTHS, seed=2)
    return target, prompts, run_alone(target, None, prompts, Strategy())[0]


@pytest.mark.slow
@pytest.mark.parametrize("window", [5, 16])
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_speculation_over_a_sliding_window_is_lossless(kind: str, policy: str, window: int) -> None:
    target, prompts, autoregressive = windowed_scene(window)
    draft = perturbed(target, 0.06)
    drafted = accepted = 0
    for gamma, kv_budget in ((1, 500), (3, 3), (7, 20)):
        outputs, log = run_alone(target, draft, prompts, strategy_of(kind, policy, gamma, kv_budget))
        assert outputs == autoregressive
        drafted += sum(log.drafted_by_position)
        accepted += sum(log.accepted_by_position)
    assert drafted > accepted > 0


# Drafts that are always right, and one that never is.


@pytest.mark.slow
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("kind", "policy"), EXACT_DRAFTS)
def test_a_draft_that_sees_all_the_target_sees_is_always_accepted(kind: str, policy: str, gamma: int) -> None:
    here = scene(2)
    rounds = 2
    strategy = strategy_of(kind, policy, gamma, 500)
    outputs, log = run_alone(here.target, here.target, here.prompts, strategy, new_tokens=rounds * (gamma + 1))
    assert outputs == here.expected(new_tokens=rounds * (gamma + 1))
    assert log.emitted == [len(here.prompts) * (gamma + 1)] * rounds
    assert log.acceptance_rate == 1.0
    assert log.mean_acceptance_length == gamma + 1
    assert log.drafted_by_position == log.accepted_by_position == [len(here.prompts) * rounds] * gamma


@pytest.mark.parametrize("kv_budget", [87, 88, 100])
def test_a_self_draft_whose_budget_just_holds_the_context_is_always_accepted(kv_budget: int) -> None:
    here = scene(4)
    longest = max(PROMPT_LENGTHS) + NEW_TOKENS
    assert kv_budget >= longest
    outputs, log = run_alone(here.target, None, here.prompts, Strategy("self", "streaming_llm", kv_budget, 4))
    assert outputs == here.expected()
    assert log.acceptance_rate == 1.0


@pytest.mark.parametrize("kv_budget", [500, 40])  # the whole context; the window, but not the whole context
def test_a_self_draft_that_sees_the_whole_sliding_window_is_always_accepted(kv_budget: int) -> None:
    target = tiny_model(seed=2, family="mistral", sliding_window=9)
    prompts = random_prompts(PROMPT_LENGTHS, seed=2)
    _, log = run_alone(target, None, prompts, Strategy("self", "streaming_llm", kv_budget, 4))
    assert log.acceptance_rate == 1.0


class Contrarian(StubDrafter):
    """Proposes the token that the target finds least likely."""

    def __init__(self, target: Transformer):
        self.target = target

    def draft(self, tokens_BS: torch.Tensor, lengths_B: torch.Tensor, gamma: int, sampler: Sampler) -> Proposal:
        committed = [tokens_BS[row, :length].tolist() for row, length in enumerate(lengths_B.tolist())]
        return torch.tensor([[int(logits_TV(self.target, tokens)[-1].argmin())] * gamma for tokens in committed]), None


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_a_draft_that_is_always_wrong_changes_nothing_and_is_never_accepted(gamma: int) -> None:
    here = scene(2)
    for stops in ((), here.stop_tokens):
        batch = Batch(here.target, requests_of(here.prompts), GenerationSettings(NEW_TOKENS, stops), gamma=gamma)
        batch.prefill()
        log = decode_all(batch, FixedPolicy(Contrarian(here.target), gamma))
        assert log.outputs == here.expected(stops)
        assert log.acceptance_rate == 0.0
        assert log.mean_acceptance_length == 1.0
        assert log.emitted == log.active_rows, "each running row emits the target's one token a round"
        assert log.drafted_by_position == [sum(log.active_rows)] + [0] * (gamma - 1)


# Rows and batches.


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_a_row_is_independent_of_its_batch(kind: str, policy: str) -> None:
    here = scene(2)
    for kv_budget in (3, 20) if policy in SPARSE else (8,):
        strategy = strategy_of(kind, policy, 3, kv_budget)
        together, _ = run_alone(here.target, here.draft, here.prompts, strategy, here.stop_tokens)
        alone = [run_alone(here.target, here.draft, [prompt], strategy, here.stop_tokens)[0][0] for prompt in here.prompts]
        backwards, _ = run_alone(here.target, here.draft, here.prompts[::-1], strategy, here.stop_tokens)
        assert together == alone == backwards[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_the_stop_token_of_one_row_ends_no_other(kind: str, policy: str) -> None:
    here = scene(2)
    only_one = [token for token in range(TINY.vocab_size) if sum(token in output for output in here.expected()) == 1]
    assert only_one, "no token occurs in one output only: choose another seed"
    outputs, log = run_alone(here.target, here.draft, here.prompts, strategy_of(kind, policy, 4), only_one[:1])
    assert outputs == here.expected(only_one[:1])
    assert sorted(len(output) == NEW_TOKENS for output in outputs) == [False, True, True, True]
    assert log.active_rows[0] == 4
    assert log.active_rows[-1] < 4


def test_the_stop_token_is_emitted_and_nothing_after_it() -> None:
    here = scene(2)
    for kind, policy in RUNNABLE:
        outputs, _ = run_alone(here.target, here.draft, here.prompts, strategy_of(kind, policy, 5, 64), here.stop_tokens)
        stopped = [output for output in outputs if len(output) < NEW_TOKENS]
        assert stopped
        assert all(output[-1] in here.stop_tokens for output in stopped)
        assert not any(token in here.stop_tokens for output in outputs for token in output[:-1])


def test_a_stop_token_in_the_prompt_ends_nothing() -> None:
    here = scene(2)
    in_prompts_only = set(here.prompts[3]) - {token for output in here.expected() for token in output}
    assert in_prompts_only, "choose another seed"
    outputs, _ = run_alone(here.target, None, here.prompts, Strategy("self", "streaming_llm", 8, 3), sorted(in_prompts_only))
    assert outputs == here.expected()


@pytest.mark.parametrize("kind", ["self", "model"])
def test_a_rewound_batch_decodes_the_same_again_with_a_new_drafter_or_a_reset_one(kind: str) -> None:
    here = scene(2)
    strategy = strategy_of(kind, "streaming_llm", 4)
    batch = Batch(here.target, requests_of(here.prompts), GenerationSettings(NEW_TOKENS), gamma=4)
    batch.prefill()
    drafter = make_drafter(strategy, batch, here.draft)
    assert drafter is not None
    first = decode_all(batch, FixedPolicy(drafter, 4))
    batch.rewind()
    assert batch.lengths_B.tolist() == list(PROMPT_LENGTHS)
    for row in range(len(here.prompts)):
        drafter.reset(row, None)
    second = decode_all(batch, FixedPolicy(drafter, 4))
    batch.rewind()
    third = decode_all(batch, FixedPolicy(make_drafter(strategy, batch, here.draft), 4))
    assert first.outputs == second.outputs == third.outputs == here.expected()
    assert first.accepted_by_position == second.accepted_by_position == third.accepted_by_position


# Single precision, where batch shapes round differently.


def assert_every_token_is_the_argmax_or_a_near_tie(
    target: Transformer, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], nats: float
) -> None:
    """Teacher forcing: the emitted tokens are fed back, and each is compared with the target's argmax there."""
    for prompt, output in zip(prompts, outputs, strict=True):
        log_probs_TV = logits_TV(target, [*prompt, *output[:-1]])[len(prompt) - 1 :].double().log_softmax(-1)
        chosen_T = log_probs_TV.gather(1, torch.tensor(output, device=log_probs_TV.device)[:, None])[:, 0]
        assert float((log_probs_TV.amax(1) - chosen_T).max()) <= nats


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [8, 32])
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_in_float32_every_emitted_token_is_the_argmax_or_a_near_tie(kind: str, policy: str, head_dim: int) -> None:
    """Head dimension 32, which the C kernels compute, with every gamma; 8, which torch computes, with one of them by turns."""
    target = tiny_model(dtype="float32", head_dim=head_dim)
    draft = perturbed(target, 0.06)
    prompts = random_prompts(PROMPT_LENGTHS)
    gammas = (1, 4, 8) if head_dim == 32 else ((1, 4, 8)[RUNNABLE.index((kind, policy)) % 3],)
    drafted = accepted = 0
    for gamma in gammas[:1] if kind == "none" else gammas:
        outputs, log = run_alone(target, draft, prompts, strategy_of(kind, policy, gamma, 20))
        assert [len(output) for output in outputs] == [NEW_TOKENS] * 4
        assert_every_token_is_the_argmax_or_a_near_tie(target, prompts, outputs, nats=1e-3)
        drafted += sum(log.drafted_by_position)
        accepted += sum(log.accepted_by_position)
    assert kind == "none" or drafted > accepted > 0


def test_the_near_tie_check_notices_a_single_wrong_token() -> None:
    target = tiny_model(dtype="float32")
    prompts = random_prompts((5,))
    output = continue_without_cache(target, prompts[0], 6)
    assert_every_token_is_the_argmax_or_a_near_tie(target, prompts, [output], nats=1e-3)
    wrong = [*output[:3], int(logits_TV(target, [*prompts[0], *output[:3]])[-1].argsort()[-2]), *output[4:]]
    assert log_probability_gap(target, [*prompts[0], *wrong[:3]], wrong[3]) > 1e-3
    with pytest.raises(AssertionError):
        assert_every_token_is_the_argmax_or_a_near_tie(target, prompts, [wrong], nats=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_on_a_gpu_speculative_output_is_that_of_autoregressive_decoding(kind: str, policy: str, gamma: int) -> None:
    here = scene(2)
    target, draft = (perturbed(model, 0.0).to("cuda") for model in (here.target, here.draft))
    drafted = accepted = 0
    for kv_budget in (3, 20):
        for stops in ((), here.stop_tokens):
            outputs, log = run_alone(target, draft, here.prompts, strategy_of(kind, policy, gamma, kv_budget), stops)
            assert outputs == here.expected(stops)
            drafted += sum(log.drafted_by_position)
            accepted += sum(log.accepted_by_position)
    assert drafted > accepted > 0
