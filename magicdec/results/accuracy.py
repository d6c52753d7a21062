"""How well predictions hold, beside published rows and own measurements."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from magicdec.costmodel.calibration.published_rows import Accuracy, Comparison
from magicdec.costmodel.hardware.profile import Fit

from ..render.tables import text_table
from .base import Result, Row

if TYPE_CHECKING:
    from ..field.accuracy import FileAccuracy

BEST_GAMMA, SPEEDUP_AT_BEST_GAMMA = "best gamma", "speedup at the best gamma"


@dataclass(frozen=True)
class KernelFit:
    """Residuals of one kernel law on one GPU.

    Attributes:
        hardware: Profile.
        fit: The fit; its errors are of rows that were left out of it.
    """

    hardware: str
    fit: Fit


@dataclass(frozen=True, repr=False, eq=False)
class AccuracyReport(Result):
    """Predicted beside measured.

    Attributes:
        comparisons: Every quantity of every row.
        table: The errors by GPU, model and quantity.
        kernels: Residuals of the kernel laws.
        files: Errors of CSV files of measurements, by file and quantity.
    """

    comparisons: tuple[Comparison, ...]
    table: tuple[Accuracy, ...]
    kernels: tuple[KernelFit, ...]
    files: tuple[FileAccuracy, ...] = ()

    @property
    def best_gamma_within_1(self) -> float:
        """Share of the rows whose best gamma is at most one off. [0-1]"""
        return _share(self.comparisons, BEST_GAMMA, 1.0)

    @property
    def speedup_within_5_percent(self) -> float:
        """Share of the rows whose speedup at the best gamma is within 5 %. [0-1]"""
        return _share(self.comparisons, SPEEDUP_AT_BEST_GAMMA, 0.05)

    @property
    def headline(self) -> str:
        return f"{len(self.comparisons)} predicted quantities beside measured ones"

    def rows(self) -> list[Row]:
        return [asdict(row) for row in self.table]

    def to_dict(self) -> dict[str, object]:
        return {
            "accuracy": [asdict(row) for row in self.table],
            "files": [asdict(line) for line in self.files],
            "kernel_tables": [{"hardware": kernel.hardware, **asdict(kernel.fit)} for kernel in self.kernels],
            "best_gamma_within_1": self.best_gamma_within_1,
            "speedup_at_best_gamma_within_5_percent": self.speedup_within_5_percent,
            "comparisons": [{**asdict(one), "error": one.error} for one in self.comparisons],
        }

    def __str__(self) -> str:
        steps = text_table(
            ["GPU", "rows were", "model", "quantity", "rows", "median", "mean", "worst", "worst row"],
            [[a.hardware, a.split, a.model, a.quantity, str(a.rows), *_sizes(a), a.worst_row] for a in self.table],
        )
        best = (
            f"The best gamma is within 1 of the measured one in {self.best_gamma_within_1:.0%} of the rows, "
            f"the speedup there within 5 % in {self.speedup_within_5_percent:.0%}."
        )
        kernels = text_table(
            ["GPU", "kernel", "median", "mean", "large reads", "table (errors are of rows left out of the fit)"],
            [
                [
                    kernel.hardware,
                    fit.part,
                    f"{fit.median_error:.1%}",
                    f"{fit.mean_error:.1%}",
                    _percent(fit.large_mean_error),
                    fit.data,
                ]
                for kernel in self.kernels
                for fit in (kernel.fit,)
            ],
        )
        return "\n".join([*self._files_text, steps, "", best, "", kernels])

    @property
    def _files_text(self) -> list[str]:
        if not self.files:
            return []
        shown = ["file", "quantity", "engine", "rows", "priced", "median", "90 %", "worst", "in interval"]
        lines = [
            [_short(a.file), a.quantity or "nothing known", a.engine, str(a.rows), str(a.priced), *_file_errors(a)]
            for a in self.files
        ]
        return [text_table(shown, lines), ""]


def _short(file: str) -> str:
    return os.path.basename(file)


def _file_errors(a: FileAccuracy) -> list[str]:
    if not a.priced:
        return [""] * 4
    sizes = (a.median_error, a.p90_error, a.worst_error)
    return [*(f"{size:.1f}" if a.quantity == BEST_GAMMA else f"{size:.1%}" for size in sizes), f"{a.covered:.0%}"]


def _share(comparisons: Sequence[Comparison], quantity: str, limit: float) -> float:
    """Share of a quantity's rows whose error is within a limit. [0-1]"""
    return float(np.mean([abs(one.error) <= limit for one in comparisons if one.quantity == quantity]))


def _sizes(a: Accuracy) -> list[str]:
    sizes = (a.median, a.mean, a.worst)
    return [f"{size:.1f}" for size in sizes] if a.quantity == BEST_GAMMA else [f"{size:.1%}" for size in sizes]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
