"""The one exception for bad user input. It names the file or parameter, the key, the expected and the found value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .names import one_line, shortened

MAX_MESSAGE_LENGTH = 1900  # characters of all problems together: what a person reads
_LONGEST = {"where": 500, "key": 160, "expected": 700, "found": 240}


@dataclass(frozen=True)
class Problem:
    """One problem with an input. Every part becomes one printable line of limited length.

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

    def __post_init__(self) -> None:
        for name, longest in _LONGEST.items():
            object.__setattr__(self, name, shortened(one_line(getattr(self, name)[: 4 * longest]), longest))

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: expected {self.expected}, found {self.found}"


class InputError(ValueError):
    """Bad input, with all problems found. The command line prints them and exits with status 2."""

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(within_message(str(problem) for problem in problems)))


def within_message(lines: Iterable[str]) -> list[str]:
    """As many lines as fit into one message; the last line says how many more there are."""
    every = list(lines)
    room, kept = MAX_MESSAGE_LENGTH, list[str]()
    for line in every:
        room -= len(line) + 1
        if room < 0 and kept:
            break
        kept.append(line)
    return [*kept, f"and {len(every) - len(kept)} more problems"] if len(kept) < len(every) else kept


@contextmanager
def called(where: str, name: str) -> Iterator[None]:
    """Problems with the input `where` name it as the user knows it, such as by its file."""
    try:
        yield
    except InputError as error:
        problems = (replace(problem, where=name) if problem.where == where else problem for problem in error.problems)
        raise InputError(*problems) from error


def bad(where: str | Path, key: str, expected: str, found: object) -> InputError:
    """Build an `InputError` with one problem.

    Args:
        where: The file or the parameter. The command line shows parameters as its options.
        key: Dotted path of the key inside the file; empty for the input as a whole.
        expected: Description of valid input; other parameters in backticks.
        found: The actual input.
    """
    return InputError(Problem(str(where), key, expected, str(found)))
