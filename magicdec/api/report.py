"""Draw figures and one HTML page for a model and a machine, plans and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.plans.plan import Plan
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid

from ..inputs.checks import names, text, whole_number, whole_numbers
from ..inputs.names import DEFAULT_KV_BUDGET, find_draft
from ..inputs.scenario import Scenario, resolve_scenario, with_types
from ..results.report import ReportFiles

BATCH_SIZES = (1, 4, 16, 32, 64, 128, 256)
CONTEXT_LENS = (1000, 4000, 16000, 32000, 64000, 100000)
RIDGES = ("a100-sxm-80gb", "h100-sxm", "l40")


def report(
    output: str | Path,
    files: str | Path | Sequence[str | Path] = (),
    *,
    model: str | None = None,
    hardware: str | None = None,
    num_gpus: int | None = None,
    tensor_parallel: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    context_lens: Sequence[int] = CONTEXT_LENS,
    draft: str | None = None,
    kv_policy: str | None = None,
    kv_budget: int | None = None,
    ridges: str | Sequence[str] = RIDGES,
) -> ReportFiles:
    """Draw every planning figure and, for each pair of plan and measurement, predicted beside measured.

    Args:
        output: Folder for the figures (PNG and SVG) and the page.
        files: Plans (YAML) and measurements (JSON lines) to compare.
        model, hardware, num_gpus, tensor_parallel: Of the planning figures; None for those of the first plan, without one
            llama-3.1-8b on 8 x h100-sxm.
        batch_sizes, context_lens: Axes. [sequences, tokens]
        draft: `self`, another kind or the name of a model; None for that of the first plan, without one `self`.
        kv_policy: What it reads; None for the plan's, without one for the usual policy.
        kv_budget: KV entries it reads; None for the plan's, without one for 512. [tokens]
        ridges: GPUs whose ridge point is drawn.

    Raises:
        InputError: A file cannot be read or written, a name is unknown, or a measurement has no plan among the files.
    """
    from magicdec.reports.page import write_page
    from magicdec.reports.planning import PlanningGrid, planning_figures
    from magicdec.reports.runs import PLAN_SUFFIXES, read_runs, run_figures

    output = Path(text("output", output))
    files = names("files", files)
    runs, plans = read_runs(files)
    given = {name for name, value in (("model", model), ("hardware", hardware), ("num_gpus", num_gpus)) if value is not None}
    planned = plans[0] if plans else None
    if tensor_parallel is None and num_gpus is None and planned:
        tensor_parallel = planned.hardware.tensor_parallel
    if model is None:
        model = planned.target.name if planned else "llama-3.1-8b"
    if hardware is None:
        hardware = planned.hardware.name if planned else "h100-sxm"
    if num_gpus is None:
        num_gpus = planned.hardware.num_gpus if planned else 8
    try:
        scenario = resolve_scenario(
            model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel, **_engine_of(planned, given)
        )
    except InputError as error:
        raise _of_plan(error, next((file for file in files if file.endswith(PLAN_SUFFIXES)), None), given) from None
    asked = draft is not None or kv_policy is not None or kv_budget is not None
    drawn = planned if planned is not None and not asked and planned.strategy.gamma else None
    if drawn is not None and not given:
        scenario = with_types(scenario, drawn.target)
        batch_sizes, context_lens = [*batch_sizes, drawn.workload.batch_size], [*context_lens, drawn.workload.context_len]
    found, kv_budget = _draft(drawn, draft, kv_policy, kv_budget, scenario)
    if found.kind == "none":
        raise bad("draft", "", "`self` or a model: the figures are about drafting", "none")
    grid = PlanningGrid(
        deployment=scenario.deployment,
        draft=found,
        batch_sizes=np.array(sorted(set(whole_numbers("batch_sizes", batch_sizes)))),
        context_lens=np.array(sorted(set(whole_numbers("context_lens", context_lens)))),
        kv_budget=float("inf") if found.kv_policy == "full" else kv_budget,
        curves=scenario.model.curves,
        ridges=tuple(resolve_profile(name, "ridges") for name in names("ridges", ridges)),
        output_len=drawn.workload.output_len if drawn else 0,
        acceptance_rate=drawn.prediction.predicted_acceptance_rate if drawn and not _looked_up(drawn, found, scenario) else None,
    )
    page, *figures = write_page(output, [*planning_figures(grid), *run_figures(runs)], grid, runs, plans)
    return ReportFiles(page, (page, *figures))


def _draft(
    drawn: Plan | None, draft: str | None, kv_policy: str | None, kv_budget: int | None, scenario: Scenario
) -> tuple[Draft, int]:
    """The draft of the figures: the plan's own, or the one that was asked for."""
    if drawn is None:
        budget = DEFAULT_KV_BUDGET if kv_budget is None else whole_number("kv_budget", kv_budget)
        return find_draft(draft or "self", kv_policy, scenario.deployment, budget), budget
    s = drawn.strategy
    found = find_draft(
        drawn.draft_checkpoint or s.draft_model or s.draft_kind,
        s.kv_policy if s.kv_budget else None,
        scenario.deployment,
        s.kv_budget,
        kv_dtype=s.kv_dtype,
        weight_dtype=s.weight_dtype,
    )
    return found, s.kv_budget or DEFAULT_KV_BUDGET


def _looked_up(drawn: Plan, draft: Draft, scenario: Scenario) -> bool:
    """Whether the plan's acceptance is that of a known curve; else it was given."""
    w, s, rate = drawn.workload, drawn.strategy, drawn.prediction.predicted_acceptance_rate
    known = evaluate_grid(
        scenario.deployment,
        draft,
        batch_size=w.batch_size,
        context_len=w.mean_context_len,
        gamma=s.gamma,
        kv_budget=s.kv_budget or np.inf,
        curves=scenario.model.curves,
    ).acceptance_rate
    return rate is None or bool(abs(known - rate) < 1e-6)


class _Engine(TypedDict, total=False):
    verify_kernel: str
    engine: str | None
    task: str | None


def _engine_of(plan: Plan | None, given: AbstractSet[str]) -> _Engine:
    """The engine of a plan, where its own machine and model are drawn."""
    if plan is None or given:
        return {}
    return {"verify_kernel": plan.verify_kernel, "engine": plan.engine, "task": plan.task}


def _of_plan(error: InputError, plan_file: str | None, given: AbstractSet[str]) -> InputError:
    """The error about a plan's own model or machine, naming file and key."""
    keys = {"model": "target.name", "hardware": "hardware.name", "num_gpus": "hardware.num_gpus"}
    return InputError(
        *(
            replace(problem, where=plan_file, key=keys[problem.where])
            if plan_file is not None and problem.where in keys and problem.where not in given
            else problem
            for problem in error.problems
        )
    )
