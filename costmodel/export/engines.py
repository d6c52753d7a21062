"""The serving engines that a plan can be exported to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..base.errors import bad
from ..plans.plan import Plan
from . import llama_cpp, schedule, sglang, tensorrt_llm, transformers, vllm, vllm_vegas
from .document import Export, Options


@dataclass(frozen=True)
class Engine:
    """A serving engine.

    Attributes:
        supports: Whether the engine can run a strategy, exactly or approximately; notes of the export list the differences.
        export: Converts a plan to the engine's options.
    """

    supports: schedule.Supports
    export: Callable[[Plan, Options], Export]


ENGINES = {
    "vllm": Engine(vllm.supports, vllm.export),
    "vllm-vegas": Engine(vllm_vegas.supports, vllm_vegas.export),
    "sglang": Engine(sglang.supports, sglang.export),
    "tensorrt-llm": Engine(tensorrt_llm.supports, tensorrt_llm.export),
    "transformers": Engine(transformers.supports, transformers.export),
    "llama.cpp": Engine(llama_cpp.supports, llama_cpp.export),
}


def export_plan(plan: Plan, to: str, options: Options | None = None) -> Export:
    """Convert a plan to the options of a serving engine.

    Args:
        plan: The plan, with or without a policy table.
        to: A key of `ENGINES`.
        options: Choices of the user.

    Raises:
        InputError: The engine is unknown, or supports none of the plan's drafts.
    """
    if to not in ENGINES:
        raise bad("to", "", " or ".join(ENGINES), repr(to))
    options = options or Options()
    drafts = [strategy for *_, strategy in schedule.planned_strategies(plan, options)]
    if options.experimental and plan.policy:
        drafts += plan.policy.strategies
    drafts = [strategy for strategy in dict.fromkeys(drafts) if strategy.draft_kind != "none"]
    if drafts and not any(map(ENGINES[to].supports, drafts)):
        others = [name for name, engine in ENGINES.items() if any(map(engine.supports, drafts))]
        hint = f"supported by {' and '.join(others)}" if others else "`magicdec run` executes the plan"
        found = f"{to} (drafts: {'; '.join(map(str, drafts))})"
        raise bad("to", "", f"an engine that supports a draft of the plan ({hint})", found)
    return ENGINES[to].export(plan, options)
