"""Hand a plan to a serving engine."""

from __future__ import annotations

from pathlib import Path

from magicdec.costmodel.export.document import Options
from magicdec.costmodel.export.engines import export_plan
from magicdec.costmodel.plans.plan import Plan

from ..inputs.checks import flag, optional_text, text, whole_number
from ..inputs.plans import resolve_plan
from ..results.export import ExportResult
from ..results.plan import PlanResult


def export(
    plan: str | Path | Plan | PlanResult,
    to: str,
    *,
    engine_version: str | None = None,
    context_len: int | None = None,
    experimental: bool = False,
    replay_acceptance: bool = False,
    model_dir: str | Path | None = None,
    draft_dir: str | Path | None = None,
) -> ExportResult:
    """Express a plan as command, files and environment of a serving engine.

    Args:
        plan: A plan or a plan file.
        to: `vllm`, `vllm-vegas`, `sglang`, `tensorrt-llm`, `transformers` or `llama.cpp`.
        engine_version: The engine's version, where its options changed; None for the latest known.
        context_len: Context whose column of a policy table is exported; None for the plan's. [tokens]
        experimental: Use options that are proposed to the engine, or not documented.
        replay_acceptance: Make the engine accept drafts as often as predicted, to check the speed.
        model_dir, draft_dir: Checkpoint or repository of target and draft; None for the plan's names.

    Raises:
        InputError: The file is no plan, the engine is unknown, or it can run none of the plan's drafts.
    """
    engine_version = optional_text("engine_version", engine_version)
    options = Options(
        engine_version,
        None if context_len is None else whole_number("context_len", context_len),
        flag("experimental", experimental),
        flag("replay_acceptance", replay_acceptance),
        optional_text("model_dir", model_dir),
        optional_text("draft_dir", draft_dir),
    )
    made = plan.plan if isinstance(plan, PlanResult) else resolve_plan(plan)
    return ExportResult(export_plan(made, text("to", to), options), engine_version)
