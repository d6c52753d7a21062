"""The accuracy table: predicted beside published rows, and beside measurements of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.base.validation import from_pydantic
from magicdec.costmodel.calibration.validation import NOT_FITTED, Accuracy, Comparison, accuracy, published_comparisons
from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs
from magicdec.costmodel.plans.plan import fingerprint
from magicdec.costmodel.plans.strategy import Strategy

from . import text
from .api import predict
from .names import REFERENCE, find_model

BEST_GAMMA = "best gamma"


def validation(files: Sequence[str], figure_folder: Path | None) -> tuple[dict[str, Any], str]:
    """The table of published rows and of measurement files, with the residuals of kernel tables; and the figure, if asked for."""
    comparisons = [*published_comparisons(), *(one for file in files for one in own_comparisons(file))]
    table = accuracy(comparisons)
    kernels = [
        {"hardware": name, **asdict(fit)}
        for name in builtin_profiles()
        for fit in resolve_profile(name).calibration.fits
        if fit.part != "engine"
    ]
    if figure_folder is not None:
        _draw(comparisons, figure_folder)
    document = {
        "accuracy": [asdict(row) for row in table],
        "kernel_tables": kernels,
        "best_gamma_within_1": _share(comparisons, BEST_GAMMA, 1.0),
        "speedup_at_best_gamma_within_5_percent": _share(comparisons, "speedup at the best gamma", 0.05),
        "comparisons": [{**asdict(one), "error": one.error} for one in comparisons],
    }
    return document, _words(table, kernels, document)


def own_comparisons(file: str) -> list[Comparison]:
    """Measurements that `magicdec run --compare --measurements` wrote, beside predictions with the measured tokens per round.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        measured = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise bad(file, "", "a readable file of measurements", error.strerror) from None
    except ValueError as error:
        raise bad(file, "", "a measurement in JSON on every line", error) from None
    return [one for number, line in enumerate(measured, 1) for one in _own(line, f"{file}:{number}")]


class _Workload(pydantic.BaseModel):
    batch_size: pydantic.PositiveInt
    context_len: pydantic.PositiveInt
    output_len: pydantic.PositiveInt


class _Measured(pydantic.BaseModel):
    """What is compared of a measurement; the rest of the line is left alone."""

    workload: _Workload
    strategy: Strategy
    hardware: str
    target: str
    mean_acceptance_length: float = pydantic.Field(ge=1.0)
    measured_target_step_s: pydantic.PositiveFloat | None = None
    measured_verify_step_s: pydantic.PositiveFloat | None = None
    measured_gamma_draft_step_s: pydantic.PositiveFloat | None = None
    measured_speedup: pydantic.PositiveFloat | None = None


def _own(raw: object, where: str) -> list[Comparison]:
    names = {fingerprint(find_model(name).config): name for name in (REFERENCE, *builtin_configs())}
    try:
        measured = _Measured.model_validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    if measured.target not in names:
        raise bad(where, "target", "the fingerprint of a built-in model or the reference model", measured.target)
    strategy, workload, name = measured.strategy, measured.workload, names[measured.target]
    if strategy.draft_kind not in ("none", "self"):
        return []  # a draft model is known by its fingerprint only
    try:
        e = predict(
            name,
            measured.hardware,
            batch_size=workload.batch_size,
            context_len=workload.context_len + workload.output_len / 2,
            draft=strategy.draft_kind,
            kv_policy=None if strategy.draft_kind == "none" else strategy.kv_policy,
            kv_budget=strategy.kv_budget,
            gamma=strategy.gamma,
            mean_acceptance_length=measured.mean_acceptance_length if strategy.gamma else None,
            draft_kv_dtype=strategy.kv_dtype,
            draft_weight_dtype=strategy.weight_dtype,
        )
    except InputError as error:
        raise InputError(*(replace(problem, where=f"{where}: {problem.where}") for problem in error.problems)) from None
    quantities = {
        "target step": (measured.measured_target_step_s, e.round.target_step_s),
        "verify step": (measured.measured_verify_step_s if strategy.gamma else None, e.round.verify_step_s),
        "draft steps": (measured.measured_gamma_draft_step_s, e.round.gamma_draft_step_s),
        "speedup": (measured.measured_speedup if strategy.gamma else None, e.round.speedup),
    }
    row = f"{workload.batch_size} x {workload.context_len}, {strategy}"
    return [
        Comparison(measured.hardware, name, quantity, NOT_FITTED, row, seen, float(np.asarray(predicted)))
        for quantity, (seen, predicted) in quantities.items()
        if seen is not None
    ]


def _share(comparisons: Sequence[Comparison], quantity: str, limit: float) -> float:
    """Rows of a quantity whose error is within a limit. [0-1]"""
    return float(np.mean([abs(one.error) <= limit for one in comparisons if one.quantity == quantity]))


def _words(table: Sequence[Accuracy], kernels: Sequence[dict[str, Any]], document: dict[str, Any]) -> str:
    rows = [[a.hardware, a.split, a.model, a.quantity, str(a.rows), *_sizes(a), a.worst_row] for a in table]
    steps = text.table(["GPU", "rows were", "model", "quantity", "rows", "median", "mean", "worst", "worst row"], rows)
    shown = [
        [fit["hardware"], fit["part"], f"{fit['median_error']:.1%}", f"{fit['mean_error']:.1%}", _large(fit), fit["data"]]
        for fit in kernels
    ]
    tables = text.table(["GPU", "kernel", "median", "mean", "large reads", "table; errors are of rows left out of the fit"], shown)
    gamma, speedup = document["best_gamma_within_1"], document["speedup_at_best_gamma_within_5_percent"]
    best = f"Best gamma within 1 of the measured one in {gamma:.0%} of the rows, the speedup there within 5 % in {speedup:.0%}."
    return "\n".join([steps, "", best, "", tables])


def _sizes(a: Accuracy) -> list[str]:
    sizes = (a.median, a.mean, a.worst)
    return [f"{size:.1f}" for size in sizes] if a.quantity == BEST_GAMMA else [f"{size:.1%}" for size in sizes]


def _large(fit: dict[str, Any]) -> str:
    return "" if fit["large_mean_error"] is None else f"{fit['large_mean_error']:.1%}"


def _draw(comparisons: Sequence[Comparison], folder: Path) -> None:
    from magicdec.reports.accuracy import accuracy_figure

    drawing = accuracy_figure(comparisons)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        drawing.figure.savefig(folder / f"{drawing.name}.{kind}", dpi=150)
