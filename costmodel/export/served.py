"""What an exported command runs, as the cost model prices it."""

from __future__ import annotations

from dataclasses import replace

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION
from .document import Options, Served
from .schedule import DraftSchedule, copies_target, replicas
from .target import Target

MEMORY_SHARE = 0.95  # of a GPU's memory that an engine may take: what the cost model calls usable


def max_len(plan: Plan, options: Options, gamma: int) -> int:
    """Longest sequence of a server: the longest request, and the draft tokens beyond its end. [tokens]"""
    if plan.mix is not None and options.context_len is None:
        return plan.mix.longest_len + gamma
    return (options.context_len or plan.workload.context_len) + plan.workload.output_len + gamma


def served_as(plan: Plan, drafts: DraftSchedule, gamma: int, target: Target, options: Options) -> Served:
    """What a command runs that speculates as scheduled, with this draft length at the planned batch size."""
    strategy = replace(drafts.strategy, gamma=gamma) if gamma else NO_SPECULATION
    if strategy.draft_kind == "model":  # engines have no KV budget for draft models
        strategy = replace(strategy, kv_policy="full", kv_budget=None)
    return Served(
        strategy=strategy,
        copies_target=copies_target(strategy),
        batch_size=plan.workload.batch_size,
        tensor_parallel=plan.hardware.tensor_parallel,
        replicas=replicas(plan),
        max_len=max_len(plan, options, drafts.max_gamma),
        weight_dtype=target.weight_dtype,
        kv_dtype=target.kv_dtype,
        draft_kv_dtype=strategy.kv_dtype if copies_target(strategy) else None,
    )
