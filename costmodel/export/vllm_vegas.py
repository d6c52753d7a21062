"""A plan for the vegas fork of vLLM 0.16: self-speculation with sparse KV, as `method: sparse_attn`.

Source:
    github.com/platformxlab/vegas, README; arXiv 2602.07223.
"""

from __future__ import annotations

import json
from typing import Any

from ..plans.plan import Plan
from ..plans.strategy import Strategy
from . import schedule
from .document import Export, Options

# StreamingLLM is the paper's; every other selection becomes the fork's own, which ranks entries by the scores of verification.
ALGORITHMS = {"streaming_llm": "streamingllm", "snapkv": "vegas", "topk": "vegas", "quest": "vegas", "pq": "vegas"}
BLOCK = 16  # tokens in a KV block of vLLM; budgets are rounded up to blocks


def supports(strategy: Strategy) -> bool:
    """Self-speculation with sparse KV in the target's own types."""
    return (
        strategy.draft_kind == "self"
        and strategy.kv_policy in ALGORITHMS
        and strategy.kv_dtype is None
        and strategy.weight_dtype is None
    )


def export(plan: Plan, options: Options) -> Export:
    """The plan as `vllm serve` of the fork takes it."""
    served = schedule.draft_schedule(plan, options, supports)
    target, target_notes = schedule.target_path(plan, options)
    gamma, notes = schedule.one_gamma(served, "The fork")
    arguments = ["vllm", "serve", target, "--tensor-parallel-size", str(plan.hardware.tensor_parallel)]
    python: dict[str, Any] = {"model": target, "tensor_parallel_size": plan.hardware.tensor_parallel}
    if gamma:
        config = _config(served.strategy, gamma, options.context_len or plan.workload.context_len)
        arguments += ["--speculative-config", json.dumps(config)]
        python["speculative_config"] = config
        notes += _config_notes(served.strategy, config, plan, options)
    else:
        notes.append("Plain decoding: the fork needs no speculative config.")
    names = schedule.names_note("github.com/platformxlab/vegas, a fork of vLLM 0.16", options)
    columns = schedule.column_notes(plan, options) if plan.policy else []
    return Export("vllm-vegas", tuple(arguments), python=python, notes=(*served.notes, *target_notes, *columns, *notes, names))


def _config(strategy: Strategy, gamma: int, context_len: int) -> dict[str, Any]:
    assert strategy.kv_budget is not None
    return {
        "method": "sparse_attn",
        "num_speculative_tokens": gamma,
        "sparse_attn_algorithm": ALGORITHMS[strategy.kv_policy],
        "sparse_attn_ratio": min(round(strategy.kv_budget / context_len, 6), 1.0),
        "sparse_attn_min_tokens": strategy.kv_budget,
    }


def _config_notes(strategy: Strategy, config: dict[str, Any], plan: Plan, options: Options) -> list[str]:
    context, budget = options.context_len or plan.workload.context_len, strategy.kv_budget
    share = f"{budget} up to context {context}, then {config['sparse_attn_ratio']:.4f} of it"
    notes = [f"The fork's budget is a share of each context with a floor: {share}, rounded up to KV blocks of {BLOCK} tokens."]
    if config["sparse_attn_algorithm"] == "streamingllm":
        notes.append(f"Its only sink is block 0 ({BLOCK} tokens).")
    else:
        notes.append(f"{strategy.kv_policy} is not in the fork; its own selection, vegas, stands in, so acceptance may differ.")
    notes.append("It runs on the FlashAttention backend only, and is built from source.")
    if options.replay_acceptance:
        notes.append("Acceptance is not replayed: the fork documents no synthetic acceptance.")
    return notes
