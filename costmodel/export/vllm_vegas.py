"""Export to the vegas fork of vLLM 0.16: self-speculation with sparse KV, as `method: sparse_attn`.

Source:
    github.com/platformxlab/vegas, README; arXiv 2602.07223.
"""

from __future__ import annotations

from dataclasses import replace

from ..base.json_types import JsonObject
from ..plans.plan import Plan
from ..plans.strategy import Strategy
from . import schedule
from .document import Export, Options
from .served import served_as
from .target import TypeWords, target_of
from .vllm import command, serve_options

# The fork has StreamingLLM and its own selection, which ranks entries by the attention scores of verification.
ALGORITHMS = {"streaming_llm": "streamingllm", "snapkv": "vegas", "topk": "vegas", "quest": "vegas", "pq": "vegas"}
WORDS = TypeWords("The fork", {"fp8": "fp8"}, dict.fromkeys(("fp8", "int8", "int4"), ("fp8", "fp8")))
BLOCK = 16  # tokens per KV block of vLLM; budgets are rounded up to full blocks


def supports(strategy: Strategy) -> bool:
    """Self-speculation with sparse KV, in the dtypes of the target."""
    return (
        strategy.draft_kind == "self"
        and strategy.kv_policy in ALGORITHMS
        and strategy.kv_dtype is None
        and strategy.weight_dtype is None
    )


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `vllm serve` command of the fork."""
    served = schedule.draft_schedule(plan, options, supports)
    target = target_of(plan, options, WORDS)
    gamma, notes = schedule.one_gamma(served, "The fork")
    runs = served_as(plan, served, gamma, target, options)
    python = serve_options(plan, target, runs, data_parallel=True)
    if gamma:
        python["speculative_config"] = _config(served.strategy, gamma, options.context_len or plan.workload.context_len)
        budget = -(-(served.strategy.kv_budget or 0) // BLOCK) * BLOCK
        runs = replace(runs, strategy=replace(runs.strategy, kv_budget=budget))
        notes += _config_notes(served.strategy, plan, options)
    else:
        notes.append("No speculation: the fork needs no speculative config.")
    names = schedule.names_note("github.com/platformxlab/vegas, a fork of vLLM 0.16", options)
    columns = schedule.column_notes(plan, options) if plan.policy else []
    notes = [*served.notes, *target.notes, *columns, *notes, names]
    return Export("vllm-vegas", command(python), python=python, notes=tuple(notes), served=runs)


def _config(strategy: Strategy, gamma: int, context_len: int) -> JsonObject:
    """The speculative config of the fork."""
    return {
        "method": "sparse_attn",
        "num_speculative_tokens": gamma,
        "sparse_attn_algorithm": ALGORITHMS[strategy.kv_policy],
        "sparse_attn_ratio": _budget_ratio(strategy, context_len),
        "sparse_attn_min_tokens": strategy.kv_budget,
    }


def _budget_ratio(strategy: Strategy, context_len: int) -> float:
    """KV budget relative to the context. [0-1]"""
    assert strategy.kv_budget is not None
    return min(round(strategy.kv_budget / context_len, 6), 1.0)


def _config_notes(strategy: Strategy, plan: Plan, options: Options) -> list[str]:
    context, budget = options.context_len or plan.workload.context_len, strategy.kv_budget
    share = f"{budget} tokens up to context {context}, {_budget_ratio(strategy, context):.4f} of the context beyond"
    notes = [f"The KV budget of the fork is relative, with a minimum: {share}, rounded up to blocks of {BLOCK} tokens."]
    if ALGORITHMS[strategy.kv_policy] == "streamingllm":
        notes.append(f"Its only attention sinks are the {BLOCK} tokens of block 0.")
    else:
        notes.append(
            f"The fork does not implement {strategy.kv_policy}; its own selection, vegas, replaces it. Acceptance may differ."
        )
    notes.append("The fork needs the FlashAttention backend and must be built from source.")
    if options.replay_acceptance:
        notes.append("Acceptance is not simulated: the fork does not document synthetic acceptance.")
    return notes
