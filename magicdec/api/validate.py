"""Check predictions against published rows and own measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.calibration.published_rows import NOT_FITTED, Comparison, accuracy, published_comparisons
from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.models.catalog import builtin_configs
from magicdec.costmodel.plans.measurement import Measurement, load_measurements
from magicdec.costmodel.plans.plan import fingerprint

from ..inputs.checks import names, optional_text
from ..inputs.names import REFERENCE, find_model
from ..results.accuracy import AccuracyReport, KernelFit
from .predict import predict

if TYPE_CHECKING:
    from magicdec.reports.style import Drawing

    from ..field.accuracy import FileAccuracy


def validate(files: str | Path | Sequence[str | Path] = (), *, figure: str | Path | None = None) -> AccuracyReport:
    """Check predictions against published step times and speedups, and against own measurements.

    Args:
        files: Measurements that `magicdec run --compare --measurements` wrote, and CSV files of measurements as people publish
            them: columns are known by their names (docs/reference/measurements.md).
        figure: Folder for a figure of predicted against measured, as PNG and SVG; None for none.

    Raises:
        InputError: A file cannot be read or holds something else, or a measurement is of an unknown model.
    """
    figure = optional_text("figure", figure)
    if figure is not None:
        from magicdec.reports.accuracy import accuracy_figure  # a missing library is told before the work
    given = names("files", files)
    tables = [file for file in given if file.lower().endswith(".csv")]
    field = tuple(line for file in tables for line in _accuracy_of(file))
    own = [one for file in given if file not in tables for one in own_comparisons(file)]
    comparisons = (*published_comparisons(), *own)
    kernels = tuple(
        KernelFit(name, fit)
        for name in builtin_profiles()
        for fit in resolve_profile(name).calibration.fits
        if fit.part != "engine"
    )
    if figure is not None:
        _draw(accuracy_figure(comparisons), Path(figure))
    return AccuracyReport(comparisons, tuple(accuracy(comparisons)), kernels, field)


def _accuracy_of(file: str) -> list[FileAccuracy]:
    from ..field.accuracy import file_accuracy, read_measurements

    return file_accuracy(file, read_measurements(file)[1])


def own_comparisons(file: str) -> list[Comparison]:
    """Measurements beside predictions that are given the measured tokens per round.

    Raises:
        InputError: The file cannot be read or holds something else, or a measurement is of an unknown model.
    """
    models = {fingerprint(find_model(name).config): name for name in (REFERENCE, *builtin_configs())}
    return [
        one
        for number, measured in enumerate(load_measurements(file), 1)
        for one in _compared(measured, models, f"{file}: measurement {number}")
    ]


def _compared(measured: Measurement, models: dict[str, str], where: str) -> list[Comparison]:
    if measured.target not in models:
        raise bad(where, "target", "the fingerprint of a built-in model or the reference model", measured.target)
    strategy, workload, name = measured.strategy, measured.workload, models[measured.target]
    if strategy.draft_kind not in ("none", "self"):
        return []  # a draft model is known by its fingerprint only
    drafts = strategy.draft_kind == "self"
    try:
        found = predict(
            name,
            measured.hardware,
            batch_size=workload.batch_size,
            context_len=workload.mean_context_len,
            draft=strategy.draft_kind,
            kv_policy=strategy.kv_policy if drafts else None,
            kv_budget=strategy.kv_budget,
            gamma=strategy.gamma if drafts else None,
            mean_acceptance_length=measured.mean_acceptance_length if drafts else None,
            draft_kv_dtype=strategy.kv_dtype,
            draft_weight_dtype=strategy.weight_dtype,
        ).round
    except InputError as error:
        raise InputError(*(replace(problem, where=f"{where}: {problem.where}") for problem in error.problems)) from None
    quantities = {
        "target step": (measured.measured_target_step_s, found.target_step_s),
        "verify step": (measured.measured_verify_step_s if drafts else None, found.verify_step_s),
        "draft steps": (measured.measured_gamma_draft_step_s, found.gamma_draft_step_s),
        "speedup": (measured.measured_speedup if drafts else None, found.speedup),
    }
    row = f"{workload.batch_size} x {workload.context_len}, {strategy}"
    return [
        Comparison(measured.hardware, name, quantity, NOT_FITTED, row, seen, float(predicted))
        for quantity, (seen, predicted) in quantities.items()
        if seen is not None
    ]


def _draw(drawing: Drawing, folder: Path) -> None:
    from magicdec.reports.style import save

    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        save(drawing.figure, folder / f"{drawing.name}.{kind}", kind=kind)
