"""Predicted beside measured, from the files that the stages wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicdec.api.predict import predict
from magicdec.render.tables import text_table

Row = dict[str, Any]


def read(folder: Path, stage: str) -> list[Row]:
    """The rows of a stage; none if it did not run."""
    file = folder / f"{stage}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def report(folder: Path, hardware: str) -> str:
    """Tables of all that was measured, predictions for `hardware` beside them where there are some."""
    parts = [_rates(folder), _attention(folder), _passes(folder, hardware), _speculation(folder, hardware), _transformers(folder)]
    return "\n\n".join(part for part in parts if part)


def _rates(folder: Path) -> str:
    rows = {row["what"]: row for row in read(folder, "rates")}
    if "memory" not in rows:
        return ""
    memory = rows["memory"]
    text = f"copy {memory['copy_bytes_per_s'] / 1e12:.2f} TB/s, read {memory['read_bytes_per_s'] / 1e12:.2f} TB/s"
    return text + (f", matrix product {rows['product']['flop_per_s'] / 1e12:.0f} TFLOP/s" if "product" in rows else "")


def _attention(folder: Path) -> str:
    """Time by number of query tokens over that of one, and the share of a copy's bandwidth."""
    copied = next((row["copy_bytes_per_s"] for row in read(folder, "rates") if row["what"] == "memory"), float("nan"))
    found = {
        (row["layout"], row["batch_size"], row["context_len"], row["query_len"]): row
        for row in read(folder, "attention")
        if row["kernel"] == "magicdec" and "time_s" in row
    }
    if not found:
        return ""
    query_lens = sorted({key[3] for key in found})
    rows = []
    for layout, batch, context in dict.fromkeys(key[:3] for key in found):
        one = found.get((layout, batch, context, 1))
        if one is None:
            continue
        cells = [found.get((layout, batch, context, query_len)) for query_len in query_lens]
        ratios = [f"{cell['time_s'] / one['time_s']:.2f}" if cell else "" for cell in cells]
        rows.append([layout, str(batch), str(context), f"{one['time_s'] * 1e6:.0f}", f"{one['bytes_per_s'] / copied:.0%}", *ratios])
    return text_table(["heads", "batch", "context", "1 token [us]", "of copy", *(f"{n} tokens" for n in query_lens)], rows)


def _passes(folder: Path, hardware: str) -> str:
    """Target, draft and verification passes."""
    rows, errors = [], dict[str, list[float]]()
    for row in read(folder, "passes"):
        gamma = row["gamma"]
        point = predict(
            row["model"].lower(), hardware, batch_size=row["batch_size"], context_len=row["context_len"],
            kv_budget=row["kv_budget"], gamma=gamma or 1, acceptance_rate=0.8,
        ).document()  # fmt: skip
        pairs = {"target": (point["predicted_target_step_s"], row["verify_s"])}
        if gamma:
            pairs = {
                "verify": (point["predicted_verify_step_s"], row["verify_s"]),
                "draft": (point["predicted_draft_step_s"], row["draft_s"] / gamma),
            }
        for name, (predicted_s, measured_s) in pairs.items():
            errors.setdefault(name, []).append(predicted_s / measured_s - 1)
            place = [name, str(row["batch_size"]), str(row["context_len"]), str(gamma)]
            rows.append([*place, _ms(predicted_s), _ms(measured_s), f"{predicted_s / measured_s - 1:+.0%}"])
    if not rows:
        return ""
    heads = ["pass", "batch", "context", "gamma", "predicted [ms]", "measured [ms]", "error"]
    medians = ", ".join(f"{name} {statistics.median(map(abs, found)):.0%}" for name, found in errors.items())
    return f"{text_table(heads, rows)}\nmedian errors: {medians}"


def _speculation(folder: Path, hardware: str) -> str:
    rows = []
    for row in read(folder, "speculation"):
        point = predict(
            row["model"].lower(), hardware, batch_size=row["batch_size"], context_len=row["context_len"],
            kv_policy=row["kv_policy"], kv_budget=row["kv_budget"], gamma=row["gamma"],
            acceptance_rate=row["replayed_acceptance_rate"],
        ).document()  # fmt: skip
        predicted = point["predicted_speedup"]
        place = [str(row["batch_size"]), str(row["context_len"]), row["strategy"]]
        error = f"{predicted / row['speedup'] - 1:+.0%}"
        rows.append([*place, f"{predicted:.2f}", f"{row['speedup']:.2f}", error, f"{row['share_of_copy_bandwidth']:.0%}"])
    heads = ["batch", "context", "strategy", "predicted", "measured speedup", "error", "plain step of copy"]
    return text_table(heads, rows) if rows else ""


def _transformers(folder: Path) -> str:
    cell: Callable[[Row, str], str] = lambda row, key: _ms(row[key]) if key in row else ""  # noqa: E731
    rows = [
        [str(row["batch_size"]), str(row["context_len"]), cell(row, "magicdec_step_s")]
        + [cell(row, f"transformers_{way}_step_s") for way in ("eager", "compiled")]
        for row in read(folder, "transformers")
    ]
    return text_table(["batch", "context", "magicdec [ms]", "transformers", "compiled"], rows) if rows else ""


def _ms(time_s: float) -> str:
    return f"{time_s * 1e3:.2f}"
