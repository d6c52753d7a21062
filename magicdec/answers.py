"""What `predict` and `plan` print: documents for programs and text for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.units import format_bytes, format_seconds
from magicdec.costmodel.planning.search import GAMMAS, Candidate, best_of_each, why_not
from magicdec.costmodel.plans.plan import Plan
from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import Workload, load_trace

from . import text
from .api import Question, ask, evaluate
from .names import DEFAULT_KV_BUDGET, find_draft
from .planning import Wishes, describe, make_plan


def prediction_document(
    *,
    batch_size: int,
    context_len: int,
    draft: str,
    kv_policy: str | None,
    kv_budget: int | None,
    gamma: int | None,
    acceptance_rate: Sequence[float] | None,
    mean_acceptance_length: float | None,
    draft_kv_dtype: str | None,
    draft_weight_dtype: str | None,
    draft_tensor_parallel: int | None,
    **asked: Any,
) -> dict[str, Any]:
    """What `predict` prints for one situation; `asked` is what `ask` takes."""
    given = {
        "gamma": gamma,
        "kv_budget": kv_budget,
        "kv_policy": kv_policy,
        "acceptance_rate": acceptance_rate,
        "mean_acceptance_length": mean_acceptance_length,
    }
    if draft == "none" and (useless := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]):
        raise bad(useless[0], "", "nothing beside --draft none, which drafts nothing", ", ".join(useless))
    if mean_acceptance_length is not None and not math.isfinite(mean_acceptance_length):
        raise bad("--mean-acceptance-length", "", "a number of tokens", mean_acceptance_length)
    if mean_acceptance_length is not None and acceptance_rate is not None:
        raise bad("--mean-acceptance-length", "", "no --acceptance-rate beside it: one of the two", "both")
    if mean_acceptance_length is not None and gamma is None:
        raise bad("--gamma", "", "a value beside --mean-acceptance-length, which belongs to one gamma", "nothing")
    question = ask(**asked)
    found = find_draft(
        draft,
        kv_policy,
        question.deployment,
        kv_budget,
        kv_dtype=draft_kv_dtype,
        weight_dtype=draft_weight_dtype,
        tensor_parallel=draft_tensor_parallel,
    )
    if kv_budget is not None and found.drafts and not found.sparse:
        raise bad("--kv-budget", "", "a draft that reads part of its KV beside it", found.strategy(1, 1).draft_text)
    priced = evaluate(
        question,
        found,
        batch_size=batch_size,
        context_len=context_len,
        kv_budget=kv_budget,
        gamma=gamma,
        mean_acceptance_length=mean_acceptance_length,
        **_acceptance(acceptance_rate),
    )
    budget = float(kv_budget or DEFAULT_KV_BUDGET)
    strategy = found.strategy(int(priced.round.gamma), budget) if found.drafts else NO_SPECULATION
    candidate = Candidate(strategy, batch_size, priced, ())
    document = describe(question, candidate, Workload(batch_size, context_len, 1), found.model)
    document["workload"].pop("output_len", None)
    return document


def _acceptance(rates: Sequence[float] | None) -> dict[str, Any]:
    """One rate, or one for each draft position, as `evaluate_grid` and `Wishes` take them."""
    if rates is None:
        return {}
    return {"acceptance_rate": rates[0]} if len(rates) == 1 else {"acceptance_by_position": rates}


def plan_document(
    *,
    batch_sizes: Sequence[int] | None,
    context_len: int | None,
    output_len: int | None,
    trace_file: str | None,
    sweeps: bool,
    acceptance_rate: Sequence[float] | None,
    gammas: Sequence[int] | None,
    objective: str | None,
    gpu_price: float | None,
    wishes: Mapping[str, Any],
    **asked: Any,
) -> tuple[Plan, str]:
    """The plan that `plan` writes and what it prints: the candidates, best of each kind first, and the verdict."""
    trace = load_trace(trace_file) if trace_file is not None else None
    if trace is not None and (context_len is not None or output_len is not None):
        raise bad("--trace", "", "no --context-len or --output-len beside it: the trace has them", "both")
    if trace is not None:
        context_len, output_len = trace.typical
    if gpu_price is not None and not math.isfinite(gpu_price):
        raise bad("--gpu-price", "", "dollars per GPU and hour", gpu_price)
    if not sweeps and (not batch_sizes or context_len is None):
        raise bad("--context-len" if batch_sizes else "--batch-size", "", "a value, or --sweep for the whole map", "nothing")
    question = ask(**asked)
    wanted = Wishes(
        **wishes,
        batch_sizes=batch_sizes or (),
        objective=objective or ("throughput" if len(batch_sizes or ()) > 1 else "latency"),
        gammas=gammas or GAMMAS,
        **_acceptance(acceptance_rate),
    )
    policy: PolicyTable | None = None
    map_lines: list[str] = []
    batch_size = batch_sizes[0] if batch_sizes else None
    if sweeps:
        from .sweeping import swept

        found = swept(question, wanted, context_len)
        policy, map_lines = found.policy, found.lines
        batch_size, context_len = batch_size or found.typical[0], context_len or found.typical[1]
    assert batch_size is not None
    assert context_len is not None
    workload = Workload(batch_size, context_len, output_len or 128)
    made, ranked, priced = make_plan(question, workload, wanted, trace=trace, policy=policy)
    lines = [_candidates_table(ranked, priced, wanted, gpu_price, question), *map_lines]
    served = made.serving
    assert served is not None
    request, plain = format_seconds(served.predicted_request_s), format_seconds(served.predicted_plain_request_s)
    together, plainly = served.predicted_throughput_tokens_per_s, served.predicted_plain_throughput_tokens_per_s
    lines += [
        "",
        f"first token {format_seconds(served.predicted_ttft_s)} after a prompt is begun",
        f"a request of {workload.output_len} new tokens takes {request}, plainly decoded {plain}",
        f"a full batch yields {together:,.0f} tokens/s, plainly {plainly:,.0f}, prompts read too ({served.prefill_share:.0%})",
        *(f"note: {note}" for note in made.notes),
    ]
    facts = {**made.prediction.model_dump(), "strategy": asdict(made.strategy), "fits_in_memory": True}
    facts["runner_up"] = made.runner_up.model_dump() if made.runner_up else None
    return made, "\n".join([*lines, "", text.verdict(facts)])


def _candidates_table(
    ranked: Sequence[Candidate], priced: Sequence[Candidate], wanted: Wishes, gpu_price: float | None, question: Question
) -> str:
    """The best of every kind of draft, and of those that do not qualify the first, with why each is not the one to use."""
    best = ranked[0]
    shown = best_of_each([*ranked, *(c for c in priced if c not in ranked and c.batch_size == best.batch_size)])
    rows = [
        [
            text.strategy_words(asdict(c.strategy)),
            str(c.batch_size),
            *_speeds(c, gpu_price, question),
            format_bytes(c.memory_bytes),
            why_not(c, best, wanted.max_tpot_s),
        ]
        for c in shown
    ]
    price = ["$ per M tokens"] if gpu_price is not None else []
    header = ["strategy, best first", "batch", "per token", "tokens/s", "speedup", *price, "memory per GPU", "why not"]
    return text.table(header, rows)


def _speeds(c: Candidate, gpu_price: float | None, question: Question) -> list[str]:
    price = []
    if gpu_price is not None:
        price = [f"{gpu_price * question.deployment.num_gpus / 3600 / c.throughput_tokens_per_s * 1e6:.2f}"]
    if np.isnan(c.speedup):
        return ["?", "?", "?", *("?" for _ in price)]
    return [format_seconds(c.tpot_s), f"{c.throughput_tokens_per_s:.0f}", f"{c.speedup:.2f}x", *price]
