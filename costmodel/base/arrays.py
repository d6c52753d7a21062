"""Numbers and arrays of numbers that callers give."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import bad

MAX_GRID_POINTS = 10_000_000  # about a gigabyte of results


def as_floats(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """A number or an array of numbers as float64.

    Args:
        name: The parameter, for error messages.
        value: The numbers.

    Raises:
        InputError: Something else is in it, or a number beyond float64.
    """
    try:
        found = np.asarray(value)
        if found.dtype.kind in "iuf" or not found.size:
            return found.astype(np.float64)
        if found.dtype.kind == "O" and all(isinstance(one, int) and not isinstance(one, bool) for one in found.flat):
            return found.astype(np.float64)  # whole numbers beyond 64 bits
    except (ValueError, TypeError, OverflowError):  # rows of different lengths, numbers beyond float64
        pass
    raise bad(name, "", "a number or an array of numbers", repr(value))


def check_grid(values: Mapping[str, ArrayLike | None]) -> None:
    """Check that the arrays of several parameters broadcast to one grid of reasonable size.

    Raises:
        InputError: They do not.
    """
    shapes = {name: np.shape(value) for name, value in values.items() if value is not None and np.ndim(value)}
    shown = ", ".join(f"`{name}` {shape}" for name, shape in shapes.items())
    try:
        points = math.prod(np.broadcast_shapes(*shapes.values()))
    except ValueError:
        raise bad(next(iter(shapes)), "", "arrays whose shapes broadcast", shown) from None
    if points > MAX_GRID_POINTS:
        raise bad(next(iter(shapes)), "", f"at most {MAX_GRID_POINTS:,} points", f"{points:,} from {shown}")
