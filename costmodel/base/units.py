"""Parsing and formatting of quantities with prefixes. All other code uses SI base units.

>>> parse_tokens("32k"), parse_tokens("2Ki"), parse_seconds("50ms")
(32000, 2048, 0.05)
"""

from __future__ import annotations

import math
import re

from .errors import bad

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
MAX_RANGE = 256  # values of a range that takes every number
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*)\s*")


def parse_tokens(text: str, where: str = "value") -> int:
    """Parse a positive whole number of tokens or sequences: `512`, `32k` (32,000), `2Ki` (2,048). [tokens]

    Args:
        text: The number, with an optional prefix.
        where: The parameter, for error messages.

    Raises:
        InputError: The text is not a positive whole number.
    """
    expected = "a positive whole number such as 512, 32k (= 32000) or 2Ki (= 2048)"
    value = _scaled(text, _PREFIXES, where, expected)
    if not (1 <= value < 2**53) or abs(value - round(value)) > 1e-9 * value:
        raise bad(where, "", expected, repr(text))
    return round(value)


def parse_token_range(text: str, where: str = "value", *, every: bool = False) -> tuple[int, ...]:
    """Parse one number, or a range `8-128`: its ends and the doublings of the smaller one between them. [tokens]

    Args:
        text: The number or the range.
        where: The parameter, for error messages.
        every: Take every whole number of the range, not the doublings alone.

    Raises:
        InputError: The text is neither, or the range is empty or reversed.

    >>> parse_token_range("2k-12k"), parse_token_range("3-5", every=True)
    ((2000, 4000, 8000, 12000), (3, 4, 5))
    """
    first, dash, second = text.partition("-")
    if not dash or not first.strip():
        return (parse_tokens(text, where),)
    if not second.strip():
        raise bad(where, "", "a range with both ends, such as 8-128", repr(text))
    least, most = parse_tokens(first, where), parse_tokens(second, where)
    if least > most:
        raise bad(where, "", f"the smaller end of a range first: {second.strip()}-{first.strip()}?", repr(text))
    if every and most - least < MAX_RANGE:
        return tuple(range(least, most + 1))
    return (*(least << n for n in range((most // least).bit_length()) if least << n < most), most)


def parse_seconds(text: str, where: str = "value") -> float:
    """Parse a positive time such as `50ms`, `1.5 s` or `200us`. [s]

    Args:
        text: The time.
        where: The parameter, for error messages.

    Raises:
        InputError: The text is not a positive time, or has no unit: it could be milliseconds or seconds.
    """
    expected = "a positive time such as 50ms, 1.5s or 200us"
    if (bare := _QUANTITY.fullmatch(text)) is not None and not bare[2] and float(bare[1]) > 0:
        raise bad(where, "", f"a time with its unit: {bare[1]}ms or {bare[1]}s?", repr(text))
    value = _scaled(text, _TIMES, where, expected)
    if value <= 0:
        raise bad(where, "", expected, repr(text))
    return value


def _scaled(text: str, factors: dict[str, float], where: str, expected: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in factors:
        raise bad(where, "", expected, repr(text))
    return float(match[1]) * factors[match[2]]


def format_seconds(value: float) -> str:
    """Format a time with three significant digits: `12.3 ms`."""
    value = _rounded(value)
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{_three_digits(value / 1e-9)} ns" if value else "0 s"


def format_bytes(value: float) -> str:
    """Format a size with three significant digits and decimal prefixes: `80.0 GB`."""
    return _si(value, "B")


def format_rate(value: float, unit: str) -> str:
    """Format a rate with three significant digits: `format_rate(3.35e12, "B/s")` is `3.35 TB/s`."""
    return _si(value, unit)


def format_tokens(value: float) -> str:
    """Format a token count the way people write it: `512`, `8192`, `32k`."""
    whole = int(value)
    return f"{whole // 1000}k" if whole >= 1000 and whole % 1000 == 0 else str(whole)


def _si(value: float, unit: str) -> str:
    value = _rounded(value)
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def _rounded(value: float) -> float:
    """Round to three significant digits before choosing the prefix, so that 999.6 ms becomes 1.00 s."""
    return float(f"{value:.3g}")


def _three_digits(value: float) -> str:
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"
