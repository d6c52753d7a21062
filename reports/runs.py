"""Predicted beside measured, for plans and the runs made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.plans.measurement import Measurement, load_measurements
from magicdec.costmodel.plans.plan import Plan, load_plan

from .style import Drawing, new_figure, plain

PLAN_SUFFIXES = (".yaml", ".yml")
TIMES = ("target step", "draft step", "verify step", "TPOT")  # in seconds; the other rows of a table are ratios
COLOURS = {"predicted": "#88ccee", "measured": "#332288"}


@dataclass(frozen=True)
class Run:
    """A plan and a measurement of the same workload, strategy, model and machine."""

    plan: Plan
    measured: Measurement

    @property
    def label(self) -> str:
        """Model and workload in words."""
        w = self.measured.workload
        return f"{self.plan.target.name}, batch {w.batch_size}, context {w.context_len}"

    def table(self) -> pd.DataFrame:
        """Predicted, measured and relative error, a row a quantity that both have. [s, tokens, ratio]"""
        predicted, measured = self.plan.prediction, self.measured
        drafts = self.plan.strategy.draft_kind != "none"
        rows = {
            "target step": (predicted.predicted_target_step_s, measured.measured_target_step_s),
            "draft step": (predicted.predicted_draft_step_s if drafts else None, measured.measured_draft_step_s),
            "verify step": (predicted.predicted_verify_step_s, measured.measured_verify_step_s),
            "TPOT": (predicted.predicted_speculative_tpot_s, measured.measured_speculative_tpot_s),
            "tokens per round": (predicted.predicted_mean_acceptance_length, measured.mean_acceptance_length),
            "speedup": (predicted.predicted_speedup, measured.measured_speedup),
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["predicted", "measured"]).astype(float).dropna()
        frame["error"] = frame["predicted"] / frame["measured"] - 1
        return frame


def read_runs(files: Sequence[str]) -> tuple[list[Run], list[Plan]]:
    """Pair plans (YAML) with the measurements (JSON lines) made from them.

    Returns:
        The pairs, and all plans.

    Raises:
        InputError: A file cannot be read, or a measurement has no plan of its workload, strategy, model and machine.
    """
    plans = [load_plan(file) for file in files if file.endswith(PLAN_SUFFIXES)]
    runs = []
    for file in files:
        measurements = [] if file.endswith(PLAN_SUFFIXES) else load_measurements(file)
        if not measurements and not file.endswith(PLAN_SUFFIXES):
            raise bad(file, "", "measurements, as `magicdec run --measurements` writes them", "an empty file")
        for number, measured in enumerate(measurements, start=1):
            planned = next((plan for plan in plans if measured.follows(plan)), None)
            if planned is None:
                expected = "a plan of the same workload, strategy, model and machine among the files"
                raise bad(f"{file}: measurement {number}", "", expected, f"{measured.workload}, {measured.strategy}")
            runs.append(Run(planned, measured))
    return runs, plans


def run_figures(runs: Sequence[Run]) -> list[Drawing]:
    """Predicted beside measured, a figure a run."""
    return [_run_figure(run, f"run_{number}") for number, run in enumerate(runs, start=1)]


def _run_figure(run: Run, name: str) -> Drawing:
    figure, axes = new_figure(2)
    table = run.table()
    of_time = table.index.isin(TIMES)
    panels = ((1e3 * table[of_time], "time [ms]", "%.1f"), (table[~of_time], "tokens per round; speedup [ratio]", "%.2f"))
    for ax, (part, label, number_format) in zip(axes, panels, strict=True):
        places = np.arange(len(part))
        for shift, (column, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
            bars = ax.bar(places + shift, part[column], width=0.38, color=colour, label=column)
            ax.bar_label(bars, fmt=number_format, fontsize=8)
        ax.set_xticks(places, list(part.index))
        ax.set_ylabel(label)
    axes[0].legend(frameon=False)
    figure.suptitle(plain(f"{run.label}: {run.plan.strategy}"), fontsize=11)
    return Drawing(name, "Predicted beside measured", "The same workload and strategy, planned and run.", figure)
