"""The only place with prefixes: parse and print quantities. Everywhere else is SI base units.

>>> parse_tokens("32k"), parse_tokens("2Ki"), parse_seconds("50ms")
(32000, 2048, 0.05)
"""

from __future__ import annotations

import math
import re

from .errors import bad

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*)\s*")


def parse_tokens(text: str, where: str = "value") -> int:
    """A positive whole number of tokens or sequences: `512`, `32k` = 32,000, `2Ki` = 2,048. [tokens]"""
    expected = "a positive whole number such as 512, 32k (= 32000) or 2Ki (= 2048)"
    value = _scaled(text, _PREFIXES, where, expected)
    if not (1 <= value < 2**53) or abs(value - round(value)) > 1e-9 * value:
        raise bad(where, "", expected, repr(text))
    return round(value)


def parse_seconds(text: str, where: str = "value") -> float:
    """A positive time: `50ms`, `1.5 s`, `200us`; a bare number is seconds. [s]"""
    expected = "a positive time such as 50ms, 1.5s or 200us"
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
    """Three significant digits with the prefix that fits: `12.3 ms`."""
    value = _rounded(value)
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{_three_digits(value / 1e-9)} ns" if value else "0 s"


def format_bytes(value: float) -> str:
    """Three significant digits, decimal prefixes: `80.0 GB`."""
    return _si(value, "B")


def format_rate(value: float, unit: str) -> str:
    """Three significant digits of a rate: `format_rate(3.35e12, "B/s")` is `3.35 TB/s`."""
    return _si(value, unit)


def format_tokens(value: float) -> str:
    """As people write lengths: `512`, `8192`, `32k`."""
    whole = int(value)
    return f"{whole // 1000}k" if whole >= 1000 and whole % 1000 == 0 else str(whole)


def _si(value: float, unit: str) -> str:
    value = _rounded(value)
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def _rounded(value: float) -> float:
    """To three significant digits, before the prefix is chosen: 999.6 ms is 1.00 s."""
    return float(f"{value:.3g}")


def _three_digits(value: float) -> str:
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"
