"""Tables as aligned text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: numbers to the right, words to the left."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [i > 0 and any(cell[:1].isdigit() for cell in column[1:]) for i, column in enumerate(columns)]

    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width() else " "

    def line(cells: Sequence[str]) -> str:
        sides = zip(cells, widths, numeric, strict=True)
        return gap.join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in sides).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def width() -> int:
    """Columns of the terminal, between 80 and 120; 80 for a file or a pipe."""
    import shutil

    return min(max(shutil.get_terminal_size((80, 24)).columns, 80), 120)


def wrapped(text: str, indent: str = "") -> str:
    """The text in lines that fit the terminal, all but the first indented; long words stay whole, and numbers with their units."""
    import re
    import textwrap

    kept = re.sub(r"(?<=\d) (?=\w{1,2}\b)", "\N{NO-BREAK SPACE}", text)
    filled = textwrap.fill(kept, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def html_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A plain HTML table; floats to four significant digits, None as a dash, everything escaped."""
    from html import escape  # slow to import

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
