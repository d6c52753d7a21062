"""Draw figures and one HTML page for a model and a machine, plans and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

import numpy as np

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.hardware.catalog import resolve_profile

from ..inputs.checks import names, text, whole_number, whole_numbers
from ..inputs.names import find_draft
from ..inputs.scenario import resolve_scenario
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
    draft: str = "self",
    kv_policy: str | None = None,
    kv_budget: int = 512,
    ridges: str | Sequence[str] = RIDGES,
) -> ReportFiles:
    """Draw every planning figure and, for each pair of plan and measurement, predicted beside measured.

    Args:
        output: Folder for the figures (PNG and SVG) and the page.
        files: Plans (YAML) and measurements (JSON lines) to compare.
        model, hardware, num_gpus, tensor_parallel: Of the planning figures; None for those of the first plan, without one
            llama-3.1-8b on 8 x h100-sxm.
        batch_sizes, context_lens: Axes. [sequences, tokens]
        draft: `self` or the name of a model.
        kv_policy: What it reads; None for the usual policy.
        kv_budget: KV entries it reads. [tokens]
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
        scenario = resolve_scenario(model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel)
    except InputError as error:
        raise _of_plan(error, next((file for file in files if file.endswith(PLAN_SUFFIXES)), None), given) from None
    kv_budget = whole_number("kv_budget", kv_budget)
    found = find_draft(draft, kv_policy, scenario.deployment, kv_budget)
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
    )
    page, *figures = write_page(output, [*planning_figures(grid), *run_figures(runs)], grid, runs, plans)
    return ReportFiles(page, (page, *figures))


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
