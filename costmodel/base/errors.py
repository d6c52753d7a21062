"""One kind of error for everything a user can get wrong: it names the file, the key, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic
from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    Attributes:
        where: The file or the command-line option.
        key: Path of the bad key inside it, dotted; empty for the input as a whole.
        expected: What would have been right.
        found: What was there instead.
    """

    where: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: expected {self.expected}, found {self.found}"


class InputError(ValueError):
    """Bad input, with every problem found in it. The command line prints it and exits with 2."""

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def bad(where: str | Path, key: str, expected: str, found: object) -> InputError:
    """An `InputError` of one problem."""
    return InputError(Problem(str(where), key, expected, str(found)))


def from_pydantic(error: pydantic.ValidationError, where: str | Path) -> InputError:
    """All problems of one file, from pydantic's report of them."""
    return InputError(*(problem for detail in error.errors() for problem in _problems(detail, str(where))))


def _problems(detail: ErrorDetails, where: str) -> Iterator[Problem]:
    key = ".".join(str(part) for part in detail["loc"])
    found, kind = detail["input"], detail["type"]
    inner = detail.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        for problem in inner.problems:
            yield Problem(where, ".".join(filter(None, (key, problem.key))), problem.expected, problem.found)
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        yield Problem(where, key, "no such key", repr(found))
    elif kind == "missing":
        yield Problem(where, key, "a value", "nothing")
    else:
        expected = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if kind in ("model_type", "dataclass_type"):
            expected = "a mapping"
        if isinstance(found, str) and kind in ("float_type", "int_type") and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", found):
            expected += " (YAML reads 4.8e12 and 3e-6 as text: write 4.8e+12 and 3.0e-6)"
        yield Problem(where, key, expected, f"{_short(found)} ({type(found).__name__})")


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 80 else text[:77] + "..."
