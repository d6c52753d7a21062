"""Least-squares fits of a few named parameters, each within its physical bounds, and how well they describe the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bounds_of(law: type, name: str) -> tuple[float, float]:
    """The physical range of a law's parameter, as its annotation states it."""
    found = [item for item in get_type_hints(law, include_extras=True)[name].__metadata__ if isinstance(item, Interval)]
    interval: Any = found[0]
    return float(interval.ge), float(interval.le)


def fit_values(
    start: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    log_ratios: Callable[[dict[str, float]], Array],
    *,
    tolerance: float = 0.08,
    spread: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The values that make the logarithms of predicted over measured small, robustly: a disturbed point bends little.

    Args:
        start: Where the search starts, by name.
        bounds: Lowest and highest value, by name.
        log_ratios: Of predicted over measured, given values by name.
        tolerance: Errors beyond count linearly, no longer squared.
        spread: How far, in e-folds, a value may lie from its start for as much as one point that is off by `tolerance`, by name:
            values that the points cannot tell stay where they started. None for no such pull.
    """
    from scipy.optimize import least_squares  # heavy to import, and planning fits nothing

    names = list(start)
    low, high = (np.array([bounds[name][end] for name in names]) for end in (0, 1))
    wanted = np.array([start[name] for name in names])
    scale = np.where(wanted > 0, wanted, (high - low) / 10)
    margin = 1e-3 * np.minimum(scale, high - low)
    first = np.clip(wanted, low + margin, high - margin)

    def residuals(values: Array) -> Array:
        points = log_ratios(dict(zip(names, map(float, values), strict=True)))
        pulls = () if spread is None else [tolerance / spread[name] for name in names] * np.log(np.maximum(values, 1e-12) / first)
        return np.append(points, pulls)

    found = least_squares(
        residuals,
        first,
        bounds=(low, high),
        x_scale=scale,
        loss="soft_l1",
        f_scale=tolerance,
        diff_step=np.full(len(names), 1e-4),
        max_nfev=120,
    )
    return {name: rounded(float(value)) for name, value in zip(names, found.x, strict=True)}


def rounded(value: float) -> float:
    """To three significant digits: more would only look exact."""
    return float(f"{value:.3g}")


def errors_of(log_ratios: Array) -> tuple[float, float, float]:
    """Median, mean and worst absolute relative error."""
    errors = np.abs(np.expm1(log_ratios))
    return rounded(float(np.median(errors))), rounded(float(errors.mean())), rounded(float(errors.max()))
