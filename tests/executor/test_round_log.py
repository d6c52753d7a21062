"""The log of a run: it counts what happened, agrees with the outputs, and merges with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from decoding import StubDrafter, decode_all, requests_of, strategy_of
from scenes import NEW_TOKENS, Scene, run_alone, scene
from tiny_models import TINY

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.draft_policy import FixedPolicy
from magicdec.executor.drafting.drafters import Proposal
from magicdec.executor.drafting.factory import make_policy
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import Completion, RoundLog, RoundRecord, merge
from magicdec.executor.engine.sampling import Sampler
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.generate import RUNNABLE


class Scripted(StubDrafter):
    """Proposes the right token except where `wrong(row, index)` says otherwise; `index` counts the row's new tokens."""

    def __init__(self, here: Scene, wrong: Callable[[int, int], bool]):
        self.here, self.wrong = here, wrong

    def proposal(self, row: int, emitted: int, gamma: int) -> list[int]:
        right = self.here.continuations[row][emitted : emitted + gamma]
        return [(token + self.wrong(row, emitted + i)) % TINY.vocab_size for i, token in enumerate(right)]

    def draft(self, tokens_BS: torch.Tensor, lengths_B: torch.Tensor, gamma: int, sampler: Sampler) -> Proposal:
        emitted = [length - len(prompt) for length, prompt in zip(lengths_B.tolist(), self.here.prompts, strict=True)]
        return torch.tensor([self.proposal(row, count, gamma) for row, count in enumerate(emitted)]), None


def replay(here: Scene, drafter: Scripted, gamma: int, stop_tokens: Sequence[int]) -> dict[str, list[int]]:
    """The same decoding in plain Python, without a model: what the log must say."""
    counts = {name: [0] * gamma for name in ("drafted_by_position", "accepted_by_position")}
    emitted, active_rows, done = [], [], [0] * len(here.prompts)
    outputs = here.expected(stop_tokens)
    while any(count < len(output) for count, output in zip(done, outputs, strict=True)):
        emitted.append(0)
        active_rows.append(0)
        for row, output in enumerate(outputs):
            if done[row] == len(output):
                continue
            proposal, accepted = drafter.proposal(row, done[row], gamma), 0
            for position, token in enumerate(proposal):
                counts["drafted_by_position"][position] += 1
                if token != here.continuations[row][done[row] + position]:
                    break
                counts["accepted_by_position"][position] += 1
                accepted += 1
            new = min(accepted + 1, len(output) - done[row])
            done[row] += new
            emitted[-1] += new
            active_rows[-1] += 1
    return {"emitted": emitted, "active_rows": active_rows, **counts}


@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8])
def test_the_log_counts_what_a_replay_in_plain_python_counts(gamma: int, stopping: bool) -> None:
    here = scene(2)
    stops = here.stop_tokens if stopping else ()
    drafter = Scripted(here, lambda row, index: (7 * row + index * index) % 5 in (0, 3))
    batch = Batch(here.target, requests_of(here.prompts), GenerationSettings(NEW_TOKENS, stops), gamma=gamma)
    batch.prefill()
    log = decode_all(batch, FixedPolicy(drafter, gamma))
    assert log.outputs == here.expected(stops)
    for name, wanted in replay(here, drafter, gamma, stops).items():
        assert getattr(log, name) == wanted, name
    drafted, accepted = sum(log.drafted_by_position), sum(log.accepted_by_position)
    assert drafted > accepted > 0
    assert log.acceptance_rate == accepted / drafted
    assert log.mean_acceptance_length == sum(len(output) for output in log.outputs) / sum(log.active_rows)


def test_what_a_limit_cuts_off_is_not_among_the_tokens_per_round() -> None:
    here = scene(2)
    drafter = Scripted(here, lambda row, index: False)
    batch = Batch(here.target, requests_of(here.prompts), GenerationSettings(4), gamma=20)
    batch.prefill()
    log = decode_all(batch, FixedPolicy(drafter, 20))
    assert [len(output) for output in log.outputs] == [4] * len(here.prompts)
    assert log.accepted_by_position[3] > 0, "more was accepted than was emitted"
    assert log.mean_acceptance_length == 4.0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_the_log_agrees_with_the_outputs(kind: str, policy: str) -> None:
    here = scene(4)
    gamma = 0 if kind == "none" else 4
    for stops in ((), here.stop_tokens):
        outputs, log = run_alone(here.target, here.draft, here.prompts, strategy_of(kind, policy, gamma, 20), stops)
        assert outputs == here.expected(stops)
        assert [completion.request_index for completion in log.completions] == [0, 1, 2, 3]
        assert sum(log.emitted) == sum(len(output) for output in outputs)
        assert log.active_rows == sorted(log.active_rows, reverse=True)
        assert all(rows <= tokens <= rows * (gamma + 1) for rows, tokens in zip(log.active_rows, log.emitted, strict=True))
        assert all(sum(one.rows_by_accepted) == one.active for one in log.rounds)
        assert len(log.drafted_by_position) == len(log.accepted_by_position) == gamma
        # A draft position is reached where the one before it was accepted.
        assert log.drafted_by_position[:1] == [sum(log.active_rows)][:gamma]
        assert log.drafted_by_position[1:] == log.accepted_by_position[:-1]
        # Rows that are cut short by a stop token or their limit emit less than was accepted, in their last round only.
        offered = sum(log.active_rows) + sum(log.accepted_by_position)
        assert sum(log.emitted) <= offered <= sum(log.emitted) + gamma * len(outputs)


def test_requests_that_end_in_an_earlier_round_took_less_time() -> None:
    here = scene(2)
    _, log = run_alone(here.target, None, here.prompts, Strategy(), here.stop_tokens)
    by_length = sorted((len(done.tokens), done.decode_s) for done in log.completions)
    assert all((a[1] < b[1]) == (a[0] < b[0]) for a, b in pairwise(by_length))
    assert log.tpot_s == pytest.approx(sum(s / n for n, s in by_length) / 4)
    assert log.decode_s == sum(log.round_s) > 0


def test_a_round_is_told_as_soon_as_it_is_over_and_every_request_as_soon_as_it_is_read() -> None:
    here = scene(2)
    read: list[Request] = []
    requests = requests_of(here.prompts)
    strategy = Strategy("self", "streaming_llm", 8, 3)
    batch = Batch(here.target, requests, GenerationSettings(NEW_TOKENS), gamma=3)
    batch.prefill(read.append)
    assert read == requests
    committed = int(batch.lengths_B.sum())
    for one in decode(batch, make_policy(strategy, batch, None)):
        committed += one.emitted
        assert committed == int(batch.lengths_B.sum())


def one_round(times: tuple[float, float, float], emitted: int, rows_by_accepted: tuple[int, ...], *done: Completion) -> RoundRecord:
    return RoundRecord(*times, emitted, sum(rows_by_accepted), len(rows_by_accepted) - 1, 50.0, rows_by_accepted, done)


def test_logs_of_several_batches_merge_into_one() -> None:
    first = RoundLog(
        [
            one_round((0.1, 1.0, 1.5), 4, (0, 1, 1), Completion(1, [1, 2, 3], 1.5)),
            one_round((0.2, 2.0, 2.5), 2, (1, 0, 0), Completion(0, [1, 2, 3], 4.0)),
        ]
    )
    second = RoundLog([one_round((0.3, 3.0, 3.5), 5, (0, 1, 1), Completion(0, [7, 8], 3.5), Completion(1, [7, 8, 9], 3.5))])
    merged = merge([first, second])
    assert merged.rounds == [*first.rounds, *second.rounds]
    assert (merged.draft_s, merged.verify_s, merged.round_s) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert (merged.emitted, merged.active_rows) == ([4, 2, 5], [2, 1, 2])
    assert (merged.drafted_by_position, merged.accepted_by_position) == ([5, 4], [4, 2])
    assert merged.acceptance_rate == 6 / 9
    assert merged.mean_acceptance_length == 1 + 6 / 5
    assert merged.decode_s == 7.5
    assert merged.tpot_s == pytest.approx((1.5 / 3 + 4.0 / 3 + 3.5 / 2 + 3.5 / 3) / 4)
    assert first.outputs == [[1, 2, 3], [1, 2, 3]]
    assert merge([first]).rounds == first.rounds


def test_a_merged_log_of_autoregressive_decoding_has_no_acceptance() -> None:
    log = RoundLog([one_round((0.0, 1.0, 1.5), 2, (2,), Completion(0, [1], 1.5), Completion(1, [2], 1.5))])
    merged = merge([log, log])
    assert merged.acceptance_rate is None
    assert merged.mean_acceptance_length == 1.0
    assert [len(done.tokens) for done in merged.completions] == [1, 1, 1, 1]
