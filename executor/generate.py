"""Run a strategy on prompts: what can run, batches, outputs and traces. What is measured here never sees a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.strategy import Strategy

from .decode_loop import Finished, decode
from .drafting.drafters import Drafter, ModelDrafter, NgramDrafter
from .drafting.kv_views import CopyReading, FullReading, QuantisedReading, Reading, SnapKvReading
from .drafting.policy import PLAIN, Always, Steer, Steering
from .drafting.query_aware_views import QuestReading, TopKReading
from .engine.batch import Batch, Progress, Prompt
from .engine.round_log import Trace
from .engine.sampling import GREEDY, Sampling
from .engine.stop_strings import StopTexts
from .kv.cache import KvCache
from .measuring.measurement import select_step_s
from .model.transformer import Transformer

SPARSE = ("streaming_llm", "snapkv", "topk", "quest")
RUNNABLE = (
    ("none", "full"),
    ("ngram", "full"),
    ("self", "full"),
    *(("self", policy) for policy in SPARSE),
    ("model", "full"),
    *(("model", policy) for policy in SPARSE),
)


@dataclass(frozen=True)
class Result:
    """A batch that has run.

    Attributes:
        outputs: New tokens of each row.
        trace: What the strategy's run did.
        plain_outputs, plain_trace: The same of plain decoding, where it was asked for.
        prefill_s: Reading the prompts, once for both. [s]
        select_step_s: Choosing the entries of a draft step, alone, where every step chooses; measured beside `compare`. [s]
    """

    outputs: list[list[int]]
    trace: Trace
    plain_outputs: list[list[int]] | None
    plain_trace: Trace | None
    prefill_s: float
    select_step_s: float | None = None


def check_runnable(strategy: Strategy, target: Transformer, draft: Transformer | None) -> None:
    """Raise `InputError` unless the executor can run the strategy with these models."""
    if (strategy.draft_kind, strategy.kv_policy) not in RUNNABLE:
        known = ", ".join(f"{kind} with {policy}" for kind, policy in RUNNABLE)
        raise bad("plan", "strategy", f"a draft the executor can run ({known})", str(strategy))
    if strategy.weight_dtype is not None:
        raise bad("plan", "strategy.weight_dtype", "null: the executor drafts with the weights as they are", strategy.weight_dtype)
    if strategy.kv_dtype is not None and strategy.kv_policy != "full":
        expected = "null beside a sparse kv_policy: the executor drafts from compressed KV entries, or from fewer, not both"
        raise bad("plan", "strategy.kv_dtype", expected, strategy.kv_dtype)
    if strategy.kv_dtype == "int4" and target.config.head_dim % 2:
        raise bad("plan", "strategy.kv_dtype", "int8 or fp8 for an odd head_dim", strategy.kv_dtype)
    if draft is not None and abs(draft.config.vocab_size - target.config.vocab_size) > 0.01 * target.config.vocab_size:
        expected = f"the target's vocabulary of {target.config.vocab_size} tokens, but for padding"
        raise bad("draft model", "vocab_size", expected, draft.config.vocab_size)


def check_prompts(prompts: Sequence[Prompt], model: Transformer, max_new_tokens: int, where: str) -> None:
    """Raise `InputError` for every prompt that is empty or, with its output, longer than the model's positions."""
    if max_new_tokens >= model.config.max_context_len:
        expected = f"fewer than the {model.config.max_context_len} positions of the model"
        raise bad("--max-new-tokens", "", expected, max_new_tokens)
    problems = []
    for prompt in prompts:
        most = model.config.max_context_len - (prompt.max_new_tokens or max_new_tokens)
        if not prompt.tokens:
            problems.append(Problem(where, prompt.id, "at least one token", "an empty prompt"))
        elif max(prompt.tokens) >= model.config.vocab_size:
            expected = f"token ids below the model's vocabulary of {model.config.vocab_size}"
            problems.append(Problem(where, prompt.id, expected, f"{max(prompt.tokens)}: tokenizer.json is not this model's"))
        elif len(prompt.tokens) > most:
            expected = f"at most {most} tokens ({model.config.max_context_len} positions less {max_new_tokens} new tokens)"
            problems.append(Problem(where, prompt.id, expected, f"{len(prompt.tokens)} tokens"))
    if problems:
        raise InputError(*problems[:20])


def make_drafter(strategy: Strategy, batch: Batch, draft: Transformer | None) -> Drafter | None:
    """The drafter of a strategy for the prompts that a batch holds now; None for plain decoding."""
    if strategy.draft_kind == "none":
        return None
    if strategy.draft_kind == "ngram":
        return NgramDrafter()
    shared = strategy.draft_kind == "self"
    model, cache = (batch.model, batch.cache) if shared else _own_cache(draft, batch)
    drafter = ModelDrafter(
        model,
        cache,
        _reading(strategy, model, cache, batch),
        shared=shared,
        kv_budget=strategy.kv_budget,
        vocab_size=batch.model.config.vocab_size,
    )
    begin(drafter, batch)
    return drafter


def begin(drafter: Drafter, batch: Batch) -> None:
    """Let a drafter know nothing but the prompts that a batch holds now."""
    for row, place in enumerate(batch.places):
        drafter.reset(row, batch.prompts[place].kv_budget)


def _own_cache(draft: Transformer | None, batch: Batch) -> tuple[Transformer, KvCache]:
    """A smaller model and a cache as large as the target's."""
    assert draft is not None
    needed = max(len(prompt.tokens) + limit for prompt, limit in zip(batch.prompts, batch.limits, strict=True))
    if draft.config.max_context_len < needed:
        raise bad("draft model", "max_position_embeddings", f"at least {needed} positions", draft.config.max_context_len)
    with batch.memory_explained():
        return draft, KvCache(draft.config, len(batch), batch.cache.capacity, draft.device, draft.dtype)


def _reading(strategy: Strategy, model: Transformer, cache: KvCache, batch: Batch) -> Reading:
    """What of a cache the drafting model reads, by the strategy's KV policy."""
    budgets_B = torch.zeros(len(batch), dtype=torch.long)
    if strategy.kv_dtype is not None:
        return QuantisedReading(model, cache, budgets_B, strategy.kv_dtype)
    if strategy.kv_policy == "full":
        return FullReading(model, cache, budgets_B)
    if strategy.kv_policy in ("streaming_llm", "snapkv"):
        kind = CopyReading if strategy.kv_policy == "streaming_llm" else SnapKvReading
        most = max(prompt.kv_budget or strategy.kv_budget or 0 for prompt in batch.prompts)
        own = strategy.draft_kind == "model"
        return kind(model, cache, budgets_B, max_budget=most, gamma=batch.gamma, fill_cache=own)
    return (TopKReading if strategy.kv_policy == "topk" else QuestReading)(model, cache, budgets_B)


def run_batch(
    target: Transformer,
    draft: Transformer | None,
    prompts: Sequence[Prompt],
    strategy: Strategy,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    stop_texts: StopTexts | None = None,
    sampling: Sampling = GREEDY,
    compare: bool = False,
    repeats: int = 1,
    prefilled: Progress = lambda row: None,
    progress: Progress = lambda emitted: None,
) -> Result:
    """Continue a batch of prompts with a strategy, and with plain decoding too if `compare`; the prompts are read once.

    With `repeats` the two take turns, and of each the run with the median time per token is kept, so that what else
    the machine does meanwhile weighs little.
    """
    batch = Batch(target, prompts, max_new_tokens=max_new_tokens, gamma=strategy.gamma, sampling=sampling)
    with batch.memory_explained():
        batch.prefill(prefilled)

    def run(steer: Steer, told: Progress) -> Trace:
        batch.rewind()
        with batch.memory_explained():
            return decode(batch, steer=steer, stop_tokens=stop_tokens, stop_texts=stop_texts, progress=told)

    traces: list[Trace] = []
    plain_traces: list[Trace] = []
    plain_outputs = None
    drafter = make_drafter(strategy, batch, draft)
    first = 1 if target.device.type == "cuda" else 0  # a turn not counted, in which kernels are compiled and passes captured
    for turn in range(first + repeats):
        told = progress if turn >= first else lambda emitted: None
        if compare:
            plain_traces.append(run(PLAIN, told))
            plain_outputs = batch.outputs()
        if drafter is not None:
            begin(drafter, batch)
        traces.append(run(Always(drafter, strategy.gamma), told))
    selects = compare and isinstance(drafter, ModelDrafter)
    return Result(
        batch.outputs(),
        _median(traces[first:]),
        plain_outputs,
        _median(plain_traces[first:]) if compare else None,
        batch.read_s,
        select_step_s(drafter.reading, batch.lengths_B) if selects else None,
    )


def run_stream(
    target: Transformer,
    draft: Transformer | None,
    prompts: Sequence[Prompt],
    strategy: Strategy,
    *,
    batch_size: int,
    max_new_tokens: int,
    policy: PolicyTable | None = None,
    stop_tokens: Sequence[int] = (),
    stop_texts: StopTexts | None = None,
    sampling: Sampling = GREEDY,
    prefilled: Progress = lambda row: None,
    progress: Progress = lambda emitted: None,
    finished: Finished = lambda place, output: None,
) -> Result:
    """Continue any number of prompts, so many at a time: a prompt that is done makes room for the next one at once.

    Args:
        strategy: How tokens are drafted, where no policy table says it.
        policy: What to do at which number of running rows and mean context.
        finished: Told of each prompt's place and output as soon as it is done.
    """
    gamma = max(s.gamma for s in policy.strategies) if policy is not None else strategy.gamma
    batch = Batch(target, prompts, max_new_tokens=max_new_tokens, gamma=gamma, rows=batch_size, sampling=sampling)
    steer: Steer
    with batch.memory_explained():
        batch.prefill(prefilled)
        if policy is None:
            steer = Always(make_drafter(strategy, batch, draft), strategy.gamma)
        else:
            steer = Steering(policy, lambda kind: make_drafter(kind, batch, draft))
        trace = decode(
            batch,
            steer=steer,
            stop_tokens=stop_tokens,
            stop_texts=stop_texts,
            shrink=True,
            progress=progress,
            finished=finished,
        )
    return Result(batch.outputs(), trace, None, None, batch.read_s)


def _median(traces: Sequence[Trace]) -> Trace:
    return sorted(traces, key=lambda trace: trace.tpot_s)[len(traces) // 2]


def batches(prompts: Sequence[Prompt], batch_size: int) -> Iterator[Sequence[Prompt]]:
    """The prompts in order, so many at a time."""
    for start in range(0, len(prompts), batch_size):
        yield prompts[start : start + batch_size]


def first_difference(outputs: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    """Row and position of the first token that differs, or None."""
    for row, (found, wanted) in enumerate(zip(outputs, expected, strict=True)):
        for position, (a, b) in enumerate(zip(found, wanted, strict=False)):
            if a != b:
                return row, position
        if len(found) != len(wanted):
            return row, min(len(found), len(wanted))
    return None


@torch.inference_mode()
def log_probability_gap(model: Transformer, tokens: Sequence[int], chosen: int) -> float:
    """How much less likely `chosen` is after `tokens` than the model's favourite; 0 for the favourite itself. [nats]"""
    tokens_BT = torch.tensor([list(tokens)], device=model.device)
    positions_BT = torch.arange(len(tokens), device=model.device)[None]
    log_probs_V = model.logits(model(tokens_BT, positions_BT)[:, -1])[0].double().log_softmax(-1)
    return float(log_probs_V.max() - log_probs_V[chosen])
