"""The one exception for bad user input. It names the file or parameter, the key, the expected and the found value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic
from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Problem:
    """One problem with an input.

    Attributes:
        where: The file or the parameter.
        key: Dotted path of the key inside the file; empty for the input as a whole.
        expected: Description of valid input.
        found: The actual input.
    """

    where: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: expected {self.expected}, found {self.found}"


class InputError(ValueError):
    """Bad input, with all problems found. The command line prints them and exits with status 2."""

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def bad(where: str | Path, key: str, expected: str, found: object) -> InputError:
    """Build an `InputError` with one problem.

    Args:
        where: The file or the parameter. The command line shows parameters as its options.
        key: Dotted path of the key inside the file; empty for the input as a whole.
        expected: Description of valid input; other parameters in backticks.
        found: The actual input.
    """
    return InputError(Problem(str(where), key, expected, str(found)))


def from_pydantic(error: pydantic.ValidationError, where: str | Path) -> InputError:
    """Convert all problems of a pydantic error to one `InputError` about the file `where`."""
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
