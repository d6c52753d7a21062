"""Checks of values that users give, each error naming the parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from magicdec.costmodel.base.errors import bad

Choice = TypeVar("Choice", bound=str)


def one_of(name: str, value: str | None, known: Sequence[Choice]) -> Choice | None:
    """The value of a parameter that takes one of a few; None if it was not given.

    Raises:
        InputError: It is another value.
    """
    if value is None:
        return None
    for choice in known:
        if value == choice:
            return choice
    raise bad(name, "", " or ".join(known), repr(value))


def names(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several, as a tuple.

    Raises:
        InputError: Something else than text is among them.
    """
    found = (value,) if isinstance(value, str) else tuple(value)
    for one in found:
        if not isinstance(one, str):
            raise bad(name, "", "a name or a list of names", repr(one))
    return found


def whole_numbers(name: str, value: int | Iterable[int] | None) -> tuple[int, ...]:
    """One positive whole number or several, as a tuple; empty if none was given.

    Raises:
        InputError: One of them is no positive whole number.
    """
    if value is None:
        return ()
    found = tuple(value) if isinstance(value, Iterable) else (value,)
    return tuple(whole_number(name, one) for one in found)


def whole_number(name: str, value: object) -> int:
    """A positive whole number; numpy's integers are welcome.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise bad(name, "", "a positive whole number", repr(value))
    return int(value.__index__())


def finite(name: str, value: float | None, what: str, least: float = 0.0) -> float | None:
    """A finite number of at least `least`; None if it was not given.

    Raises:
        InputError: It is another value; `what` says what it should be.
    """
    if value is not None and not (math.isfinite(value) and value >= least):
        raise bad(name, "", what, value)
    return value


def probabilities(name: str, value: Sequence[float] | None) -> tuple[float, ...] | None:
    """Probabilities, one for each draft position; None if they were not given.

    Raises:
        InputError: One of them is below 0 or above 1.
    """
    if value is None:
        return None
    rates = tuple(float(rate) for rate in value)
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise bad(name, "", "probabilities from 0 to 1", repr(list(rates)))
    return rates
