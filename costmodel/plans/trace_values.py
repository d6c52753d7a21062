"""Single values of a trace: lengths and times, from texts or numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..base.limits import MAX_TOKENS

# Plain numbers as large as these count from 1970, in units of so many seconds.
EPOCH_UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
_ZONE = re.compile(r"(?:Z|[+-]\d\d:?\d\d| UTC)$")


def length(cell: object, least: int) -> int | None:
    """A number of tokens; None if the cell is none.

    Args:
        cell: From a file.
        least: The smallest number allowed.
    """
    try:
        value = float(cell) if isinstance(cell, int | float | str) and not isinstance(cell, bool) else float("nan")
    except (ValueError, OverflowError):
        return None
    return int(value) if least <= value <= MAX_TOKENS and value == int(value) else None


def times_s(cells: Sequence[object], unit_s: float) -> NDArray[np.float64] | None:
    """Times from the first one on, from numbers or dates; None if they are neither. [s]

    Args:
        cells: From a file.
        unit_s: Unit of plain numbers; numbers that count from 1970 show their unit by their size. [s]
    """
    try:
        values = np.array([float(cell) for cell in cells])  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return _dates_s(cells)
    if not values.size or not np.all(np.isfinite(values)):
        return None
    median = float(np.median(values))
    unit_s = next((unit for least, unit in EPOCH_UNITS if median > least), unit_s)
    return np.asarray((values - values.min()) * unit_s, np.float64)


def _dates_s(cells: Sequence[object]) -> NDArray[np.float64] | None:
    """ISO dates; the zone is dropped, as one file has one."""
    try:
        times = np.array([_ZONE.sub("", cell.strip()) for cell in cells], "datetime64[ns]")  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OverflowError):
        return None
    if np.any(np.isnat(times)):
        return None
    return np.asarray((times - times.min()) / np.timedelta64(1, "s"), np.float64)
