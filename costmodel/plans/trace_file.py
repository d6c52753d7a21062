"""Reading request traces: CSV, JSON Lines and JSON, as they are published and as benchmarks write them.

Files are read in blocks of rows, so that millions of requests take seconds and little memory. Of a file beyond `SAMPLE_BYTES`,
parts that are spread evenly over it are read.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from ..base.errors import InputError, Problem, bad
from .trace import Array, RequestTrace
from .trace_columns import Columns, recognise
from .trace_json import json_rows
from .trace_values import length, times_s

BLOCK_ROWS = 100_000
SAMPLE_BYTES = 256 * 2**20
SAMPLE_PARTS = 256
MAX_PROBLEMS = 20
PACKED = {  # first bytes of files that are no text
    b"\x1f\x8b": "a file packed with gzip: unpack it first (gzip -dk FILE)",
    b"\x28\xb5\x2f\xfd": "a file packed with zstd: unpack it first (zstd -dk FILE)",
    b"BZh": "a file packed with bzip2: unpack it first (bzip2 -dk FILE)",
    b"\xfd7zXZ": "a file packed with xz: unpack it first (xz -dk FILE)",
    b"PK\x03\x04": "a zip archive or spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "a Parquet file: save it as CSV or JSON lines first",
    b"\xff\xfe": "text in UTF-16: save it in UTF-8",
    b"\xfe\xff": "text in UTF-16: save it in UTF-8",
}
Cells = Sequence[object]
Row = tuple[int, Cells]  # line number; prompt length, output length, arrival


@dataclass
class _Read:
    """What was read so far."""

    prompts: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    arrivals: list[Sequence[object]] = field(default_factory=list)
    empty: int = 0


def load_trace(path: str, columns: Mapping[str, str] | None = None) -> RequestTrace:
    """Read a request trace.

    Its columns are recognised by their names: those of this package (`prompt_len`, `output_len`, `arrival_s`), of the Azure LLM
    inference traces, Mooncake, BurstGPT, and of benchmark results of vLLM and SGLang. Conversations in the manner of ShareGPT
    have texts instead of lengths; four characters are then taken for a token.

    Args:
        path: The file.
        columns: What the file calls `prompt_len`, `output_len` and `arrival_s` (or `arrival_ms`), where it is none of these.

    Raises:
        InputError: The file cannot be read or has no requests, a column is missing, or a length is not a whole number.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(65_536)
    except (OSError, ValueError) as error:
        raise bad(path, "", "a readable trace, CSV or JSON", getattr(error, "strerror", None) or error) from None
    if (packed := next((what for start, what in PACKED.items() if head.startswith(start)), None)) is not None:
        raise bad(path, "", "CSV or JSON as text", packed)
    notes: list[str] = []
    share = 1.0
    lines = _lines(path)
    if size > SAMPLE_BYTES:
        share = SAMPLE_BYTES / size
        lines = _sampled_lines(path, size)
        notes.append(f"{SAMPLE_BYTES / 2**20:.0f} of {size / 2**20:,.0f} MiB are read, in {SAMPLE_PARTS} parts spread evenly")
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    try:
        found, rows = json_rows(lines, path, columns or {}, notes) if is_json else _csv_rows(lines, path, columns or {})
        read = _Read()
        for block in iter(lambda: list(islice(rows, BLOCK_ROWS)), []):
            _add(read, block, found, path)
    except UnicodeDecodeError as error:
        raise bad(path, "", "a readable trace in UTF-8", f"byte {error.start} of a part is not") from None
    if not read.prompts or not sum(map(len, read.prompts)):
        raise bad(path, "", "one request per row, with prompt_len and output_len", "none" if not read.empty else "none with output")
    if read.empty:
        notes.append(f"{read.empty:,} requests without a prompt or without output are left out")
    arrival_s = None
    if found.arrival is not None:
        times = list(chain.from_iterable(read.arrivals))
        # Mooncake's columns with fractions: a trace of its kind that counts seconds, as that of Qwen-Bailian does.
        seconds = found.arrival_unit_s < 1 and any(isinstance(time, float) and time != int(time) for time in times[:1000])
        arrival_s = times_s(times, 1.0 if seconds and not found.own_unit else found.arrival_unit_s)
        notes += [] if arrival_s is not None else [f"the times in {found.arrival} are not understood, and not used"]
    return RequestTrace(np.concatenate(read.prompts), np.concatenate(read.outputs), arrival_s, share, tuple(notes))


def _add(read: _Read, block: Sequence[Row], columns: Columns, path: str) -> None:
    """Check and keep a block of rows."""
    prompts, outputs = (_numbers([cells[i] for _, cells in block]) for i in (0, 1))
    least = 1 if columns.own else 0
    if prompts is None or outputs is None or not (_whole(prompts, least) and _whole(outputs, least)):
        raise InputError(*_problems(block, columns, path, least))
    kept = (prompts >= 1) & (outputs >= 1)
    read.empty += int(len(block) - kept.sum())
    read.prompts.append(prompts[kept])
    read.outputs.append(outputs[kept])
    if columns.arrival is not None:
        read.arrivals.append([cells[2] for (_, cells), keep in zip(block, kept.tolist(), strict=True) if keep])


def _numbers(cells: Sequence[object]) -> Array | None:
    """The cells as numbers; None if one is none."""
    if any(isinstance(cell, bool) for cell in cells):
        return None
    try:
        return np.array([float(cell) for cell in cells])  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(values: Array, least: int) -> bool:
    from ..base.limits import MAX_TOKENS

    return bool(np.all((values >= least) & (values <= MAX_TOKENS) & (values == np.floor(values))))


def _problems(block: Sequence[Row], columns: Columns, path: str, least: int) -> list[Problem]:
    """What is wrong with the lengths of a block."""
    found = []
    for number, cells in block:
        for name, cell in zip((columns.prompt, columns.output), cells, strict=False):
            if length(cell, least) is None:
                expected = "a positive whole number" if least else "a whole number"
                found.append(Problem(f"{path}:{number}", name, expected, repr(cell)))
        if len(found) >= MAX_PROBLEMS:
            break
    return found[:MAX_PROBLEMS]


def _csv_rows(lines: Iterator[str], path: str, given: Mapping[str, str]) -> tuple[Columns, Iterator[Row]]:
    """Columns and rows of a CSV file, separated by commas, semicolons or tabs."""
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise bad(f"{path}:1", "", "CSV", error) from None
    if not header or not first.strip():
        raise bad(path, "", "a header and a row for each request", "nothing")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise bad(path, twice, "every column once", "two columns of this name")
    columns = recognise(header, given, path)
    wanted = [columns.prompt, columns.output, *([columns.arrival] if columns.arrival else [])]
    return columns, _cells(reader, [header.index(name) for name in wanted], len(header), path)


def _cells(reader: Iterator[list[str]], wanted: Sequence[int], width: int, path: str) -> Iterator[Row]:
    try:
        for row in reader:
            if len(row) == width:
                yield reader.line_num, [row[i] for i in wanted]  # type: ignore[attr-defined]
            elif row:
                expected = f"{width} cells, one for each column"
                raise bad(path, f"line {reader.line_num}", expected, f"{len(row)} in {row[0]},...")  # type: ignore[attr-defined]
    except csv.Error as error:
        raise bad(path, f"line {reader.line_num}", "CSV", error) from None  # type: ignore[attr-defined]


def _lines(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from file


def _sampled_lines(path: str, size: int) -> Iterator[str]:
    """The first line, and whole lines of parts that are spread evenly over the file."""
    part = SAMPLE_BYTES // SAMPLE_PARTS
    with open(path, "rb") as file:
        yield file.readline().decode("utf-8-sig")
        for i in range(SAMPLE_PARTS):
            start = max(file.tell() if i == 0 else 0, i * (size - part) // (SAMPLE_PARTS - 1))
            if i:
                file.seek(start)
                file.readline()
            text = file.read(part) + file.readline()
            yield from text.decode().splitlines(keepends=True)
