"""Predicted beside measured, for plans and the runs made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.plan import Plan, load_plan

from .style import Drawing, new_figure

QUANTITIES = {
    "target step": ("predicted_target_step_s", "measured_target_step_s"),
    "draft step": ("predicted_draft_step_s", "measured_draft_step_s"),
    "verify step": ("predicted_verify_step_s", "measured_verify_step_s"),
    "time per token": ("predicted_speculative_tpot_s", "measured_speculative_tpot_s"),
}
MEASURED_KEYS = (
    "workload",
    "strategy",
    "hardware",
    "target",
    "measured_verify_step_s",
    "measured_speculative_tpot_s",
    "environment",
)


@dataclass(frozen=True)
class Run:
    """A plan and a measurement of the same workload, strategy and model."""

    plan: Plan
    measured: dict[str, Any]

    @property
    def label(self) -> str:
        """In words."""
        w = self.measured["workload"]
        return f"{self.plan.target.name}, batch {w['batch_size']}, context {w['context_len']}"

    def table(self) -> pd.DataFrame:
        """Predicted and measured, a row a quantity. [s, ratio]"""
        predicted = self.plan.prediction.model_dump()
        pairs = {
            **QUANTITIES,
            "tokens per round": ("predicted_mean_acceptance_length", "mean_acceptance_length"),
            "speedup": ("predicted_speedup", "measured_speedup"),
        }
        rows = {
            name: {"predicted": predicted.get(left), "measured": self.measured.get(right)} for name, (left, right) in pairs.items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index").astype(float).dropna()
        frame["error"] = frame["predicted"] / frame["measured"] - 1
        return frame


def read_runs(files: Sequence[str]) -> tuple[list[Run], list[Plan]]:
    """Pair plans (YAML) with measurements (JSON lines) of the same model and strategy; the pairs, and all plans.

    Raises:
        InputError: A file cannot be read, or a measurement has no plan of its own workload, strategy and model.
    """
    plans = [load_plan(file) for file in files if file.endswith((".yaml", ".yml"))]
    runs = []
    for file in files:
        if file.endswith((".yaml", ".yml")):
            continue
        for number, measured in _measurements(file):
            matching = [plan for plan in plans if _same(plan, measured)]
            if not matching:
                what = f"{measured['workload']}, {measured['strategy']}"
                raise bad(
                    f"{file}: line {number}", "", "a plan of the same workload, strategy, model and machine among the files", what
                )
            runs.append(Run(matching[0], measured))
    return runs, plans


def _measurements(file: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise bad(file, "", "a readable file of measurements", getattr(error, "strerror", None) or error) from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise bad(f"{file}: line {number}", "", "a measurement as JSON", error) from None
        missing = [key for key in MEASURED_KEYS if not isinstance(record, dict) or key not in record]
        if missing:
            raise bad(
                f"{file}: line {number}", ", ".join(missing), "a measurement, as `magicdec run --measurements` writes it", "nothing"
            )
        found.append((number, record))
    return found


def _same(plan: Plan, measured: dict[str, Any]) -> bool:
    """Whether a measurement is of what was planned; contexts may differ by a thirty-second, for prompts are what they are."""
    planned, seen = asdict(plan.workload), measured["workload"]
    near = abs(seen["context_len"] - planned["context_len"]) <= planned["context_len"] / 32
    same_batch = seen["batch_size"] == planned["batch_size"]
    same_machine = measured["hardware"] == plan.hardware.name
    same_input = same_machine and measured["strategy"] == asdict(plan.strategy) and measured["target"] == plan.target.fingerprint
    return bool(near and same_batch and same_input)


def run_figures(runs: Sequence[Run]) -> list[Drawing]:
    """Predicted beside measured, a figure a run."""
    return [_beside(run, f"run_{number}") for number, run in enumerate(runs, start=1)]


def _beside(run: Run, name: str) -> Drawing:
    figure, (ax, ratio_ax) = new_figure(2)
    table = run.table()
    times = table.loc[[name for name in QUANTITIES if name in table.index]]
    places = np.arange(len(times))
    for shift, column, colour in ((-0.2, "predicted", "#88ccee"), (0.2, "measured", "#332288")):
        bars = ax.bar(places + shift, 1e3 * times[column], width=0.38, color=colour, label=column)
        ax.bar_label(bars, fmt="%.1f", fontsize=8)
    ax.set_xticks(places, list(times.index))
    ax.set_ylabel("time [ms]")
    ax.legend(frameon=False)
    others = table.loc[[name for name in ("tokens per round", "speedup") if name in table.index]]
    places = np.arange(len(others))
    for shift, column, colour in ((-0.2, "predicted", "#88ccee"), (0.2, "measured", "#332288")):
        bars = ratio_ax.bar(places + shift, others[column], width=0.38, color=colour)
        ratio_ax.bar_label(bars, fmt="%.2f", fontsize=8)
    ratio_ax.set_xticks(places, list(others.index))
    ratio_ax.set_ylabel("tokens per round; speedup [ratio]")
    figure.suptitle(f"{run.label}: {run.plan.strategy}", fontsize=11)
    return Drawing(name, "Predicted beside measured", "The same workload and strategy, planned and run.", figure)
