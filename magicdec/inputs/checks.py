"""Checks of values that users give, each error naming the parameter."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from magicdec.costmodel.base.arrays import as_floats
from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.limits import MAX_GPUS, MAX_SEQUENCES, MAX_TOKENS

Choice = TypeVar("Choice", bound=str)
MAX_PATH_LENGTH = 4096  # of Linux
MAX_CHOICES = 256  # of one parameter; a search takes time for each


def one_of(name: str, value: str | None, known: Sequence[Choice]) -> Choice | None:
    """The value of a parameter that takes one of a few; None if it was not given.

    Raises:
        InputError: It is another value.
    """
    if value is None:
        return None
    for choice in known:
        if isinstance(value, str) and value == choice:
            return choice
    meant = nearest(value, known)
    raise bad(name, "", " or ".join(known) + (f" (did you mean {meant}?)" if meant else ""), repr(value))


def nearest(value: object, known: Sequence[str]) -> str | None:
    """The one of a few words that was probably meant, misspelt; None if none is near."""
    import difflib

    return next(iter(difflib.get_close_matches(str(value).lower()[:80], known, n=1, cutoff=0.7)), None)


def text(name: str, value: object) -> str:
    """A name or a path, as text.

    Raises:
        InputError: It is neither.
    """
    if not isinstance(value, str | Path) or not 0 < len(str(value)) <= MAX_PATH_LENGTH or not str(value).isprintable():
        raise bad(name, "", f"a name or a path of at most {MAX_PATH_LENGTH} printable characters", repr(value))
    return str(value)


def flag(name: str, value: object) -> bool:
    """Yes or no.

    Raises:
        InputError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise bad(name, "", "True or False", repr(value))
    return value


def optional_text(name: str, value: object) -> str | None:
    """A name or a path, as text; None if it was not given.

    Raises:
        InputError: It is something else.
    """
    return None if value is None else text(name, value)


def names(name: str, value: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """One name or path or several, as a tuple of texts.

    Raises:
        InputError: Something else is among them.
    """
    found = (value,) if isinstance(value, str | Path) else _several(value)
    return tuple(text(name, one) for one in found)


def _several(value: object) -> tuple[Any, ...]:
    """The items of a list or an array; a single value, an array without axes among them, as the only item."""
    return tuple(value) if isinstance(value, Iterable) and getattr(value, "shape", None) != () else (value,)


def some_names(name: str, value: str | Path | Iterable[str | Path]) -> tuple[str, ...]:
    """`names`, at least one.

    Raises:
        InputError: None is given, or something else is among them.
    """
    found = names(name, value)
    if not found:
        raise bad(name, "", "at least one name", "none")
    return found


def whole_numbers(name: str, value: int | Iterable[int] | None) -> tuple[int, ...]:
    """One positive whole number or several, as a tuple; empty if none was given.

    Raises:
        InputError: One of them is no positive whole number, or the list is empty.
    """
    if value is None:
        return ()
    found = _several(value)
    if not found:
        raise bad(name, "", "at least one positive whole number", "none")
    if len(found) > MAX_CHOICES:
        raise bad(name, "", f"at most {MAX_CHOICES} values to choose from", f"{len(found):,}")
    return tuple(dict.fromkeys(whole_number(name, one) for one in found))


def whole_number(name: str, value: object) -> int:
    """A positive whole number within the limits of its parameter; numpy's integers are welcome.

    Raises:
        InputError: It is none.
    """
    most = _most(name)
    try:
        found = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = 0
    if not 1 <= found <= most:
        raise bad(name, "", f"a positive whole number of at most {most:,}", repr(value))
    return found


def _most(name: str) -> int:
    """The largest value of a parameter that counts GPUs, sequences or tokens."""
    if name in ("num_gpus", "tensor_parallel", "draft_tensor_parallel"):
        return MAX_GPUS
    return MAX_SEQUENCES if name in ("batch_size", "batch_sizes") else MAX_TOKENS


def finite(name: str, value: float | None, what: str, least: float = 0.0) -> float | None:
    """A finite number of at least `least`; None if it was not given.

    Raises:
        InputError: It is another value; `what` says what it should be.
    """
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= sys.float_info.max:
        raise bad(name, "", what, repr(value))
    return float(value)


def probabilities(name: str, value: Sequence[float] | None) -> tuple[float, ...] | None:
    """Probabilities, one for each draft position; None if they were not given.

    Raises:
        InputError: One of them is below 0 or above 1.
    """
    if value is None:
        return None
    rates = as_floats(name, value)
    if not rates.size or rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise bad(name, "", "probabilities from 0 to 1", repr(value))
    return tuple(rates.tolist())


def quantities(name: str, value: ArrayLike, *, whole: bool = True) -> NDArray[np.float64]:
    """Counts of tokens or sequences: a number or an array of numbers of at least 1, within the limits of their parameter.

    Raises:
        InputError: Something else is in it, or a fraction where whole numbers are asked for.
    """
    found, most = as_floats(name, value), _most(name)
    wrong = ~((found >= 1) & (found <= most)) | (whole & (found != np.floor(found)))
    if wrong.any():
        expected = f"{'whole ' if whole else ''}numbers from 1 to {most:,}"
        raise bad(name, "", expected, f"{found[wrong].flat[0]:g}")
    return found
