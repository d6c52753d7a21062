"""Many situations at once: a CSV file with a row a scenario, priced row by row; unknown columns pass through."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.speculation.acceptance import implied_acceptance_rate
from magicdec.costmodel.speculation.evaluate import Evaluation

from .api import predict

REQUIRED = ("hardware", "target", "batch_size", "context_len")
ADDED = (
    "predicted_target_step_s",
    "predicted_verify_step_s",
    "predicted_gamma_draft_step_s",
    "predicted_mean_acceptance_length",
    "predicted_speculative_tpot_s",
    "predicted_speedup",
    "predicted_speedup_low",
    "predicted_speedup_high",
    "predicted_optimal_gamma",
    "bound",
    "fits_in_memory",
    "error",
)


def price_file(source: str) -> str:
    """The CSV text of a scenarios file with the predictions added.

    Columns read: hardware, target, batch_size, context_len; and, where given, num_gpus, tensor_parallel, draft_kind (none,
    self, model), draft_model, kv_policy, kv_budget, gamma, acceptance_rate, mean_acceptance_length.
    A row that cannot be priced gets the reason in its `error` column.

    Raises:
        InputError: The file cannot be read, or lacks a column that every row needs.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(Path(source).read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad(source, "", "a readable CSV file", getattr(error, "strerror", None) or error) from None
    if not rows:
        raise bad(source, "", "a header and a row a scenario", "no row")
    missing = [name for name in REQUIRED if name not in rows[0]]
    if missing:
        raise bad(source, ", ".join(missing), "a column of this name", ", ".join(rows[0]))
    out = io.StringIO()
    known = [name for name in rows[0] if name is not None and name not in ADDED]
    writer = csv.DictWriter(out, [*known, *ADDED], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **_priced(row)})
    return out.getvalue()


def _priced(row: Mapping[str, str | None]) -> dict[str, Any]:
    try:
        return price(row)
    except InputError as error:
        return {"error": str(error).replace("\n", "; ")}


def price(row: Mapping[str, str | None]) -> dict[str, Any]:
    """The predictions for one row. Raises `InputError` when it cannot be priced."""
    kind = row.get("draft_kind") or "self"
    draft = row.get("draft_model") if kind == "model" else kind
    if not draft:
        raise bad("draft_model", "", "the name of a model where draft_kind is model", "nothing")
    gamma, length, rate = _number(row, "gamma"), _real(row, "mean_acceptance_length"), _real(row, "acceptance_rate")
    if length is not None and rate is None and gamma is not None and length <= gamma + 1:
        rate = float(implied_acceptance_rate(gamma, length))
    question: dict[str, Any] = {
        "num_gpus": _number(row, "num_gpus") or 1,
        "tensor_parallel": _number(row, "tensor_parallel"),
        "batch_size": _number(row, "batch_size", required=True),
        "context_len": _number(row, "context_len", required=True),
        "draft": draft,
        "kv_policy": row.get("kv_policy") or None,
        "kv_budget": _number(row, "kv_budget"),
    }
    model, hardware = row.get("target") or "", row.get("hardware") or ""
    best = predict(model, hardware, acceptance_rate=rate, **question)
    if gamma is None:
        return _columns(best, best)
    given = predict(model, hardware, gamma=gamma, acceptance_rate=rate, mean_acceptance_length=length, **question)
    return _columns(given, best)


def _columns(asked: Evaluation, best: Evaluation) -> dict[str, Any]:
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
        "predicted_optimal_gamma": int(best.round.gamma),
        "bound": str(asked.target.bound),
        "fits_in_memory": str(bool(asked.fits_in_memory)).lower(),
        "error": "acceptance is neither given nor known" if math.isnan(float(r.speedup)) else "",
    }


def _written(value: object) -> str:
    """Six digits; nothing where it is not known."""
    number = float(value)  # type: ignore[arg-type]
    return "" if math.isnan(number) else f"{number:.6g}"


def _number(row: Mapping[str, str | None], key: str, *, required: bool = False) -> int | None:
    value = _real(row, key)
    if value is None and not required:
        return None
    if value is None or not math.isfinite(value) or value < 1 or value != int(value):
        raise bad(key, "", "a positive whole number", repr(row.get(key)))
    return int(value)


def _real(row: Mapping[str, str | None], key: str) -> float | None:
    text = (row.get(key) or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise bad(key, "", "a number", repr(text)) from None
