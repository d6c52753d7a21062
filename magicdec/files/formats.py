"""Results as JSON, CSV, JSON lines or a Markdown table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

FORMATS = ("json", "csv", "jsonl", "md")


class HasRows(Protocol):
    """What has a document and rows, as every result has."""

    def document(self) -> object:
        """The JSON document."""

    def rows(self) -> Sequence[Mapping[str, object]]:
        """The rows of its tables."""


def format_of(path: str) -> str:
    """The format that a file name ends in; JSON if it names none."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS else "json"


def rendered(result: HasRows, form: str) -> str:
    """A result in one of `FORMATS`, with a line break at its end."""
    if form == "json":
        return json.dumps(result.document(), indent=2, allow_nan=False) + "\n"
    rows = result.rows()
    if form == "jsonl":
        return "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [["" if row.get(name) is None else str(row.get(name)) for name in names] for row in rows]
    if form == "md":
        lines = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in line] for line in cells)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *cells])
    return text.getvalue()
