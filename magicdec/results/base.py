"""The views that every result has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..render.tables import html_table

if TYPE_CHECKING:
    import pandas as pd

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]


class Result(ABC):
    """A result of the API.

    `str(result)` is the text that the command line prints, `document()` what it prints with `--json`.
    Every view is a copy: changing one changes neither the result nor the other views.
    """

    @property
    @abstractmethod
    def headline(self) -> str:
        """The result in one line."""

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The result as a table: a mapping a row, the same keys in each. Units are in the keys."""

    @abstractmethod
    def to_dict(self) -> dict[str, object]:
        """The result as a JSON document in SI units."""

    def document(self) -> object:
        """What the command line prints with `--json`; a list where a command lists things."""
        return self.to_dict()

    @abstractmethod
    def __str__(self) -> str: ...

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline}>"

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            from ..inputs.extras import missing_extra

            raise ImportError(missing_extra(error) or str(error), name=error.name) from error

        return pd.DataFrame([dict(row) for row in self.rows()])

    def _repr_html_(self) -> str:
        from html import escape  # slow to import

        rows = self.rows()
        table = html_table(rows[0], (row.values() for row in rows)) if rows else ""
        return f"<p>{escape(self.headline)}</p>{table}"


def known(value: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if value != value else value
