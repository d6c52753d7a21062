"""Requests in JSON: a row a line, a list of rows, conversations, or the result of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from ..base.errors import InputError, bad
from ..base.limits import MAX_DATA_BYTES
from .trace_columns import OUTPUT, PROMPT, Columns, recognise

CHARACTERS_PER_TOKEN = 4  # of English text, roughly
BENCHMARK = ("input_lens", "output_lens")
BENCHMARK_TIMES = "start_times"
CONVERSATIONS = ("conversations", "conversation", "items", "messages")
INSTRUCTIONS = ("system", "developer")
Row = tuple[int, list[object]]
Numbered = tuple[int, dict[str, object]]


def json_rows(lines: Iterator[str], path: str, given: Mapping[str, str], notes: list[str]) -> tuple[Columns, Iterator[Row]]:
    """Columns and rows of a JSON file.

    Args:
        lines: The file.
        path: The file, for error messages.
        given: Columns that the user names, as for `recognise`.
        notes: Receives what had to be assumed.

    Raises:
        InputError: The file is no JSON, or has no lengths.
    """
    objects = _objects(lines, path)
    first = next(objects, None)
    if first is None:
        raise bad(path, "", "one request per line, with prompt_len and output_len", "none")
    objects = chain([first], objects)
    if not given and all(name in first[1] for name in BENCHMARK):
        arrival = BENCHMARK_TIMES if isinstance(first[1].get(BENCHMARK_TIMES), list) else None
        return Columns(*BENCHMARK, arrival, 1.0, own=False), _benchmark(objects, arrival, path)
    if not given and "total_input_tokens" in first[1]:
        expected = "input_lens and output_lens (vLLM writes them with --save-detailed, SGLang with --output-details)"
        raise bad(path, "", expected, "the totals of a benchmark alone")
    if not given and (talk := next((key for key in CONVERSATIONS if isinstance(first[1].get(key), list)), None)):
        notes.append(f"lengths are {CHARACTERS_PER_TOKEN} characters a token, of the first message and its answer")
        return Columns(PROMPT, OUTPUT, None, 1.0, own=False), _conversations(objects, talk)
    columns = recognise(_flat(first[1]), given, path)
    return columns, _requests(objects, columns)


def _requests(objects: Iterable[Numbered], columns: Columns) -> Iterator[Row]:
    keys = [columns.prompt, columns.output, *([columns.arrival] if columns.arrival else [])]
    nested = any("." in key for key in keys)
    for number, row in objects:
        cells = _flat(row) if nested else row
        yield number, [cells.get(key) for key in keys]


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """A row with the fields of its mappings beside its own, as `usage.prompt_tokens`."""
    inner = {f"{key}.{name}": item for key, value in row.items() if isinstance(value, dict) for name, item in value.items()}
    return {**row, **inner}


def _benchmark(objects: Iterable[Numbered], arrival: str | None, path: str) -> Iterator[Row]:
    for number, result in objects:
        keys = (*BENCHMARK, *([arrival] if arrival else []))
        lists = [result.get(key) for key in keys]
        if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) != 1:  # type: ignore[arg-type]
            raise bad(f"{path}:{number}", ", ".join(keys), "lists of equal length", "other values")
        for cells in zip(*lists, strict=True):
            yield number, list(cells)


def _conversations(objects: Iterable[Numbered], key: str) -> Iterator[Row]:
    for number, row in objects:
        turns = row.get(key)
        said = list(turns) if isinstance(turns, list) else []
        first = [said.pop(0)] if said and _by(said[0]) in INSTRUCTIONS else []  # instructions are part of the prompt
        texts = ["".join(map(_said, [*first, *said[:1]])), *map(_said, said[1:2])]
        tokens: list[object] = [-(-len(text) // CHARACTERS_PER_TOKEN) for text in texts]
        yield number, tokens if len(tokens) == 2 else [0, 0]


def _said(turn: object) -> str:
    """What is said in a turn: `value` in ShareGPT, `content` elsewhere, which may have parts."""
    said = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if isinstance(said, list):
        return "".join(part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str))
    return said if isinstance(said, str) else ""


def _by(turn: object) -> object:
    """Who says it: `from` in ShareGPT, `role` elsewhere."""
    return turn.get("from", turn.get("role")) if isinstance(turn, dict) else None


def _objects(lines: Iterator[str], path: str) -> Iterator[Numbered]:
    """The objects of a file: one a line, or those of one JSON document over all lines."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    number, first = next(numbered, (0, ""))
    if not first:
        return
    row = _parsed(first)
    if not isinstance(row, dict):
        yield from _document(first + _rest((line for _, line in numbered), path), f"{path}:{number}", path)
        return
    yield number, row
    for number, line in numbered:
        try:
            yield number, _object(json.loads(line, parse_constant=_none), f"{path}:{number}")
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise bad(f"{path}:{number}", "", "a request as JSON", error) from None


def _parsed(line: str) -> object:
    """The value of a line; None if it is no JSON on its own."""
    try:
        return json.loads(line, parse_constant=_none)
    except (ValueError, RecursionError):
        return None


def _rest(lines: Iterable[str], path: str) -> str:
    parts, size = [], 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > MAX_DATA_BYTES:
            raise bad(path, "", f"one JSON document of at most {MAX_DATA_BYTES / 2**20:,.0f} MiB", "a larger one")
    return "".join(parts)


def _document(text: str, start: str, path: str) -> Iterator[Numbered]:
    """The objects of one JSON document that begins at `start`."""
    try:
        found = json.loads(text, parse_constant=_none)
    except (ValueError, RecursionError) as error:
        raise bad(start, "", "a request as JSON", error) from None
    for number, row in enumerate(found if isinstance(found, list) else [found], 1):
        yield number, _object(row, f"{path}, entry {number}")


def _object(row: object, where: str) -> dict[str, object]:
    if not isinstance(row, dict):
        raise bad(where, "", "a request as JSON object", type(row).__name__)
    return row


def _none(name: str) -> None:
    """NaN and Infinity are no lengths."""
