"""The one exception for bad user input. It names the file or parameter, the key, the expected and the found value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
