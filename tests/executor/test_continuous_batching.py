"""Many requests through few rows: rows that are refilled, limits and stop strings of each request, strategies that switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from decoding import decode_all, decode_one_batch, strategy_of
from tiny_models import TINY, continue_without_cache, cut_after_stop, perturbed, random_prompts, tiny_model
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.executor.drafting.draft_policy import AUTOREGRESSIVE, FixedPolicy, TablePolicy, next_strategy
from magicdec.executor.drafting.drafters import Drafter, ModelDrafter, NgramDrafter
from magicdec.executor.drafting.factory import make_drafter, make_policy
from magicdec.executor.engine import batch as batch_module
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.prefill import prefill
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.round_log import RoundLog
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.engine.stop_strings import StopStrings, truncate_at_stop
from magicdec.executor.generate import RUNNABLE, generate, make_batch, run
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.system import machine, memory

LENGTHS = (1, 40, 7, 64, 2, 23, 50, 16, 33, 3, 90)
LIMITS = (12, 5, 20, 1, 17, 9, 30, 13, 2, 26, 8)
LONGEST = 30
SETTINGS = GenerationSettings(LONGEST)


@cache
def scene() -> tuple[Transformer, Transformer, tuple[Request, ...], tuple[tuple[int, ...], ...]]:
    target = tiny_model(seed=6)
    prompts = tuple(
        Request(f"p{index}", tokens, limit, kv_budget=5 + index if index % 3 == 0 else None)
        for index, (tokens, limit) in enumerate(zip(random_prompts(LENGTHS, seed=6), LIMITS, strict=True))
    )
    whole = tuple(tuple(continue_without_cache(target, prompt.tokens, LONGEST)) for prompt in prompts)
    return target, perturbed(target, 0.06), prompts, whole


def expected(stop_tokens: tuple[int, ...] = ()) -> list[list[int]]:
    _, _, prompts, whole = scene()
    return [cut_after_stop(tokens[: prompt.max_new_tokens], stop_tokens) for prompt, tokens in zip(prompts, whole, strict=True)]


def stream_cases() -> list[tuple[str, str, int, int, str]]:
    """Every draft with an odd gamma and an even one, in turns over 1 to 8; compressed entries in each of their types."""
    cases = []
    for index, (kind, policy) in enumerate(RUNNABLE):
        odd, even = 2 * (index % 4) + 1, 2 * ((index + 2) % 4) + 2
        small_first = (6, 20) if index % 2 else (20, 6)
        dtypes = ("int8", "int4")
        cases += [(kind, policy, gamma, *rest) for gamma, *rest in zip((odd, even), small_first, dtypes, strict=True)]
    return [*cases, ("self", "full", 5, 8, "fp8")]


@pytest.mark.parametrize(("kind", "policy", "gamma", "kv_budget", "kv_dtype"), stream_cases())
def test_a_stream_of_requests_emits_what_autoregressive_decoding_does(
    kind: str, policy: str, gamma: int, kv_budget: int, kv_dtype: str
) -> None:
    """Float64: eleven unequal requests with their own limits and budgets through three rows; stop tokens with odd gammas."""
    target, draft, requests, _ = scene()
    stops = (4, 9) if gamma % 2 else ()
    strategy = strategy_of(kind, policy, gamma, kv_budget, kv_dtype)
    log = run(target, draft, requests, strategy, replace(SETTINGS, stop_tokens=stops), batch_size=3).log
    assert log.outputs == expected(stops)
    assert [done.request_index for done in log.completions] == list(range(len(requests)))
    assert sum(log.emitted) == sum(len(output) for output in log.outputs)
    assert max(log.active_rows) == 3
    assert all(done.decode_s > 0 for done in log.completions)
    if stops:
        assert sum(len(output) < (request.max_new_tokens or 0) for output, request in zip(log.outputs, requests, strict=True)) >= 3
    if kind != "none":
        assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0


def test_a_free_row_is_refilled_at_once() -> None:
    target, _, requests, _ = scene()
    read: list[Request] = []
    batch = make_batch(target, requests, NO_SPECULATION, SETTINGS, batch_size=4)
    batch.prefill(read.append)
    assert read == list(requests[:4])
    log = RoundLog(list(generate(batch, None, NO_SPECULATION)))
    assert read == list(requests)
    waiting, rounds = sum(LIMITS), 0
    for active in log.active_rows:  # one token per row and round: rows are idle only when no request waits
        rounds += active
        assert active == 4 or waiting - rounds < 4 * LONGEST
    assert rounds == waiting
    assert log.active_rows == sorted(log.active_rows, reverse=True)


def test_a_completion_is_told_before_the_next_request_is_read_into_its_row() -> None:
    """An interruption during a long prefill must not lose finished completions."""
    target, _, requests, _ = scene()
    batch = make_batch(target, requests, NO_SPECULATION, SETTINGS, batch_size=2)
    read: list[Request] = []
    batch.prefill(read.append)
    finished = 0
    for one in generate(batch, None, NO_SPECULATION):
        assert len(read) == min(2 + finished, len(requests))
        finished += len(one.completions)
        if finished == 3:
            break
    assert finished == 3


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_rows_that_are_done_are_dropped_when_no_request_waits(kind: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft, prompts, _ = scene()
    sizes: list[int] = []
    whole = Batch.compact

    def compact(self: Batch, rows_B: torch.Tensor) -> None:
        whole(self, rows_B)
        sizes.append(self.cache.k_LBKSH.shape[1])

    monkeypatch.setattr(Batch, "compact", compact)
    for kv_dtype in ("int8", "int4", "fp8") if (kind, policy) == ("self", "full") else ("int8",):
        strategy = strategy_of(kind, policy, 2, 8, kv_dtype)
        assert run(target, draft, prompts, strategy, SETTINGS, batch_size=9).outputs == expected()
        assert sizes[0] <= 4
        assert sizes[-1] <= 2
        assert sizes == sorted(set(sizes), reverse=True)
        sizes.clear()
    if kind == "model" or (
        kind == "self" and policy != "full"
    ):  # compacting keeps the right rows: a draft that sees everything is always accepted
        asked = [replace(prompt, kv_budget=None) for prompt in prompts]
        result = run(target, target, asked, strategy_of(kind, policy, 3, 500), SETTINGS, batch_size=9)
        assert result.log.acceptance_rate == 1.0
        assert sizes


def test_a_request_may_have_its_own_budget() -> None:
    """A row whose own budget covers its context accepts all drafts; the others do not."""
    target, _, _, _ = scene()
    texts = random_prompts((40, 41), seed=6)
    for policy in ("streaming_llm", "snapkv", "topk", "quest"):
        rates = []
        for budgets in ((None, None), (200, None), (200, 200)):
            asked = [Request(str(row), tokens, kv_budget=kv) for row, (tokens, kv) in enumerate(zip(texts, budgets, strict=True))]
            log = decode_one_batch(target, None, asked, strategy_of("self", policy, 3, 4), GenerationSettings(24))
            rates.append(log.acceptance_rate)
        assert rates[0] < rates[1] < rates[2] == 1.0, policy


# Stop strings.


def spelled() -> Tokenizer:
    """A tokenizer of tokens a, b, c and so on, without spaces between them."""
    tokenizer = Tokenizer(WordLevel({chr(97 + i): i for i in range(26)} | {str(i): 26 + i for i in range(5)}, unk_token="a"))
    tokenizer.decoder = Fuse()
    return tokenizer


@pytest.mark.parametrize("gamma", [0, 1, 3, 8])
def test_a_stop_string_ends_a_row_at_the_token_that_completes_it(gamma: int) -> None:
    target, _, prompts, whole = scene()
    tokenizer = spelled()
    texts = [tokenizer.decode(list(tokens)) for tokens in whole]
    stops = [(texts[0][2:4],), (texts[1][9:11], texts[1][4:7]), (), ("no such text",), (texts[4][16],)]
    asked = [Request(p.id, p.tokens, LONGEST, stop) for p, stop in zip(prompts, stops, strict=False)]
    strategy = strategy_of("self", "topk", gamma, 6) if gamma else NO_SPECULATION
    result = run(target, None, asked, strategy, replace(SETTINGS, stop_strings=StopStrings(tokenizer)), batch_size=2)
    for output, text, ends in zip(result.outputs, texts, stops, strict=False):
        places = [text.find(end) + len(end) for end in ends if end in text]
        assert tokenizer.decode(output) == text[: min(places)] if places else output
        assert truncate_at_stop(tokenizer.decode(output), ends) == truncate_at_stop(text, ends)
    assert sum(len(output) < LONGEST for output in result.outputs) == 3
    assert sum(result.log.emitted) == sum(map(len, result.outputs))


# Policies.


def table(hysteresis: float = 0.05) -> PolicyTable:
    """Autoregressive for one row, gamma 1 for two; else gamma 5 at short contexts and a small model at long ones."""
    strategies = [NO_SPECULATION, strategy_of("self", "streaming_llm", 5), strategy_of("model", "full", 2)]
    return PolicyTable(
        batch_sizes=[1, 2, 8],
        context_lens=[45, 200],
        strategies=[*strategies, strategy_of("self", "streaming_llm", 1)],
        choice=[[0, 0], [3, 3], [1, 2]],
        predicted_speedup=[[1.0, 1.0], [1.1, 1.1], [1.5, 1.4]],
        hysteresis=hysteresis,
    )


class RecordingPolicy(TablePolicy):
    """Records what it selects."""

    def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
        selected = super().select(active, context_len)
        self.selected = [*getattr(self, "selected", []), (active, context_len, self.strategy)]
        return selected


def test_a_policy_table_switches_while_running_and_changes_no_text() -> None:
    target, draft, prompts, _ = scene()
    batch = make_batch(target, prompts, table(), SETTINGS, batch_size=4)
    batch.prefill()
    policy = RecordingPolicy(table(hysteresis=0.0), lambda strategy: make_drafter(strategy, batch, draft))
    log = decode_all(batch, policy)
    assert log.outputs == expected()
    used = [strategy for _, _, strategy in policy.selected]
    assert set(used) == set(table().strategies)
    assert all(strategy == table().at(active, context) for active, context, strategy in policy.selected)
    assert len(log.drafted_by_position) == 5
    assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0
    assert run(target, draft, prompts, table(), SETTINGS, batch_size=3).outputs == expected()


def test_an_idle_drafter_catches_up() -> None:
    """Drafts that see everything are always accepted, although they take turns with autoregressive steps and other drafters."""
    target, _, prompts, _ = scene()
    for first in DRAFTS_THAT_SEE_ALL:
        batch = Batch(target, prompts, SETTINGS, gamma=3, rows=3)
        batch.prefill()
        turns = [make_policy(s, batch, target) for s in (first, NO_SPECULATION, strategy_of("model", "full", 2))]

        class Turns:
            calls = 0

            def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
                self.calls += 1
                return turns[self.calls * self.calls % 5 % 3].select(active, context_len)  # noqa: B023

            def reset(self, row: int, kv_budget: int | None) -> None:
                for turn in turns:  # noqa: B023
                    turn.reset(row, 500)

            def compact(self, rows_B: torch.Tensor) -> None:
                for turn in turns:  # noqa: B023
                    turn.compact(rows_B)

        log = decode_all(batch, Turns())
        assert log.outputs == expected()
        assert log.acceptance_rate == 1.0, first


def test_a_draft_models_cache_holds_the_final_text_whoever_drafted_it() -> None:
    """After rejected drafts and rounds of other drafters, the entries it counts as cached are those of the final text."""
    target, draft, prompts, _ = scene()
    batch = Batch(target, prompts[:4], SETTINGS, gamma=4)
    batch.prefill()
    small = make_drafter(strategy_of("model", "full", 4), batch, draft)
    assert isinstance(small, ModelDrafter)
    turns = [FixedPolicy(small, 4), AUTOREGRESSIVE, AUTOREGRESSIVE, FixedPolicy(small, 4), FixedPolicy(NgramDrafter(), 3)]

    class Turns(FixedPolicy):
        calls: ClassVar[Iterator[int]] = count()

        def select(self, active: int, context_len: float) -> tuple[Drafter | None, int]:
            return turns[next(self.calls) % 5].select(active, context_len)

    log = decode_all(batch, Turns())
    assert log.outputs == expected()[:4]
    assert sum(log.drafted_by_position) > sum(log.accepted_by_position) > 0
    fresh = KvCache(draft.config, 4, batch.cache.capacity, draft.device, draft.dtype)
    for row, read in enumerate(torch.minimum(small.cached_B, batch.lengths_B).tolist()):
        prefill(draft, fresh, row, batch.tokens_BS[row, :read])
        assert read >= len(prompts[row].tokens) - 1
        torch.testing.assert_close(small.cache.k_LBKSH[:, row, :, :read], fresh.k_LBKSH[:, row, :, :read], atol=1e-10, rtol=0)


@pytest.mark.parametrize("policy", ["streaming_llm", "snapkv", "topk", "quest"])
def test_a_prompt_just_as_long_as_the_text_before_it_in_its_row_is_told_apart(policy: str) -> None:
    target, _, _, _ = scene()
    first, second = random_prompts((10, 16), seed=8)
    asked = [Request("a", first, 6), Request("b", second, 12)]  # ten and six tokens, then sixteen
    result = run(target, None, asked, strategy_of("self", policy, 3, 500), SETTINGS, batch_size=1)
    assert result.log.acceptance_rate == 1.0
    assert result.outputs == [continue_without_cache(target, first, 6), continue_without_cache(target, second, 12)]


DRAFTS_THAT_SEE_ALL = [
    strategy_of(kind, policy, 3, 500) for kind, policy in RUNNABLE if kind == "model" or (kind == "self" and policy != "full")
]


def test_a_strategy_is_kept_near_a_boundary_and_left_beyond_it() -> None:
    plain, wide, small, narrow = table().strategies
    assert next_strategy(table(), None, 1, 40) == plain
    assert next_strategy(table(), plain, 8, 40) == wide
    assert next_strategy(table(0.1), wide, 8, 49) == wide, "within a tenth of 45"
    assert next_strategy(table(0.1), small, 8, 49) == small
    assert next_strategy(table(0.1), wide, 8, 51) == small
    assert next_strategy(table(0.0), wide, 8, 46) == small
    assert next_strategy(table(0.1), small, 2, 100) == narrow
    assert next_strategy(table(0.1), narrow, 1, 100) == plain


# Memory.


def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    per_row = TINY.kv_bytes_per_token * (10 + 5 + 1)
    for module in (memory, batch_module):
        monkeypatch.setattr(module, "available_bytes", lambda device: 3.5 * per_row)
    prompts = [Request(str(row), [1] * 10) for row in range(8)]
    with pytest.raises(InputError) as caught:
        Batch(tiny_model(), prompts, GenerationSettings(5))
    assert "memory: expected a batch of at most 3" in str(caught.value)
    Batch(tiny_model(), prompts, GenerationSettings(5), rows=3)
    with pytest.raises(InputError, match="not even one sequence"):
        Batch(tiny_model(), [Request("a", [1] * 50)], GenerationSettings(50))


def test_running_out_of_memory_while_running_is_explained_and_other_errors_are_not() -> None:
    prompts = [Request(str(row), [1] * 10) for row in range(8)]
    rows = Batch(tiny_model(), prompts, GenerationSettings(5))
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(InputError, match="at most 7"), rows.memory_explained():
            raise error
    with pytest.raises(RuntimeError, match="shapes"), rows.memory_explained():
        raise RuntimeError("shapes differ")


def test_a_containers_limit_counts_but_cached_files_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 3\ninactive_file 500\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert memory.available_bytes(torch.device("cpu")) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert 800 < memory.available_bytes(torch.device("cpu")) < 1e16
