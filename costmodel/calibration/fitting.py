"""Robust least-squares fits of named parameters within physical bounds, and error statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar, get_type_hints

import numpy as np

from ..base.records import Limits
from ..passes.forward import Array

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LawT = TypeVar("LawT", bound="DataclassInstance")


@cache
def bounds_of(law: type, name: str) -> tuple[float, float]:
    """Return the physical range of a law's parameter, from its type annotation."""
    (limits,) = (item for item in get_type_hints(law, include_extras=True)[name].__metadata__ if isinstance(item, Limits))
    low, high = limits.ge, limits.le
    assert low is not None
    assert high is not None
    return low, high


def with_parameters(law: LawT, values: Mapping[str, float]) -> LawT:
    """Return a law with some of its parameters changed."""
    return replace(law, **values)


def fit_values(
    start: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    log_ratios: Callable[[dict[str, float]], Array],
    *,
    tolerance: float = 0.08,
    spread: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Find the parameters that minimise the errors of predictions, with a loss that is robust against outliers.

    Args:
        start: Start values, by parameter name.
        bounds: Lowest and highest value, by parameter name.
        log_ratios: Maps parameter values to log(predicted / measured) of each point.
        tolerance: Error above which the loss grows linearly instead of quadratically.
        spread: Prior width of each parameter around its start value, in units of log. A shift by `spread` costs as much as one
            point with an error of `tolerance`, so that undetermined parameters keep their start values. None for no prior.

    Returns:
        The fitted values, rounded to three significant digits.
    """
    from scipy.optimize import least_squares  # slow to import, and only needed for fits

    names = list(start)
    low, high = (np.array([bounds[name][end] for name in names]) for end in (0, 1))
    wanted = np.array([start[name] for name in names])
    scale = np.where(wanted > 0, wanted, (high - low) / 10)
    margin = 1e-3 * np.minimum(scale, high - low)
    first = np.clip(wanted, low + margin, high - margin)

    def residuals(values: Array) -> Array:
        points = log_ratios(dict(zip(names, map(float, values), strict=True)))
        priors = () if spread is None else [tolerance / spread[name] for name in names] * np.log(np.maximum(values, 1e-12) / first)
        return np.append(points, priors)

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
    """Round to three significant digits; more would suggest precision that fits do not have."""
    return float(f"{value:.3g}")


def errors_of(log_ratios: Array) -> tuple[float, float, float]:
    """Return median, mean and worst absolute relative error, given log(predicted / measured). [0-1]"""
    errors = np.abs(np.expm1(log_ratios))
    return rounded(float(np.median(errors))), rounded(float(errors.mean())), rounded(float(errors.max()))
