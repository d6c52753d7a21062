"""What a plan for one engine says first: the rate to expect, the memory, and the line to paste."""

from __future__ import annotations

from collections.abc import Sequence

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.planning.search import Candidate
from magicdec.costmodel.plans.plan import Plan
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import NO_DRAFT, Draft
from magicdec.costmodel.speculation.evaluate import step_error
from magicdec.costmodel.speculation.memory import memory_of, usable_bytes

LONGEST = 1 << 24  # tokens; beyond any context


def engine_notes(deployment: Deployment, best: Candidate, workload: Workload, plan: Plan, drafts: Sequence[Draft]) -> list[str]:
    """Rate with its interval, memory with the context that still fits, and the command.

    Args:
        deployment: Model, machine and engine.
        best: The chosen strategy.
        workload: What it was chosen for.
        plan: The plan.
        drafts: The drafts that it was chosen from.
    """
    draft = next((one for one in drafts if one.kind == best.strategy.draft_kind), NO_DRAFT)
    rate, wide = best.throughput_tokens_per_s, 1 + step_error(deployment)
    low, high = rate / wide * best.speedup_low / best.speedup, rate * wide * best.speedup_high / best.speedup
    usable = usable_bytes(deployment.hardware)
    longest = min(longest_context(deployment, draft, best, usable), deployment.target.max_context_len)
    per_gpu = " on each GPU" if deployment.num_gpus > 1 else ""
    plain = best.batch_size / best.steps["predicted_target_step_s"]
    found = [
        f"rate: {rate:.0f} tokens/s ({low:.0f} to {high:.0f}), {plain:.0f} without a draft",
        f"memory: {best.memory_bytes / 1e9:.1f} of {usable / 1e9:.1f} GB{per_gpu}; up to {longest // 1000}k tokens of context fit",
    ]
    command = _command(plan)
    return [*found, f"paste: {command}"] if command else found


def longest_context(deployment: Deployment, draft: Draft, best: Candidate, usable: float) -> int:
    """The longest context with which the strategy fits in memory; 0 if none does. [tokens]"""

    def fits(context_len: int) -> bool:
        memory = memory_of(
            deployment.target,
            batch_size=best.batch_size,
            max_context_len=context_len,
            gamma=best.strategy.gamma,
            kv_budget=best.strategy.kv_budget or float("inf"),
            tensor_parallel=deployment.tensor_parallel,
            draft=draft,
            head_sharded=deployment.hardware.calibration.engine.head_sharded,
        )
        return float(memory.total_bytes) <= usable

    low, high = 0, LONGEST
    while high - low > 256:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _command(plan: Plan) -> str:
    """The command of the engine, on one line; empty where it cannot be written."""
    import shlex

    from magicdec.costmodel.export.engines import ENGINES, export_plan

    if plan.engine not in ENGINES:
        return ""
    try:
        export = export_plan(plan, plan.engine)
    except InputError:
        return ""
    words = [f"{name}={shlex.quote(value)}" for name, value in export.environment.items()]
    return " ".join([*words, *map(shlex.quote, export.arguments)])
