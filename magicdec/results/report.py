"""The files of a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .base import Result, Row


@dataclass(frozen=True, repr=False, eq=False)
class ReportFiles(Result):
    """What a report consists of.

    Attributes:
        page: One self-contained HTML page.
        files: Every file written, the page first.
    """

    page: Path
    files: tuple[Path, ...]

    @property
    def headline(self) -> str:
        return f"{self.page} and {len(self.files) - 1} figures"

    def rows(self) -> list[Row]:
        return [{"file": str(file)} for file in self.files]

    def to_dict(self) -> dict[str, object]:
        return {"files": [str(file) for file in self.files]}

    def __str__(self) -> str:
        return "\n".join(str(file) for file in self.files)
