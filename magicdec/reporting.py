"""Figures and the page for a model, a machine, plans and measurements: what `report` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.hardware.catalog import resolve_profile

from .api import ask
from .names import find_draft


def write_report(
    folder: Path,
    *,
    files: Sequence[str],
    model: str | None,
    hardware: str | None,
    num_gpus: int | None,
    tensor_parallel: int | None,
    batch_sizes: Sequence[int],
    context_lens: Sequence[int],
    draft: str,
    kv_policy: str | None,
    kv_budget: int,
    ridges: Sequence[str],
) -> list[Path]:
    """Draw every planning figure and, for each pair of plan and measurement, predicted beside measured.

    Model and machine are those of the first plan, unless they are given.
    """
    from magicdec.reports.page import write_page
    from magicdec.reports.planning import Map, planning_figures
    from magicdec.reports.runs import read_runs, run_figures

    runs, plans = read_runs(files)
    planned = plans[0] if plans else None
    question = ask(
        model or (planned.target.name if planned else "llama-3.1-8b"),
        hardware or (planned.hardware.name if planned else "h100-sxm"),
        num_gpus=num_gpus or (planned.hardware.num_gpus if planned else 8),
        tensor_parallel=tensor_parallel or (planned.hardware.tensor_parallel if planned and num_gpus is None else None),
    )
    found = find_draft(draft, kv_policy, question.deployment, kv_budget)
    if found.kind == "none":
        raise bad("--draft", "", "`self` or a model: the figures are about drafting", "none")
    batches, contexts = np.array(sorted(set(batch_sizes))), np.array(sorted(set(context_lens)))
    drawn = Map(
        deployment=question.deployment,
        draft=found,
        batch_sizes=batches,
        context_lens=contexts,
        kv_budget=float("inf") if found.kv_policy == "full" else kv_budget,
        curves=question.model.curves,
        ridges=tuple(resolve_profile(name) for name in ridges),
    )
    return write_page(folder, [*planning_figures(drawn), *run_figures(runs)], drawn, runs, plans)
