"""The serving engines that a plan can be exported to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..base.errors import bad
from ..plans.plan import Plan
from ..plans.strategy import CompressedDtype, KvDtype, Strategy
from . import llama_cpp, schedule, sglang, tensorrt_llm, transformers, vllm, vllm_vegas
from .document import Export, Options


@dataclass(frozen=True)
class Engine:
    """A serving engine.

    Attributes:
        supports: Whether the engine can run a strategy, exactly or approximately; notes of the export list the differences.
        export: Converts a plan to the engine's options.
        kv_dtypes: Types of the target's KV cache that it has.
        weight_dtypes: Types of the target's weights that it runs; a model named with its quantisation has them in any case.
        drafts_batches: Whether it drafts for several sequences together.
        shares_drafts: Whether all GPUs of a replica share a draft model.
    """

    supports: schedule.Supports
    export: Callable[[Plan, Options], Export]
    kv_dtypes: tuple[KvDtype, ...] = ("fp8",)
    weight_dtypes: tuple[CompressedDtype, ...] = ("fp8", "int8", "int4")
    drafts_batches: bool = True
    shares_drafts: bool = True

    def runs(self, strategy: Strategy) -> bool:
        """Whether the engine runs a strategy as it is: no second copy of the target, and all the KV entries of a draft model."""
        if strategy.draft_kind == "none":
            return True
        whole = strategy.draft_kind != "model" or strategy.kv_policy == "full"
        return whole and not schedule.copies_target(strategy) and self.supports(strategy)


ENGINES = {
    "vllm": Engine(vllm.supports, vllm.export),
    "vllm-vegas": Engine(vllm_vegas.supports, vllm_vegas.export),
    "sglang": Engine(sglang.supports, sglang.export),
    "tensorrt-llm": Engine(tensorrt_llm.supports, tensorrt_llm.export),
    "transformers": Engine(transformers.supports, transformers.export, kv_dtypes=(), drafts_batches=False, shares_drafts=False),
    "llama.cpp": Engine(llama_cpp.supports, llama_cpp.export, kv_dtypes=("q8_0", "q4_0"), weight_dtypes=()),
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
        again = f"`magicdec plan --engine {to}` searches what {to} runs"
        raise bad("to", "", f"an engine that supports a draft of the plan ({hint}; {again})", found)
    return ENGINES[to].export(plan, options)
