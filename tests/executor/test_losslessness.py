"""Speculative decoding emits what the target alone would: the oracle is a decoder that keeps no cache and reads all anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from tiny_models import (
    TINY,
    continue_without_cache,
    cut_after_stop,
    logits_TV,
    perturbed,
    random_prompts,
    tiny_model,
)

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.drafters import Proposal
from magicdec.executor.drafting.policy import Always
from magicdec.executor.engine.batch import Batch, Prompt
from magicdec.executor.engine.round_log import Trace
from magicdec.executor.engine.sampling import Sampler
from magicdec.executor.generate import RUNNABLE, SPARSE, log_probability_gap, make_drafter, run_batch
from magicdec.executor.model.transformer import Transformer

PROMPT_LENGTHS = (1, 7, 40, 64)
NEW_TOKENS = 23  # a multiple of no gamma + 1 tested but that of gamma = 22
GAMMAS = range(1, 9)
KV_BUDGETS = (1, 3, 8, 20, 64, 500)
DRAFTS = [(kind, policy) for kind, policy in RUNNABLE if kind != "none"]
# Drafts that are the target itself where the budget covers the context: neither n-grams nor entries in fewer bits.
EXACT_DRAFTS = [(kind, policy) for kind, policy in DRAFTS if kind == "model" or policy in SPARSE]


@dataclass(frozen=True)
class Scene:
    """Models and prompts, and what the target continues them with."""

    target: Transformer
    draft: Transformer
    prompts: list[list[int]]
    continuations: list[list[int]]  # longer than any output: drafts look ahead of it
    stop_tokens: tuple[int, int]

    def expected(self, stop_tokens: Sequence[int] = (), new_tokens: int = NEW_TOKENS) -> list[list[int]]:
        return [cut_after_stop(tokens[:new_tokens], stop_tokens) for tokens in self.continuations]


@cache
def scene(num_kv_heads: int) -> Scene:
    target = tiny_model(num_kv_heads=num_kv_heads)
    prompts = random_prompts(PROMPT_LENGTHS)
    continuations = [continue_without_cache(target, prompt, NEW_TOKENS + 12) for prompt in prompts]
    return Scene(target, perturbed(target, 0.06), prompts, continuations, stops_at_different_places(continuations))


def stops_at_different_places(continuations: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Two tokens that end some rows early, at different places, and let another reach its limit."""
    for pair in combinations(range(TINY.vocab_size), 2):
        lengths = [len(cut_after_stop(tokens[:NEW_TOKENS], pair)) for tokens in continuations]
        early = {length for length in lengths if length < NEW_TOKENS}
        if len(early) >= 2 and min(early) > 2 and NEW_TOKENS in lengths:
            return pair
    raise AssertionError("no two tokens stop these continuations at different places: choose another seed")


def strategy_of(kind: str, policy: str, gamma: int, kv_budget: int | None) -> Strategy:
    budget = None if policy == "full" else kv_budget
    kv_dtype = "int4" if (kind, policy) == ("self", "full") else None
    return Strategy(kind, policy, budget, gamma, "small" if kind == "model" else None, kv_dtype)


def named(prompts: Sequence[Sequence[int]]) -> list[Prompt]:
    return [Prompt(str(row), list(prompt)) for row, prompt in enumerate(prompts)]


def run_alone(
    target: Transformer,
    draft: Transformer | None,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    stop_tokens: Sequence[int] = (),
    new_tokens: int = NEW_TOKENS,
) -> tuple[list[list[int]], Trace]:
    """A strategy on a fresh batch, whose cache no plain decoding has filled before."""
    result = run_batch(target, draft, named(prompts), strategy, max_new_tokens=new_tokens, stop_tokens=stop_tokens)
    return result.outputs, result.trace


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("stopping", [False, True])
def test_plain_decoding_emits_what_reading_everything_anew_does(num_kv_heads: int, stopping: bool) -> None:
    here = scene(num_kv_heads)
    stops = here.stop_tokens if stopping else ()
    outputs, trace = run_alone(here.target, None, here.prompts, Strategy(), stops)
    assert outputs == here.expected(stops)
    assert trace.drafted_by_position == []
    assert trace.acceptance_rate is None
    assert trace.mean_acceptance_length == 1.0


def test_the_stop_tokens_end_rows_at_different_places_and_leave_one_running() -> None:
    for num_kv_heads in (2, 4):
        here = scene(num_kv_heads)
        lengths = [len(output) for output in here.expected(here.stop_tokens)]
        assert max(lengths) == NEW_TOKENS
        assert len(set(lengths)) >= 3


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
@pytest.mark.parametrize("num_kv_heads", [2, 4], ids=["gqa", "mha"])
def test_speculative_output_is_that_of_plain_decoding(num_kv_heads: int, kind: str, policy: str, gamma: int) -> None:
    here = scene(num_kv_heads)
    drafted = accepted = 0
    # To save time, every other budget goes with this gamma, with and without stop tokens by turns, for the other model the others.
    for index, kv_budget in enumerate(KV_BUDGETS[(gamma + num_kv_heads // 4) % 2 :: 2] if policy != "full" else (None,)):
        turn = (index + gamma // 2) % 2
        for stops in ((), here.stop_tokens)[slice(None) if policy == "full" else slice(turn, turn + 1)]:
            strategy = strategy_of(kind, policy, gamma, kv_budget)
            outputs, trace = run_alone(here.target, here.draft, here.prompts, strategy, stops)
            assert outputs == here.expected(stops), f"{strategy}, stop tokens {stops}"
            drafted += sum(trace.drafted_by_position)
            accepted += sum(trace.accepted_by_position)
    assert drafted > accepted > 0, "nothing was drafted, nothing accepted or nothing rejected"


@pytest.mark.parametrize("new_tokens", [1, 2, 3, 4, 5, 6, 9, 11])
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_a_limit_that_falls_inside_a_round_cuts_the_output_there(kind: str, policy: str, new_tokens: int) -> None:
    here = scene(2)
    for gamma in (1, 4, 8):
        outputs, trace = run_alone(
            here.target, here.draft, here.prompts, strategy_of(kind, policy, gamma, 20), new_tokens=new_tokens
        )
        assert outputs == here.expected(new_tokens=new_tokens)
        assert trace.row_tokens == [new_tokens] * len(here.prompts)


@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_an_output_much_longer_than_the_budget_stays_that_of_plain_decoding(kind: str, policy: str) -> None:
    """The copy that a sparse draft reads is chosen anew several times, with a sixteenth of the budget as room to grow."""
    target = tiny_model(seed=5)
    draft = perturbed(target, 0.06)
    prompts = random_prompts((3, 50), seed=5)
    expected = [continue_without_cache(target, prompt, 90) for prompt in prompts]
    outputs, trace = run_alone(target, draft, prompts, strategy_of(kind, policy, 4, 32), new_tokens=90)
    assert outputs == expected
    assert sum(trace.drafted_by_position) > sum(trace.accepted_by_position) > 0


def test_a_smaller_draft_model_of_another_shape_changes_nothing_but_the_acceptance() -> None:
    here = scene(2)
    draft = tiny_model(seed=3, num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=24)
    for policy, kv_budget in (("full", None), ("streaming_llm", 6)):
        outputs, trace = run_alone(here.target, draft, here.prompts, Strategy("model", policy, kv_budget, 3, "small"))
        assert outputs == here.expected()
        assert sum(trace.drafted_by_position) > sum(trace.accepted_by_position)


@pytest.mark.parametrize("window", [5, 16])
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_speculation_over_a_sliding_window_is_lossless(kind: str, policy: str, window: int) -> None:
    target = tiny_model(seed=2, family="mistral", sliding_window=window)
    draft = perturbed(target, 0.06)
    prompts = random_prompts(PROMPT_LENGTHS, seed=2)
    plain, _ = run_alone(target, None, prompts, Strategy())
    drafted = accepted = 0
    for gamma, kv_budget in ((1, 500), (3, 3), (7, 20)):
        outputs, trace = run_alone(target, draft, prompts, strategy_of(kind, policy, gamma, kv_budget))
        assert outputs == plain
        drafted += sum(trace.drafted_by_position)
        accepted += sum(trace.accepted_by_position)
    assert drafted > accepted > 0


# Drafts that are always right, and one that never is.


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("kind", "policy"), EXACT_DRAFTS)
def test_a_draft_that_sees_all_the_target_sees_is_always_accepted(kind: str, policy: str, gamma: int) -> None:
    here = scene(2)
    rounds = 2
    outputs, trace = run_alone(
        here.target, here.target, here.prompts, strategy_of(kind, policy, gamma, 500), new_tokens=rounds * (gamma + 1)
    )
    assert outputs == here.expected(new_tokens=rounds * (gamma + 1))
    assert trace.emitted == [len(here.prompts) * (gamma + 1)] * rounds
    assert trace.acceptance_rate == 1.0
    assert trace.mean_acceptance_length == gamma + 1
    assert trace.drafted_by_position == trace.accepted_by_position == [len(here.prompts) * rounds] * gamma


@pytest.mark.parametrize("kv_budget", [87, 88, 100])
def test_a_self_draft_whose_budget_just_holds_the_context_is_always_accepted(kv_budget: int) -> None:
    here = scene(4)
    longest = max(PROMPT_LENGTHS) + NEW_TOKENS
    assert kv_budget >= longest
    outputs, trace = run_alone(here.target, None, here.prompts, Strategy("self", "streaming_llm", kv_budget, 4))
    assert outputs == here.expected()
    assert trace.acceptance_rate == 1.0


@pytest.mark.parametrize("kv_budget", [500, 40])  # all that is known; the window, but not all
def test_a_self_draft_that_sees_the_whole_sliding_window_is_always_accepted(kv_budget: int) -> None:
    target = tiny_model(seed=2, family="mistral", sliding_window=9)
    prompts = random_prompts(PROMPT_LENGTHS, seed=2)
    _, trace = run_alone(target, None, prompts, Strategy("self", "streaming_llm", kv_budget, 4))
    assert trace.acceptance_rate == 1.0


class Contrarian:
    """Proposes what the target finds least likely."""

    def __init__(self, target: Transformer):
        self.target = target

    watch = None

    def reset(self, row: int, kv_budget: int | None) -> None:
        pass

    def draft(self, tokens_BS: torch.Tensor, lengths_B: torch.Tensor, gamma: int, sampler: Sampler) -> Proposal:
        known = [tokens_BS[row, :length].tolist() for row, length in enumerate(lengths_B.tolist())]
        return torch.tensor([[int(logits_TV(self.target, tokens)[-1].argmin())] * gamma for tokens in known]), None

    def observe(self, lengths_B: torch.Tensor, new_lengths_B: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_a_draft_that_is_always_wrong_changes_nothing_and_is_never_accepted(gamma: int) -> None:
    here = scene(2)
    for stops in ((), here.stop_tokens):
        batch = Batch(here.target, named(here.prompts), max_new_tokens=NEW_TOKENS, gamma=gamma)
        batch.prefill()
        trace = decode(batch, steer=Always(Contrarian(here.target), gamma), stop_tokens=stops)
        assert batch.outputs() == here.expected(stops)
        assert trace.acceptance_rate == 0.0
        assert trace.mean_acceptance_length == 1.0
        assert trace.emitted == trace.active_rows, "each running row emits the target's one token a round"
        assert trace.drafted_by_position == [sum(trace.active_rows)] + [0] * (gamma - 1)


# Rows and batches.


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_a_row_is_independent_of_its_batch(kind: str, policy: str) -> None:
    here = scene(2)
    gamma = 0 if kind == "none" else 3
    for kv_budget in (3, 20):
        strategy = strategy_of(kind, policy, gamma, kv_budget)
        together, _ = run_alone(here.target, here.draft, here.prompts, strategy, here.stop_tokens)
        alone = [run_alone(here.target, here.draft, [prompt], strategy, here.stop_tokens)[0][0] for prompt in here.prompts]
        backwards, _ = run_alone(here.target, here.draft, here.prompts[::-1], strategy, here.stop_tokens)
        assert together == alone == backwards[::-1]


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_the_stop_token_of_one_row_ends_no_other(kind: str, policy: str) -> None:
    here = scene(2)
    only_one = [
        token for token in range(TINY.vocab_size) if sum(token in output for output in here.expected()) == 1
    ]  # occurs in one output alone
    assert only_one, "no token occurs in one output alone: choose another seed"
    expected = here.expected(only_one[:1])
    outputs, trace = run_alone(
        here.target, here.draft, here.prompts, strategy_of(kind, policy, 0 if kind == "none" else 4, 8), only_one[:1]
    )
    assert outputs == expected
    assert sorted(len(output) == NEW_TOKENS for output in outputs) == [False, True, True, True]
    assert trace.active_rows[0] == 4
    assert trace.active_rows[-1] < 4


def test_the_stop_token_is_emitted_and_nothing_after_it() -> None:
    here = scene(2)
    for kind, policy in RUNNABLE:
        outputs, _ = run_alone(
            here.target, here.draft, here.prompts, strategy_of(kind, policy, 0 if kind == "none" else 5, 64), here.stop_tokens
        )
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


def test_rewinding_decodes_the_same_again() -> None:
    here = scene(2)
    strategy = Strategy("model", "streaming_llm", 8, 4, "small")
    batch = Batch(here.target, named(here.prompts), max_new_tokens=NEW_TOKENS, gamma=4)
    batch.prefill()
    decode(batch, steer=Always(make_drafter(strategy, batch, here.draft), 4), stop_tokens=here.stop_tokens)
    assert batch.outputs() == here.expected(here.stop_tokens)
    batch.rewind()
    assert batch.outputs() == [[], [], [], []]
    decode(batch, steer=Always(make_drafter(strategy, batch, here.draft), 4))
    assert batch.outputs() == here.expected()


def test_a_drafter_can_be_given_its_prompts_again_after_it_has_run() -> None:
    here = scene(2)
    for strategy in (Strategy("self", "streaming_llm", 8, 4), Strategy("model", "streaming_llm", 8, 4, "small")):
        batch = Batch(here.target, named(here.prompts), max_new_tokens=NEW_TOKENS, gamma=4)
        batch.prefill()
        drafter = make_drafter(strategy, batch, here.draft)
        assert drafter is not None
        first = decode(batch, steer=Always(drafter, 4))
        batch.rewind()
        for row in range(len(here.prompts)):
            drafter.reset(row, None)
        second = decode(batch, steer=Always(drafter, 4))
        assert batch.outputs() == here.expected()
        assert second.accepted_by_position == first.accepted_by_position


# What the trace says of it.


class Scripted:
    """Proposes the right token but where `wrong(row, place)` says otherwise, `place` counting the row's new tokens."""

    def __init__(self, here: Scene, wrong: Callable[[int, int], bool]):
        self.here, self.wrong = here, wrong

    def proposal(self, row: int, emitted: int, gamma: int) -> list[int]:
        right = self.here.continuations[row][emitted : emitted + gamma]
        return [(token + self.wrong(row, emitted + i)) % TINY.vocab_size for i, token in enumerate(right)]

    watch = None

    def reset(self, row: int, kv_budget: int | None) -> None:
        pass

    def draft(self, tokens_BS: torch.Tensor, lengths_B: torch.Tensor, gamma: int, sampler: Sampler) -> Proposal:
        emitted = [length - len(prompt) for length, prompt in zip(lengths_B.tolist(), self.here.prompts, strict=True)]
        return torch.tensor([self.proposal(row, count, gamma) for row, count in enumerate(emitted)]), None

    def observe(self, lengths_B: torch.Tensor, new_lengths_B: torch.Tensor) -> None:
        pass


def replay(here: Scene, drafter: Scripted, gamma: int, stop_tokens: Sequence[int]) -> tuple[Trace, list[list[int]]]:
    """The same decoding in plain Python, without a model: what the trace must say and when each row ends."""
    trace = Trace(drafted_by_position=[0] * gamma, accepted_by_position=[0] * gamma, row_tokens=[0] * len(here.prompts))
    outputs = here.expected(stop_tokens)
    while any(count < len(output) for count, output in zip(trace.row_tokens, outputs, strict=True)):
        trace.emitted.append(0)
        trace.active_rows.append(0)
        for row, output in enumerate(outputs):
            done = trace.row_tokens[row]
            if done == len(output):
                continue
            proposal, accepted = drafter.proposal(row, done, gamma), 0
            for position, token in enumerate(proposal):
                trace.drafted_by_position[position] += 1
                if token != here.continuations[row][done + position]:
                    break
                trace.accepted_by_position[position] += 1
                accepted += 1
            emitted = min(accepted + 1, len(output) - done)
            trace.row_tokens[row] += emitted
            trace.emitted[-1] += emitted
            trace.active_rows[-1] += 1
    return trace, outputs


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8])
def test_the_trace_counts_what_a_replay_in_plain_python_counts(gamma: int, stopping: bool) -> None:
    here = scene(2)
    stops = here.stop_tokens if stopping else ()
    drafter = Scripted(here, lambda row, place: (7 * row + place * place) % 5 in (0, 3))
    batch = Batch(here.target, named(here.prompts), max_new_tokens=NEW_TOKENS, gamma=gamma)
    batch.prefill()
    trace = decode(batch, steer=Always(drafter, gamma), stop_tokens=stops)
    wanted, outputs = replay(here, drafter, gamma, stops)
    assert batch.outputs() == outputs
    for name in ("emitted", "active_rows", "drafted_by_position", "accepted_by_position", "row_tokens"):
        assert getattr(trace, name) == getattr(wanted, name), name
    drafted, accepted = sum(trace.drafted_by_position), sum(trace.accepted_by_position)
    assert drafted > accepted > 0
    assert trace.acceptance_rate == accepted / drafted
    assert trace.mean_acceptance_length == 1 + accepted / sum(trace.active_rows)


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_the_trace_agrees_with_the_outputs(kind: str, policy: str) -> None:
    here = scene(4)
    gamma = 0 if kind == "none" else 4
    for stops in ((), here.stop_tokens):
        outputs, trace = run_alone(here.target, here.draft, here.prompts, strategy_of(kind, policy, gamma, 20), stops)
        rounds = len(trace.emitted)
        assert trace.row_tokens == [len(output) for output in outputs]
        assert sum(trace.emitted) == sum(trace.row_tokens)
        assert rounds == len(trace.active_rows) == len(trace.draft_s) == len(trace.verify_s) == len(trace.round_s)
        assert trace.active_rows == sorted(trace.active_rows, reverse=True)
        assert all(rows <= tokens <= rows * (gamma + 1) for rows, tokens in zip(trace.active_rows, trace.emitted, strict=True))
        assert len(trace.drafted_by_position) == len(trace.accepted_by_position) == gamma
        # A draft position is reached where the one before it was accepted.
        assert trace.drafted_by_position[:1] == [sum(trace.active_rows)][:gamma]
        assert trace.drafted_by_position[1:] == trace.accepted_by_position[:-1]
        # Rows that are cut short by a stop token or their limit emit less than was accepted, in their last round only.
        offered = sum(trace.active_rows) + sum(trace.accepted_by_position)
        assert sum(trace.emitted) <= offered <= sum(trace.emitted) + gamma * len(outputs)


def test_rows_that_end_in_an_earlier_round_have_an_earlier_finish() -> None:
    here = scene(2)
    outputs, trace = run_alone(here.target, None, here.prompts, Strategy(), here.stop_tokens)
    by_length = sorted(zip(map(len, outputs), trace.row_finish_s, strict=True))
    pairs = list(pairwise(by_length))
    assert all((a[1] < b[1]) == (a[0] < b[0]) for a, b in pairs)
    assert trace.tpot_s == pytest.approx(sum(s / n for n, s in by_length) / 4)
    assert trace.decode_s == sum(trace.round_s) > 0


def test_progress_is_told_of_every_prompt_and_every_emitted_token() -> None:
    here = scene(2)
    rows: list[int] = []
    tokens: list[int] = []
    batch = Batch(here.target, named(here.prompts), max_new_tokens=NEW_TOKENS, gamma=3)
    batch.prefill(rows.append)
    drafter = make_drafter(Strategy("self", "streaming_llm", 8, 3), batch, None)
    trace = decode(batch, steer=Always(drafter, 3), progress=tokens.append)
    assert rows == [0, 1, 2, 3]
    assert tokens == trace.emitted


# Single precision, where batch shapes round differently.


def assert_every_token_is_the_favourite_or_a_near_tie(
    target: Transformer, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], nats: float
) -> None:
    """Teacher forcing: the emitted tokens are fed back, and each is compared with the target's favourite there."""
    for prompt, output in zip(prompts, outputs, strict=True):
        log_probs_TV = logits_TV(target, [*prompt, *output[:-1]])[len(prompt) - 1 :].double().log_softmax(-1)
        chosen_T = log_probs_TV.gather(1, torch.tensor(output, device=log_probs_TV.device)[:, None])[:, 0]
        assert float((log_probs_TV.amax(1) - chosen_T).max()) <= nats


@pytest.mark.parametrize("head_dim", [8, 32])
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_in_float32_every_emitted_token_is_the_favourite_or_a_near_tie(kind: str, policy: str, head_dim: int) -> None:
    target = tiny_model(dtype="float32", head_dim=head_dim)
    draft = perturbed(target, 0.06)
    prompts = random_prompts(PROMPT_LENGTHS)
    drafted = accepted = 0
    for gamma in (0,) if kind == "none" else (1, 4, 8):
        outputs, trace = run_alone(target, draft, prompts, strategy_of(kind, policy, gamma, 20))
        assert [len(output) for output in outputs] == [NEW_TOKENS] * 4
        assert_every_token_is_the_favourite_or_a_near_tie(target, prompts, outputs, nats=1e-3)
        drafted += sum(trace.drafted_by_position)
        accepted += sum(trace.accepted_by_position)
    assert kind == "none" or drafted > accepted > 0


def test_the_near_tie_check_notices_a_single_wrong_token() -> None:
    target = tiny_model(dtype="float32")
    prompts = random_prompts((5,))
    output = continue_without_cache(target, prompts[0], 6)
    assert_every_token_is_the_favourite_or_a_near_tie(target, prompts, [output], nats=1e-3)
    wrong = [*output[:3], int(logits_TV(target, [*prompts[0], *output[:3]])[-1].argsort()[-2]), *output[4:]]
    assert log_probability_gap(target, [*prompts[0], *wrong[:3]], wrong[3]) > 1e-3
    with pytest.raises(AssertionError):
        assert_every_token_is_the_favourite_or_a_near_tie(target, prompts, [wrong], nats=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("gamma", [1, 4, 8])
@pytest.mark.parametrize(("kind", "policy"), DRAFTS)
def test_on_a_gpu_speculative_output_is_that_of_plain_decoding(kind: str, policy: str, gamma: int) -> None:
    here = scene(2)
    target, draft = (perturbed(model, 0.0).to("cuda") for model in (here.target, here.draft))
    drafted = accepted = 0
    for kv_budget in (3, 20):
        for stops in ((), here.stop_tokens):
            outputs, trace = run_alone(target, draft, here.prompts, strategy_of(kind, policy, gamma, kv_budget), stops)
            assert outputs == here.expected(stops)
            drafted += sum(trace.drafted_by_position)
            accepted += sum(trace.accepted_by_position)
    assert drafted > accepted > 0
