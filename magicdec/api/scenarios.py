"""Predict every row of a CSV file; columns that are not read pass through."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.plans.strategy import DRAFT_KINDS
from magicdec.costmodel.speculation.acceptance import implied_acceptance_rate

from ..inputs.checks import text
from ..results.prediction import Prediction
from ..results.scenarios import ADDED_COLUMNS, ScenarioTable
from .predict import predict

REQUIRED_COLUMNS = ("hardware", "target", "batch_size", "context_len")
ScenarioRow = Mapping[str, str | None]


def predict_scenarios(scenarios: str | Path) -> ScenarioTable:
    """Predict every row of a CSV file.

    Columns read: hardware, target, batch_size, context_len; and, where given, num_gpus, tensor_parallel, draft_kind (none,
    self, ngram, eagle3, mtp, model), draft_model, kv_policy, kv_budget, gamma, acceptance_rate, mean_acceptance_length.
    A row that cannot be predicted has the reason in its `error` column.

    Args:
        scenarios: The file.

    Raises:
        InputError: The file cannot be read, or lacks a column that every row needs.
    """
    scenarios = text("scenarios", scenarios)
    try:
        rows = list(csv.DictReader(io.StringIO(Path(scenarios).read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad(scenarios, "", "a readable CSV file", getattr(error, "strerror", None) or error) from None
    if not rows:
        raise bad(scenarios, "", "a header and a row for every scenario", "no row")
    missing = [name for name in REQUIRED_COLUMNS if name not in rows[0]]
    if missing:
        raise bad(scenarios, ", ".join(missing), "a column of this name", ", ".join(rows[0]))
    known = [name for name in rows[0] if name is not None and name not in ADDED_COLUMNS]
    return ScenarioTable((*known, *ADDED_COLUMNS), tuple({**_text_cells(row, known), **_predicted(row)} for row in rows))


def _text_cells(row: ScenarioRow, columns: list[str]) -> dict[str, str]:
    return {name: row.get(name) or "" for name in columns}


def _predicted(row: ScenarioRow) -> dict[str, str]:
    """The added columns of one row."""
    try:
        return _predict_row(row)
    except InputError as error:
        return {**dict.fromkeys(ADDED_COLUMNS, ""), "error": str(error).replace("\n", "; ")}


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
    value = _real(row, key)
    if value is None:
        return None
    if not math.isfinite(value) or value < 1 or value != int(value):
        raise bad(key, "", "a positive whole number", repr(row.get(key)))
    return int(value)


def _real(row: ScenarioRow, key: str) -> float | None:
    text = (row.get(key) or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise bad(key, "", "a number", repr(text)) from None
