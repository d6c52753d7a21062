"""Errors of the predictions for files of measurements, by file and quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magicdec.costmodel.base.csv_text import read_csv

from .pricing import Compared, PricedRow, price_rows


@dataclass(frozen=True)
class FileAccuracy:
    """Errors of one quantity over the rows of a file.

    Attributes:
        file: The file.
        quantity: What was measured.
        rows: Rows of the file.
        priced: Rows with a prediction of this quantity.
        median_error, p90_error, worst_error: Absolute relative errors; of the best gamma differences. [ratio or tokens]
        covered: Share of these rows inside the interval of their prediction. [0-1]
        engine: The engine they were priced for; empty for that of the machine's profile.
    """

    file: str
    quantity: str
    rows: int
    priced: int
    median_error: float
    p90_error: float
    worst_error: float
    covered: float
    engine: str


def read_measurements(path: str) -> tuple[list[str], list[PricedRow]]:
    """Columns of a file, and its rows with predictions.

    Raises:
        InputError: The file cannot be read, or is no CSV file.
    """
    columns, rows = read_csv(path, "measurements", loose=True)
    return columns, price_rows(path, [row for _, row in rows])


def file_accuracy(path: str, priced: Sequence[PricedRow]) -> list[FileAccuracy]:
    """Errors of a file, by quantity; one line without errors if nothing could be compared."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for one in priced:
        for compared in one.compared:
            groups.setdefault((compared.quantity, one.engine), []).append(compared)
    if not groups:
        return [FileAccuracy(path, "", len(priced), 0, 0.0, 0.0, 0.0, 0.0, "")]
    return [_summed(path, len(priced), quantity, engine, group) for (quantity, engine), group in groups.items()]


def _summed(path: str, rows: int, quantity: str, engine: str, group: Sequence[Compared]) -> FileAccuracy:
    errors = np.abs([one.error for one in group])
    return FileAccuracy(
        file=path,
        quantity=quantity,
        rows=rows,
        priced=len(group),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        worst_error=float(errors.max()),
        covered=float(np.mean([one.covered for one in group])),
        engine=engine,
    )
