"""Numbers and arrays of numbers that callers give."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import bad


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
