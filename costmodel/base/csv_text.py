"""CSV files of users: a header, one row a line, as many cells as columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from .errors import bad
from .files import read_text
from .limits import MAX_DATA_BYTES
from .names import is_name

MAX_COLUMNS = 1000


def read_csv(
    path: str, what: str, required: Sequence[str] = (), *, loose: bool = False
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV file.

    Args:
        path: The file.
        what: What its rows are, for error messages, such as "scenarios".
        required: Columns it must have.
        loose: Take cells beyond the last column as a part of it: notes and sources with commas that nobody quoted.

    Returns:
        The names of the columns, and line number and cells of every row, with every column in each; blank lines are left out.

    Raises:
        InputError: The file cannot be read, lacks a column, names one twice, or a row has too few or too many cells, NUL
            characters or cells beyond 131,072 characters.
    """
    text = read_text(path, f"CSV file of {what}", encoding="utf-8-sig", max_bytes=MAX_DATA_BYTES)
    if "\0" in text:
        raise bad(path, f"line {text[: text.index(chr(0))].count(chr(10)) + 1}", "text", "a NUL character")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise bad(path, "", f"a header and a row for each of the {what}", "nothing")
        _check_header(header, path, what, required)
        rows = []
        for cells in reader:
            if not cells:
                continue
            if loose and len(cells) > len(header):
                cells = [*cells[: len(header) - 1], ",".join(cells[len(header) - 1 :])]
            if len(cells) != len(header):
                expected = f"{len(header)} cells, one for each column"
                raise bad(path, f"line {reader.line_num}", expected, f"{len(cells)} in {cells[0]},...")
            row = dict(zip(header, cells, strict=True))
            if wrong := next((name for name, cell in row.items() if not _is_plain(cell)), None):
                expected = "text without control characters and line separators"
                raise bad(path, f"line {reader.line_num}: {wrong}", expected, repr(row[wrong]))
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise bad(path, f"line {reader.line_num}", "CSV", error) from None
    if not rows:
        raise bad(path, "", f"a header and a row for each of the {what}", "no row")
    return header, rows


def _is_plain(cell: str) -> bool:
    return cell.isprintable() or cell.replace("\n", "").replace("\t", "").isprintable()


def _check_header(header: Sequence[str], path: str, what: str, required: Sequence[str]) -> None:
    if missing := [name for name in required if name not in header]:
        raise bad(path, ", ".join(missing), "a column of this name", ", ".join(header) or "nothing")
    if len(header) > MAX_COLUMNS:
        raise bad(path, "line 1", f"at most {MAX_COLUMNS} columns", str(len(header)))
    seen: set[str] = set()
    for number, name in enumerate(header, 1):
        if not is_name(name):
            raise bad(path, f"column {number}", f"a printable name for every column of {what}", repr(name))
        if name in seen:
            raise bad(path, name, "every column once", "two columns of this name")
        seen.add(name)
