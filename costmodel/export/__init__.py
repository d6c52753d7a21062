"""Plans in the words of serving engines: pure functions from a plan to a command, files and what could not be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..base.errors import bad
from ..plans.plan import Plan
from . import llama_cpp, serving, sglang, tensorrt_llm, transformers, vllm, vllm_vegas
from .document import Export, Options


@dataclass(frozen=True)
class Engine:
    """An engine that plans are exported to.

    Attributes:
        runs: Whether it can run a strategy, if not exactly; what differs is noted in the export.
        export: The plan in its words.
    """

    runs: serving.Runs
    export: Callable[[Plan, Options], Export]


ENGINES = {
    "vllm": Engine(vllm.runs, vllm.export),
    "vllm-vegas": Engine(vllm_vegas.runs, vllm_vegas.export),
    "sglang": Engine(sglang.runs, sglang.export),
    "tensorrt-llm": Engine(tensorrt_llm.runs, tensorrt_llm.export),
    "transformers": Engine(transformers.runs, transformers.export),
    "llama.cpp": Engine(llama_cpp.runs, llama_cpp.export),
}


def export_plan(plan: Plan, to: str, options: Options | None = None) -> Export:
    """A plan in the words of an engine.

    Args:
        plan: The plan, with or without a policy table.
        to: A key of `ENGINES`.
        options: What the user chose.

    Raises:
        InputError: There is no such engine, or it can run none of the plan's drafts.
    """
    if to not in ENGINES:
        raise bad("--to", "", " or ".join(ENGINES), repr(to))
    options = options or Options()
    drafts = [strategy for *_, strategy in serving.wanted(plan, options)]
    if options.experimental and plan.policy:
        drafts += plan.policy.strategies
    drafts = [strategy for strategy in dict.fromkeys(drafts) if strategy.draft_kind != "none"]
    if drafts and not any(map(ENGINES[to].runs, drafts)):
        others = [name for name, engine in ENGINES.items() if any(map(engine.runs, drafts))]
        hint = f"those of the plan run on {' and '.join(others)}" if others else "magicdec run executes the plan"
        raise bad(f"--to {to}", "", f"a draft that {to} can run ({hint})", "; ".join(map(str, drafts)))
    return ENGINES[to].export(plan, options)
