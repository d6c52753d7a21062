"""Run a strategy or a policy table on requests: checks, batches, and the loop from prompts to completions.

Nothing here sees a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.costmodel.plans.policy_table import PolicyTable
from magicdec.costmodel.plans.strategy import Strategy

from .decode_loop import decode
from .drafting.factory import make_policy
from .engine.batch import Batch
from .engine.request import Request
from .engine.round_log import RoundLog, RoundRecord
from .engine.settings import GenerationSettings
from .model.transformer import Transformer

SPARSE = ("streaming_llm", "snapkv", "topk", "quest")
RUNNABLE = (  # draft kind and KV policy
    ("none", "full"),
    ("ngram", "full"),
    ("self", "full"),
    *(("self", policy) for policy in SPARSE),
    ("model", "full"),
    *(("model", policy) for policy in SPARSE),
)
MAX_VOCAB_MISMATCH = 0.01  # vocabularies may differ by padding
MAX_PROBLEMS = 20  # bad prompts that one error lists


@dataclass(frozen=True)
class Result:
    """What `run` returns.

    Attributes:
        log: All rounds.
        prefill_s: Time of all prefills. [s]
    """

    log: RoundLog
    prefill_s: float

    @property
    def outputs(self) -> list[list[int]]:
        """New tokens of each request, in the order of the requests."""
        return self.log.outputs


def check_runnable(strategy: Strategy, target: Transformer, draft: Transformer | None) -> None:
    """Check that the executor can run a strategy with these models.

    Raises:
        InputError: The draft kind, KV policy or a compressed type is not supported, or the vocabularies do not match.
    """
    if (strategy.draft_kind, strategy.kv_policy) not in RUNNABLE:
        known = ", ".join(f"{kind} with {policy}" for kind, policy in RUNNABLE)
        raise bad("plan", "strategy", f"a draft the executor can run ({known})", str(strategy))
    if strategy.weight_dtype is not None:
        raise bad("plan", "strategy.weight_dtype", "null: the executor drafts with uncompressed weights", strategy.weight_dtype)
    if strategy.kv_dtype is not None and strategy.kv_policy != "full":
        expected = "null with a sparse `kv_policy`: the executor compresses KV entries or skips some, not both"
        raise bad("plan", "strategy.kv_dtype", expected, strategy.kv_dtype)
    if strategy.kv_dtype == "int4" and target.config.head_dim % 2:
        raise bad("plan", "strategy.kv_dtype", "int8 or fp8 for an odd head_dim", strategy.kv_dtype)
    if draft is not None:
        vocab_size = target.config.vocab_size
        if abs(draft.config.vocab_size - vocab_size) > MAX_VOCAB_MISMATCH * vocab_size:
            expected = f"the target's vocabulary of {vocab_size} tokens, apart from padding"
            raise bad("draft model", "vocab_size", expected, draft.config.vocab_size)


def check_requests(requests: Sequence[Request], model: Transformer, max_new_tokens: int, where: str) -> None:
    """Check that every prompt has tokens of the model's vocabulary and fits into its context together with its output.

    Args:
        requests: The requests.
        model: The target.
        max_new_tokens: Limit for requests that set none themselves. [tokens]
        where: Source of the prompts, for error messages.

    Raises:
        InputError: With every bad prompt, or with `max_new_tokens` if it leaves no room for a prompt.
    """
    config = model.config
    if max_new_tokens >= config.max_context_len:
        raise bad("max_new_tokens", "", f"less than the model's context of {config.max_context_len} tokens", max_new_tokens)
    problems = []
    for request in requests:
        new_tokens = request.max_new_tokens or max_new_tokens
        longest = config.max_context_len - new_tokens
        if not request.tokens:
            problems.append(Problem(where, request.id, "at least one token", "an empty prompt"))
        elif max(request.tokens) >= config.vocab_size:
            expected = f"token ids below the vocabulary size of {config.vocab_size}"
            found = f"{max(request.tokens)}: tokenizer.json belongs to another model"
            problems.append(Problem(where, request.id, expected, found))
        elif len(request.tokens) > longest:
            expected = f"at most {longest} tokens (a context of {config.max_context_len} positions minus {new_tokens} new tokens)"
            problems.append(Problem(where, request.id, expected, f"{len(request.tokens)} tokens"))
    if problems:
        raise InputError(*problems[:MAX_PROBLEMS])


def make_batch(
    target: Transformer,
    requests: Sequence[Request],
    strategy: Strategy | PolicyTable,
    settings: GenerationSettings,
    *,
    batch_size: int | None = None,
) -> Batch:
    """Allocate a batch with room for the strategy's draft tokens. Call its `prefill` before decoding.

    Args:
        target: The target model.
        requests: Requests in the order in which they are admitted.
        strategy: Strategy or policy table that will draft.
        settings: Limits, stop conditions and sampling.
        batch_size: Sequences decoded together; the other requests wait. None for all requests at once.

    Raises:
        InputError: The KV cache does not fit into memory; the error names the largest batch that fits.
    """
    strategies = strategy.strategies if isinstance(strategy, PolicyTable) else [strategy]
    return Batch(target, requests, settings, gamma=max(s.gamma for s in strategies), rows=batch_size)


def generate(batch: Batch, draft: Transformer | None, strategy: Strategy | PolicyTable) -> Iterator[RoundRecord]:
    """Continue all requests of a prefilled batch, round by round; waiting requests are admitted as rows finish.

    Args:
        batch: From `make_batch`, prefilled. It cannot be rewound afterwards.
        draft: The draft model, if the strategy or table names one.
        strategy: Fixed strategy, or the table to select it from in each round.

    Yields:
        Each round, with the requests that finished in it.

    Raises:
        InputError: Out of memory, a draft model with too short a context, or infinite or NaN logits.
    """
    with batch.memory_explained():
        yield from decode(batch, make_policy(strategy, batch, draft), shrink=True)


def run(
    target: Transformer,
    draft: Transformer | None,
    requests: Sequence[Request],
    strategy: Strategy | PolicyTable,
    settings: GenerationSettings,
    *,
    batch_size: int | None = None,
) -> Result:
    """Prefill and continue all requests: `make_batch`, `Batch.prefill` and `generate` in one call.

    Raises:
        InputError: As these raise it.
    """
    batch = make_batch(target, requests, strategy, settings, batch_size=batch_size)
    batch.prefill()
    return Result(RoundLog(list(generate(batch, draft, strategy))), batch.prefill_s)


def batches(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    """Split requests into consecutive batches; the last one may be smaller."""
    for start in range(0, len(requests), batch_size):
        yield requests[start : start + batch_size]
