"""Many prompts through few rows: rows that are taken over, limits and stop texts of each prompt, strategies that switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import TINY, continue_without_cache, cut_after_stop, perturbed, random_prompts, tiny_model
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.executor.decode_loop import decode
from magicdec.executor.drafting.drafters import NgramDrafter
from magicdec.executor.drafting.policy import PLAIN, Always, Steering, next_strategy
from magicdec.executor.engine import batch as batch_module
from magicdec.executor.engine.batch import Batch, Prompt
from magicdec.executor.engine.prefill import prefill
from magicdec.executor.engine.stop_strings import StopTexts, cut_text
from magicdec.executor.generate import RUNNABLE, make_drafter, run_batch, run_stream
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.system import machine, memory

LENGTHS = (1, 40, 7, 64, 2, 23, 50, 16, 33, 3, 90)
LIMITS = (12, 5, 20, 1, 17, 9, 30, 13, 2, 26, 8)
LONGEST = 30
GAMMAS = range(1, 9)


@cache
def scene() -> tuple[Transformer, Transformer, tuple[Prompt, ...], tuple[tuple[int, ...], ...]]:
    target = tiny_model(seed=6)
    prompts = tuple(
        Prompt(f"p{place}", tokens, limit, kv_budget=5 + place if place % 3 == 0 else None)
        for place, (tokens, limit) in enumerate(zip(random_prompts(LENGTHS, seed=6), LIMITS, strict=True))
    )
    whole = tuple(tuple(continue_without_cache(target, prompt.tokens, LONGEST)) for prompt in prompts)
    return target, perturbed(target, 0.06), prompts, whole


def expected(stop_tokens: list[int]) -> list[list[int]]:
    _, _, prompts, whole = scene()
    return [cut_after_stop(tokens[: prompt.max_new_tokens], stop_tokens) for prompt, tokens in zip(prompts, whole, strict=True)]


def strategy_of(kind: str, policy: str, gamma: int, kv_budget: int = 8, kv_dtype: str = "int8") -> Strategy:
    if kind == "none":
        return NO_SPECULATION
    compressed = kv_dtype if (kind, policy) == ("self", "full") else None
    return Strategy(kind, policy, None if policy == "full" else kv_budget, gamma, "small" if kind == "model" else None, compressed)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_a_stream_of_prompts_emits_what_plain_decoding_does(kind: str, policy: str, gamma: int) -> None:
    """Float64: eleven unequal prompts with limits, budgets and stop tokens of their own through three rows."""
    target, draft, prompts, _ = scene()
    stops = [4, 9] if gamma % 2 else []
    told: dict[int, list[int]] = {}
    kv_dtype = ("int8", "int4", "fp8")[gamma % 3]
    result = run_stream(
        target,
        draft,
        prompts,
        strategy_of(kind, policy, gamma, (6, 20)[gamma // 2 % 2], kv_dtype),
        batch_size=3,
        max_new_tokens=LONGEST,
        stop_tokens=stops,
        finished=lambda place, output: told.update({place: output}),
    )
    assert result.outputs == expected(stops)
    assert [told[place] for place in range(len(prompts))] == result.outputs
    assert result.trace.row_tokens == [len(output) for output in result.outputs]
    assert sum(result.trace.emitted) == sum(result.trace.row_tokens)
    assert max(result.trace.active_rows) == 3
    assert all(seconds > 0 for seconds in result.trace.row_finish_s)
    if stops:
        assert sum(len(output) < prompt.max_new_tokens for output, prompt in zip(result.outputs, prompts, strict=True)) >= 3
    if kind != "none":
        assert sum(result.trace.drafted_by_position) > sum(result.trace.accepted_by_position) > 0


def test_a_free_row_is_taken_at_once() -> None:
    target, _, prompts, _ = scene()
    read: list[int] = []
    result = run_stream(target, None, prompts, NO_SPECULATION, batch_size=4, max_new_tokens=LONGEST, prefilled=read.append)
    assert len(read) == len(prompts)
    assert read[:4] == [0, 1, 2, 3]
    waiting, rounds = sum(LIMITS), 0
    for active in result.trace.active_rows:  # plain decoding emits a token a row: rows idle only when nobody waits
        rounds += active
        assert active == 4 or waiting - rounds < 4 * LONGEST
    assert rounds == waiting
    assert result.trace.active_rows == sorted(result.trace.active_rows, reverse=True)


@pytest.mark.parametrize(("kind", "policy"), RUNNABLE)
def test_rows_that_are_done_are_dropped_when_nobody_waits(kind: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft, prompts, _ = scene()
    sizes: list[int] = []
    whole = Batch.keep

    def keep(self: Batch, rows_B: torch.Tensor) -> None:
        whole(self, rows_B)
        sizes.append(self.cache.k_LBKSH.shape[1])

    monkeypatch.setattr(Batch, "keep", keep)
    for kv_dtype in ("int8", "int4", "fp8"):
        strategy = strategy_of(kind, policy, 2, 8, kv_dtype)
        result = run_stream(target, draft, prompts, strategy, batch_size=9, max_new_tokens=LONGEST)
        assert result.outputs == expected([])
        assert sizes[0] <= 4
        assert sizes[-1] <= 2
        assert sizes == sorted(set(sizes), reverse=True)
        sizes.clear()
    if kind == "model" or (kind == "self" and policy != "full"):  # the drafters keep the right rows: who sees all is always right
        asked = [replace(prompt, kv_budget=None) for prompt in prompts]
        result = run_stream(target, target, asked, strategy_of(kind, policy, 3, 500), batch_size=9, max_new_tokens=LONGEST)
        assert result.trace.acceptance_rate == 1.0
        assert sizes


def test_a_budget_of_a_prompts_own_is_that_rows_budget() -> None:
    """With a budget that covers the context a row's drafts are always accepted; the others' are not."""
    target, _, _, _ = scene()
    texts = random_prompts((40, 41), seed=6)
    for policy in ("streaming_llm", "snapkv", "topk", "quest"):
        rates = []
        for budgets in ((None, None), (200, None), (200, 200)):
            prompts = [Prompt(str(row), tokens, kv_budget=kv) for row, (tokens, kv) in enumerate(zip(texts, budgets, strict=True))]
            strategy = strategy_of("self", policy, 3, 4)
            rates.append(run_batch(target, None, prompts, strategy, max_new_tokens=24).trace.acceptance_rate)
        assert rates[0] < rates[1] < rates[2] == 1.0, policy


# Stop texts.


def spelled() -> Tokenizer:
    """A tokenizer of tokens a, b, c and so on, without spaces between them."""
    tokenizer = Tokenizer(WordLevel({chr(97 + i): i for i in range(26)} | {str(i): 26 + i for i in range(5)}, unk_token="a"))
    tokenizer.decoder = Fuse()
    return tokenizer


@pytest.mark.parametrize("gamma", [0, 1, 3, 8])
def test_a_stop_text_ends_a_row_at_the_token_that_completes_it(gamma: int) -> None:
    target, _, prompts, whole = scene()
    tokenizer = spelled()
    texts = [tokenizer.decode(list(tokens)) for tokens in whole]
    stops = [(texts[0][2:4],), (texts[1][9:11], texts[1][4:7]), (), ("no such text",), (texts[4][16],)]
    asked = [Prompt(p.id, p.tokens, LONGEST, stop) for p, stop in zip(prompts, stops, strict=False)]
    strategy = strategy_of("self", "topk", gamma, 6) if gamma else NO_SPECULATION
    result = run_stream(target, None, asked, strategy, batch_size=2, max_new_tokens=LONGEST, stop_texts=StopTexts(tokenizer))
    for output, text, ends in zip(result.outputs, texts, stops, strict=False):
        places = [text.find(end) + len(end) for end in ends if end in text]
        assert tokenizer.decode(output) == text[: min(places)] if places else output
        assert cut_text(tokenizer.decode(output), ends) == cut_text(text, ends)
    assert sum(len(output) < LONGEST for output in result.outputs) == 3
    assert sum(result.trace.emitted) == sum(map(len, result.outputs))


# Policies.


def table(hysteresis: float = 0.05) -> PolicyTable:
    """Plain decoding for one row, a token ahead for two; else five ahead at short contexts and a small model at long ones."""
    strategies = [NO_SPECULATION, strategy_of("self", "streaming_llm", 5), strategy_of("model", "full", 2)]
    return PolicyTable(
        batch_sizes=[1, 2, 8],
        context_lens=[45, 200],
        strategies=[*strategies, strategy_of("self", "streaming_llm", 1)],
        choice=[[0, 0], [3, 3], [1, 2]],
        predicted_speedup=[[1.0, 1.0], [1.1, 1.1], [1.5, 1.4]],
        hysteresis=hysteresis,
    )


class Noting(Steering):
    """Keeps what was picked."""

    def pick(self, active: int, context_len: float) -> tuple:
        picked = super().pick(active, context_len)
        self.picked = [*getattr(self, "picked", []), (active, context_len, self.strategy)]
        return picked


def test_a_policy_table_switches_while_running_and_changes_no_text() -> None:
    target, draft, prompts, _ = scene()
    rows = Batch(target, prompts, max_new_tokens=LONGEST, gamma=5, rows=4)
    rows.prefill()
    steer = Noting(table(hysteresis=0.0), lambda strategy: make_drafter(strategy, rows, draft))
    trace = decode(rows, steer=steer)
    assert rows.outputs() == expected([])
    used = [strategy for _, _, strategy in steer.picked]
    assert set(used) == set(table().strategies)
    assert all(strategy == table().at(active, context) for active, context, strategy in steer.picked)
    assert len(trace.drafted_by_position) == 5
    assert sum(trace.drafted_by_position) > sum(trace.accepted_by_position) > 0
    result = run_stream(target, draft, prompts, NO_SPECULATION, batch_size=3, max_new_tokens=LONGEST, policy=table())
    assert result.outputs == expected([])


def test_a_drafter_that_was_idle_catches_up() -> None:
    """Drafters that see everything are always accepted, though they take turns with plain steps and with one another."""
    target, _, prompts, _ = scene()
    for first in DRAFTS_THAT_SEE_ALL:
        rows = Batch(target, prompts, max_new_tokens=LONGEST, gamma=3, rows=3)
        rows.prefill()
        turns = [Always(make_drafter(s, rows, target), s.gamma) for s in (first, NO_SPECULATION, strategy_of("model", "full", 2))]

        class Turns:
            calls = 0

            def pick(self, active: int, context_len: float) -> tuple:
                self.calls += 1
                return turns[self.calls * self.calls % 5 % 3].pick(active, context_len)  # noqa: B023

            def reset(self, row: int, kv_budget: int | None) -> None:
                for turn in turns:  # noqa: B023
                    turn.reset(row, 500)

            def keep(self, rows_B: torch.Tensor) -> None:
                for turn in turns:  # noqa: B023
                    turn.keep(rows_B)

        trace = decode(rows, steer=Turns())
        assert rows.outputs() == expected([])
        assert trace.acceptance_rate == 1.0, first


def test_a_small_models_own_cache_holds_what_was_said_whoever_drafted_it() -> None:
    """After rejected drafts and rounds of others, the entries that it counts as read are those of the final text."""
    target, draft, prompts, _ = scene()
    rows = Batch(target, prompts[:4], max_new_tokens=LONGEST, gamma=4)
    rows.prefill()
    small = make_drafter(strategy_of("model", "full", 4), rows, draft)
    turns = [Always(small, 4), PLAIN, PLAIN, Always(small, 4), Always(NgramDrafter(), 3)]

    class Turns(Always):
        calls: ClassVar[Iterator[int]] = count()

        def pick(self, active: int, context_len: float) -> tuple:
            return turns[next(self.calls) % 5].pick(active, context_len)

    trace = decode(rows, steer=Turns())
    assert rows.outputs() == expected([])[:4]
    assert sum(trace.drafted_by_position) > sum(trace.accepted_by_position) > 0
    fresh = KvCache(draft.config, 4, rows.cache.capacity, draft.device, draft.dtype)
    for row, read in enumerate(torch.minimum(small.read_B, rows.lengths_B).tolist()):
        prefill(draft, fresh, row, rows.tokens_BS[row, :read])
        assert read >= len(prompts[row].tokens) - 1
        torch.testing.assert_close(small.cache.k_LBKSH[:, row, :, :read], fresh.k_LBKSH[:, row, :, :read], atol=1e-10, rtol=0)


@pytest.mark.parametrize("policy", ["streaming_llm", "snapkv", "topk", "quest"])
def test_a_prompt_just_as_long_as_the_text_before_it_in_its_row_is_told_apart(policy: str) -> None:
    target, _, _, _ = scene()
    first, second = random_prompts((10, 16), seed=8)
    prompts = [Prompt("a", first, 6), Prompt("b", second, 12)]  # ten and six tokens, then sixteen
    result = run_stream(target, None, prompts, strategy_of("self", policy, 3, 500), batch_size=1, max_new_tokens=LONGEST)
    assert result.trace.acceptance_rate == 1.0
    assert result.outputs == [continue_without_cache(target, prompt.tokens, prompt.max_new_tokens) for prompt in prompts]


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
    prompts = [Prompt(str(row), [1] * 10) for row in range(8)]
    with pytest.raises(InputError) as caught:
        Batch(tiny_model(), prompts, max_new_tokens=5)
    assert "memory: expected a batch of at most 3" in str(caught.value)
    Batch(tiny_model(), prompts, max_new_tokens=5, rows=3)
    with pytest.raises(InputError, match="not even one"):
        Batch(tiny_model(), [Prompt("a", [1] * 50)], max_new_tokens=50)


def test_running_out_of_memory_while_running_is_explained_and_other_errors_are_not() -> None:
    prompts = [Prompt(str(row), [1] * 10) for row in range(8)]
    rows = Batch(tiny_model(), prompts, max_new_tokens=5)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(InputError, match="at most 7"), rows.memory_explained():
            raise error
    with pytest.raises(RuntimeError, match="shapes"), rows.memory_explained():
        raise RuntimeError("shapes differ")


def test_a_containers_limit_counts_but_not_the_files_that_are_merely_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 3\ninactive_file 500\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert memory.available_bytes(torch.device("cpu")) == 800
    (tmp_path / "memory.max").write_text("max\n")
    assert 800 < memory.available_bytes(torch.device("cpu")) < 1e16
