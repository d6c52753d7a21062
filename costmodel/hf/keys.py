"""Typed access to the keys of a `config.json`, by any of their names; problems are collected and reported together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..base.errors import InputError, Problem

# Largest sizes that are believed, by key; far above every real model, far below what would overflow.
LIMITS = {
    "vocab_size": 2**26,
    "max_position_embeddings": 2**40,
    "num_hidden_layers": 4096,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
}
USUAL_LIMIT = 2**24


class Keys:
    """The keys of a config.

    Attributes:
        raw: The mapping.
        where: The file, for error messages.
        problems: Problems found so far.
    """

    def __init__(self, raw: Mapping[str, object], where: str, problems: list[Problem] | None = None, prefix: str = ""):
        self.raw, self.where, self._prefix = raw, where, prefix
        self.problems: list[Problem] = [] if problems is None else problems

    def wrong(self, key: str, expected: str, found: object = ...) -> None:
        """Note a problem with a key."""
        value = self.raw.get(key) if found is ... else found
        shown = "nothing" if value is None else f"{_short(value)} ({type(value).__name__})"
        problem = Problem(self.where, f"{self._prefix}{key}", expected, shown)
        if problem not in self.problems:
            self.problems.append(problem)

    def check(self) -> None:
        """Raise what was found so far.

        Raises:
            InputError: There are problems.
        """
        if self.problems:
            raise InputError(*self.problems)

    def first(self, *names: str) -> str | None:
        """Return the first of the names that has a value."""
        return next((name for name in names if self.raw.get(name) is not None), None)

    def whole(self, *names: str, ge: int = 1) -> int:
        """Return a whole number that must be there, by any of its names."""
        found = self.whole_or(None, *names, ge=ge)
        if found is None:
            if self.first(*names) is None:
                self.wrong(names[0], "a value")
            return max(ge, 1)
        return found

    def whole_or(self, default: int | None, *names: str, ge: int = 1) -> int | None:
        """Return a whole number by any of its names, or a default if none is given; None also if it is wrong."""
        name = self.first(*names)
        if name is None:
            return default
        value, limit = self.raw[name], LIMITS.get(name, LIMITS.get(names[0], USUAL_LIMIT))
        if isinstance(value, int) and not isinstance(value, bool) and ge <= value <= limit:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            self.wrong(name, "a valid integer")
        else:
            self.wrong(name, f"{ge} to {limit:,}" if value > limit else f"at least {ge}")
        return None

    def count(self, *names: str) -> int:
        """Return a whole number that may be 0, which it is if it is not given."""
        return self.whole_or(0, *names, ge=0) or 0

    def number(self, default: float, *names: str, positive: bool = True) -> float:
        """Return a finite number by any of its names."""
        name = self.first(*names)
        if name is None:
            return default
        value = self.raw[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(name, "a valid number")
        elif abs(value) > 1e300 or not math.isfinite(value) or (positive and value <= 0):
            self.wrong(name, "greater than 0 and finite" if positive else "a finite number")
        else:
            return float(value)
        return default

    def flag(self, default: bool, *names: str) -> bool:
        """Return a truth value by any of its names."""
        name = self.first(*names)
        if name is None:
            return default
        value = self.raw[name]
        if not isinstance(value, bool):
            self.wrong(name, "a valid boolean")
            return default
        return value

    def word(self, *names: str) -> str | None:
        """Return a text by any of its names; None if it is not given."""
        name = self.first(*names)
        if name is None:
            return None
        value = self.raw[name]
        if not isinstance(value, str):
            self.wrong(name, "a text")
            return None
        return value

    def items(self, name: str, length: int | None = None, *, more: int = 0) -> list[object] | None:
        """Return a list; None if it is not given or of the wrong length.

        Args:
            name: The key.
            length: Its length; None for any.
            more: Entries that there may be beside these, for prediction modules; they are cut off.
        """
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.wrong(name, "a list")
            return None
        if length is not None and len(value) not in (length, length + more):
            self.wrong(name, f"one entry for each of the {length} layers", f"{len(value)} entries")
            return None
        return value[:length]

    def words(self, name: str, length: int | None = None, *, more: int = 0) -> list[str] | None:
        """Return a list of texts, as `items` does."""
        value = self.items(name, length, more=more)
        if value is None:
            return None
        if not all(isinstance(item, str) for item in value):
            self.wrong(name, "a list of texts")
            return None
        return [str(item) for item in value]

    def wholes(self, name: str, length: int | None = None, *, more: int = 0, below: int = USUAL_LIMIT) -> list[int] | None:
        """Return a list of whole numbers from 0, as `items` does."""
        value = self.items(name, length, more=more)
        if value is None:
            return None
        found = [item for item in value if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < below]
        if len(found) < len(value):
            self.wrong(name, f"whole numbers from 0 to {below - 1:,}")
            return None
        return found

    def part(self, *names: str) -> Keys | None:
        """Return the keys of a nested mapping; None if it is not given."""
        name = self.first(*names)
        if name is None:
            return None
        value = self.raw[name]
        if not isinstance(value, Mapping):
            self.wrong(name, "a mapping")
            return None
        return Keys(value, self.where, self.problems, f"{self._prefix}{name}.")

    def each(self, *names: str, layers: int, ge: int = 1) -> list[int]:
        """Return a number for each layer, given as one number or as a list."""
        name = self.first(*names)
        if name is not None and isinstance(self.raw[name], list):
            found = self.wholes(name, layers)
            if found is not None and any(value < ge for value in found):
                self.wrong(name, f"at least {ge} for each layer")
            return found or [max(ge, 1)] * layers
        return [self.whole(*names, ge=ge)] * layers


def one_of(keys: Keys, name: str, known: Sequence[str], default: str) -> str:
    """Return one of the known words."""
    value = keys.word(name)
    if value is not None and value not in known:
        keys.wrong(name, " or ".join(repr(word) for word in known))
        return default
    return value or default


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
