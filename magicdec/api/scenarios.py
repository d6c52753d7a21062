"""Predict every row of a CSV file; columns that are not read pass through."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from magicdec.costmodel.base.csv_text import read_csv
from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.base.units import parse_tokens
from magicdec.costmodel.plans.strategy import DRAFT_KINDS
from magicdec.costmodel.speculation.acceptance import implied_acceptance_rate

from ..inputs.checks import text
from ..results.prediction import Prediction
from ..results.scenarios import ADDED_COLUMNS, MEASUREMENT_COLUMNS, ScenarioTable
from .predict import predict

REQUIRED_COLUMNS = ("hardware", "target", "batch_size", "context_len")
OPTIONAL_COLUMNS = (
    "num_gpus",
    "tensor_parallel",
    "draft_kind",
    "draft_model",
    "kv_policy",
    "kv_budget",
    "gamma",
    "acceptance_rate",
    "mean_acceptance_length",
)
ScenarioRow = Mapping[str, str]


def predict_scenarios(scenarios: str | Path) -> ScenarioTable:
    """Predict every row of a CSV file.

    Columns read: hardware, target, batch_size, context_len; and, where given, num_gpus, tensor_parallel, draft_kind (none,
    self, ngram, eagle3, mtp, model), draft_model, kv_policy, kv_budget, gamma, acceptance_rate, mean_acceptance_length.
    A row that cannot be predicted has the reason in its `error` column. A file of measurements, with columns such as model, gpu,
    engine and quant, is taken too; `magicdec validate` says what its columns may be called.

    Args:
        scenarios: The file.

    Raises:
        InputError: The file cannot be read, or lacks a column that every row needs.
    """
    scenarios = text("scenarios", scenarios)
    if not _has_columns(scenarios):
        return _measured(scenarios)
    columns, rows = _read(scenarios)
    return ScenarioTable((*columns, *ADDED_COLUMNS), tuple({**row, **_predicted(row)} for row in rows))


def _has_columns(path: str) -> bool:
    """Whether a file is one of scenarios, rather than of measurements: those have a column for the model or the machine."""
    columns, _ = read_csv(path, "scenarios", loose=True)
    return not ({"model", "gpu", "device", "model_shape"} & set(columns)) or set(REQUIRED_COLUMNS) <= set(columns)


def _measured(path: str) -> ScenarioTable:
    from ..field.accuracy import read_measurements

    columns, priced = read_measurements(path)
    known = [name for name in columns if name not in MEASUREMENT_COLUMNS]
    cells = [{**dict.fromkeys(MEASUREMENT_COLUMNS, ""), **one.cells, **one.columns, "error": one.error} for one in priced]
    return ScenarioTable((*known, *MEASUREMENT_COLUMNS), tuple(cells))


def _read(path: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a file; predictions of an earlier run are left out."""
    columns, rows = read_csv(path, "scenarios", REQUIRED_COLUMNS)
    known = [name for name in columns if name not in ADDED_COLUMNS]
    for name in known:
        close = difflib.get_close_matches(name.lower(), (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS), n=1, cutoff=0.8)
        if close and close[0] != name:
            raise bad(path, name, f"the column {close[0]}, or one of another name, which passes through", name)
    return known, [{name: row[name] for name in known} for _, row in rows]


def _predicted(row: ScenarioRow) -> dict[str, str]:
    """The added columns of one row."""
    try:
        return _predict_row(row)
    except InputError as error:
        return {**dict.fromkeys(ADDED_COLUMNS, ""), "error": "; ".join(_by_column(error))}


def _by_column(error: InputError) -> list[str]:
    """The problems, with the names of columns instead of parameters."""
    columns = {"model": "target", "draft": "draft_model"}
    return [str(replace(problem, where=columns.get(problem.where, problem.where))) for problem in error.problems]


def _predict_row(row: ScenarioRow) -> dict[str, str]:
    kind = row.get("draft_kind") or "self"
    draft = row.get("draft_model") if kind == "model" else kind
    if not draft:
        raise bad("draft_model", "", "the name of a model where draft_kind is model", "nothing")
    kv_policy = row.get("kv_policy") or None
    gamma, length, rate = _whole(row, "gamma"), _real(row, "mean_acceptance_length"), _real(row, "acceptance_rate")
    if length is not None and rate is None and gamma is not None and length <= gamma + 1:
        rate = float(implied_acceptance_rate(gamma, length))
    budgeted = draft not in DRAFT_KINDS or draft == "self"  # other kinds have no KV budget: what the row says of one is ignored
    if draft == "none":
        gamma = length = rate = None

    def predicted(gamma: int | None, rate: float | None, length: float | None) -> Prediction:
        return predict(
            row.get("target") or "",
            row.get("hardware") or "",
            num_gpus=_whole(row, "num_gpus") or 1,
            tensor_parallel=_whole(row, "tensor_parallel"),
            batch_size=_required(row, "batch_size"),
            context_len=_required(row, "context_len"),
            draft=draft,
            kv_policy=kv_policy,
            kv_budget=_whole(row, "kv_budget") if budgeted and kv_policy != "full" else None,
            gamma=gamma,
            acceptance_rate=rate if length is None else None,
            mean_acceptance_length=length,
        )

    if draft == "none" and kv_policy == "full":
        kv_policy = None
    best = predicted(None, rate, None)
    return _columns(best if gamma is None else predicted(gamma, rate, length), best)


def _columns(asked: Prediction, best: Prediction) -> dict[str, str]:
    r = asked.round
    return {
        "predicted_target_step_s": _written(r.target_step_s),
        "predicted_verify_step_s": _written(r.verify_step_s),
        "predicted_gamma_draft_step_s": _written(r.gamma_draft_step_s),
        "predicted_mean_acceptance_length": _written(r.mean_acceptance_length),
        "predicted_speculative_tpot_s": _written(r.speculative_tpot_s),
        "predicted_speedup": _written(r.speedup),
        "predicted_speedup_low": _written(asked.speedup_low),
        "predicted_speedup_high": _written(asked.speedup_high),
        "predicted_optimal_gamma": str(int(best.gamma)),
        "bound": str(asked.evaluation.target.bound),
        "fits_in_memory": str(bool(asked.evaluation.fits_in_memory)).lower(),
        "error": "acceptance is neither given nor known" if math.isnan(float(r.speedup)) else "",
    }


def _written(value: object) -> str:
    """Six significant digits; empty where unknown."""
    number = float(value)  # type: ignore[arg-type]
    return "" if math.isnan(number) else f"{number:.6g}"


def _required(row: ScenarioRow, key: str) -> int:
    value = _whole(row, key)
    if value is None:
        raise bad(key, "", "a positive whole number", repr(row.get(key)))
    return value


def _whole(row: ScenarioRow, key: str) -> int | None:
    cell = row.get(key, "").strip()
    return parse_tokens(cell, key) if cell else None


def _real(row: ScenarioRow, key: str) -> float | None:
    cell = row.get(key, "").strip()
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad(key, "", "a number", repr(cell))
    return value
