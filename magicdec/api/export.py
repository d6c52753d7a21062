"""Hand a plan to a serving engine, and price the command that results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magicdec.costmodel.base.errors import InputError, bad, called
from magicdec.costmodel.base.units import format_bytes
from magicdec.costmodel.export.document import Export, Options
from magicdec.costmodel.export.engines import export_plan
from magicdec.costmodel.export.pricing import Networks, Price, price
from magicdec.costmodel.plans.plan import Plan

from ..inputs.checks import flag, optional_text, text, whole_number
from ..inputs.names import executed, find_head, find_model, head_network
from ..inputs.plans import resolve_plan
from ..inputs.scenario import resolve_scenario
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
    hardware: str | None = None,
    force: bool = False,
) -> ExportResult:
    """Express a plan as command, files and environment of a serving engine, and price that command.

    Args:
        plan: A plan or a plan file.
        to: `vllm`, `vllm-vegas`, `sglang`, `tensorrt-llm`, `transformers` or `llama.cpp`.
        engine_version: The engine's version, where its options changed; None for the latest known.
        context_len: Context whose column of a policy table is exported; None for the plan's. [tokens]
        experimental: Use options that are proposed to the engine, or not documented.
        replay_acceptance: Make the engine accept drafts as often as predicted, to check the speed.
        model_dir, draft_dir: Checkpoint or repository of target and draft; None for the plan's names.
        hardware: The plan's machine, where its name is not known here: a profile file.
        force: Export even a command that is slower than plain decoding, does not fit, or cannot be priced.

    Raises:
        InputError: The file is no plan, the engine is unknown, it can run none of the plan's drafts, or the command would be
            slower than plain decoding or not fit in memory.
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
    force = flag("force", force)
    made = plan.plan if isinstance(plan, PlanResult) else resolve_plan(plan)
    exported = export_plan(made, text("to", to), options)
    priced, why_not = None, ""
    file = plan if isinstance(plan, str | Path) else "plan"
    try:
        with called("model", f"{file}: target.name"), called("draft", f"{file}: strategy.draft_model"):
            priced = price_export(made, exported, options, optional_text("hardware", hardware))
    except InputError as error:
        if not force:
            raise
        why_not = f"This command is not priced: {error.problems[0]}."
    if priced is not None and not force:
        _check(priced, exported)
    said = why_not or f"This command: {priced}."
    return ExportResult(replace(exported, notes=(said, *exported.notes)), engine_version, priced)


def price_export(plan: Plan, exported: Export, options: Options, hardware: str | None = None) -> Price:
    """Price an exported command: speedup, memory, throughput.

    Args:
        plan: The plan.
        exported: What became of it.
        options: Choices of the user.
        hardware: The plan's machine, where its name is not known here.

    Raises:
        InputError: The plan's model or machine is not known here, or not the same any more.
    """
    served = exported.served
    assert served is not None
    where = plan.hardware
    scenario = resolve_scenario(
        plan.target.name,
        hardware or where.name,
        num_gpus=where.num_gpus,
        tensor_parallel=where.tensor_parallel,
        verify_kernel=plan.verify_kernel if plan.engine in (None, exported.engine) else None,
        engine=exported.engine if plan.engine else None,
        task=plan.task,
    )
    machine, model = scenario.deployment, scenario.model
    plan.check_model("target", model.config, "model")
    draft = None
    if served.strategy.draft_kind == "model":
        draft = find_model(str(served.strategy.draft_model), "draft").config
    head = find_head(options.draft_dir or plan.draft_checkpoint or "") if served.strategy.draft_kind in ("eagle3", "mtp") else None
    networks = Networks(
        machine.target,
        executed(draft, machine.hardware, where.tensor_parallel) if draft else None,
        head_network(head, machine.hardware),
        model.curves,
    )
    return price(plan, served, machine, networks, options)


def _check(priced: Price, exported: Export) -> None:
    """Refuse a command that does not fit, does not pay, or whose acceptance is not known."""
    again = f"`magicdec plan --engine {exported.engine}` searches what it runs"
    if not priced.fits:
        found = f"{format_bytes(priced.memory_bytes)} of {format_bytes(priced.usable_bytes)} ({priced})"
        raise bad("to", "", f"a command that fits in memory ({again}), or `force`", found)
    if not priced.known:
        raise bad("to", "", f"a command with a draft of known acceptance ({again}), or `force`", str(priced))
    if not priced.pays:
        raise bad("to", "", f"a command that is not slower than without speculation ({again}), or `force`", str(priced))
