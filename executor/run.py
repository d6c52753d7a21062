"""Run a strategy on prompts: batches, outputs and the measurement. What is measured here never sees a prediction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from costmodel.errors import InputError, Problem, bad
from costmodel.strategy import Strategy
from executor.decode import Batch, Progress, Trace, decode
from executor.drafters import Drafter, ModelDrafter
from executor.kv_cache import KvCache
from executor.transformer import Transformer

RUNNABLE = (("none", "full"), ("self", "streaming_llm"), ("model", "full"), ("model", "streaming_llm"))


@dataclass(frozen=True)
class Prompt:
    """One text to continue.

    Attributes:
        id: As in the prompts file, or its line number.
        tokens: Its token ids.
    """

    id: str
    tokens: list[int]


@dataclass(frozen=True)
class Result:
    """A batch that has run.

    Attributes:
        outputs: New tokens of each row.
        trace: What the strategy's run did.
        plain_outputs, plain_trace: The same of plain decoding, where it was asked for.
        prefill_s: Reading the prompts, once for both. [s]
    """

    outputs: list[list[int]]
    trace: Trace
    plain_outputs: list[list[int]] | None
    plain_trace: Trace | None
    prefill_s: float


def check_runnable(strategy: Strategy, target: Transformer, draft: Transformer | None) -> None:
    """Raise `InputError` unless the executor can run the strategy with these models."""
    if (strategy.draft_kind, strategy.kv_policy) not in RUNNABLE:
        known = ", ".join(f"{kind} with {policy}" for kind, policy in RUNNABLE)
        raise bad("plan", "strategy", f"a draft the executor can run ({known})", str(strategy))
    if draft is not None and abs(draft.config.vocab_size - target.config.vocab_size) > 0.01 * target.config.vocab_size:
        expected = f"the target's vocabulary of {target.config.vocab_size} tokens, but for padding"
        raise bad("draft model", "vocab_size", expected, draft.config.vocab_size)


def check_prompts(prompts: Sequence[Prompt], model: Transformer, max_new_tokens: int, where: str) -> None:
    """Raise `InputError` for every prompt that is empty or, with its output, longer than the model's positions."""
    most = model.config.max_context_len - max_new_tokens
    if most < 1:
        expected = f"fewer than the {model.config.max_context_len} positions of the model"
        raise bad("--max-new-tokens", "", expected, max_new_tokens)
    problems = []
    for prompt in prompts:
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
    """The drafter of a strategy, its prompts read; None for plain decoding."""
    if strategy.draft_kind == "none":
        return None
    if strategy.draft_kind == "self":
        return ModelDrafter(batch.model, batch.cache, shared=True, kv_budget=strategy.kv_budget, gamma=strategy.gamma)
    assert draft is not None
    needed = max(map(len, batch.prompts)) + batch.max_new_tokens
    if draft.config.max_context_len < needed:
        raise bad("draft model", "max_position_embeddings", f"at least {needed} positions", draft.config.max_context_len)
    cache = KvCache(draft.config, len(batch.prompts), batch.cache.capacity, draft.device, draft.dtype)
    drafter = ModelDrafter(
        draft,
        cache,
        shared=False,
        kv_budget=strategy.kv_budget,
        gamma=strategy.gamma,
        vocab_size=batch.model.config.vocab_size,
    )
    for row, prompt in enumerate(batch.prompts):
        drafter.prefill(row, torch.tensor(prompt, device=draft.device))
    return drafter


def run_batch(
    target: Transformer,
    draft: Transformer | None,
    prompts: Sequence[Prompt],
    strategy: Strategy,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    compare: bool = False,
    repeats: int = 1,
    prefilled: Progress = lambda row: None,
    progress: Progress = lambda emitted: None,
) -> Result:
    """Continue a batch of prompts with a strategy, and with plain decoding too if `compare`; the prompts are read once.

    With `repeats` the two take turns, and of each the run with the median time per token is kept, so that what else
    the machine does meanwhile weighs little.
    """
    started = time.perf_counter()
    gamma = strategy.gamma
    batch = Batch(target, [prompt.tokens for prompt in prompts], max_new_tokens=max_new_tokens, gamma=gamma)
    batch.prefill(prefilled)
    prefill_s = time.perf_counter() - started
    traces: list[Trace] = []
    plain_traces: list[Trace] = []
    plain_outputs = None
    for _ in range(repeats):
        if compare:
            batch.rewind()
            plain_traces.append(decode(batch, stop_tokens=stop_tokens, progress=progress))
            plain_outputs = batch.outputs()
        batch.rewind()
        drafter = make_drafter(strategy, batch, draft)
        traces.append(decode(batch, drafter=drafter, gamma=gamma, stop_tokens=stop_tokens, progress=progress))
    return Result(batch.outputs(), _median(traces), plain_outputs, _median(plain_traces) if compare else None, prefill_s)


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


def merge(traces: Sequence[Trace]) -> Trace:
    """One trace of several batches run one after the other."""
    merged = Trace()
    for trace in traces:
        for name, values in vars(merged).items():
            if name.endswith("_by_position"):
                seen = getattr(trace, name)
                values[:] = [a + b for a, b in zip(values, seen, strict=True)] if values else list(seen)
            else:
                values.extend(getattr(trace, name))
    return merged
