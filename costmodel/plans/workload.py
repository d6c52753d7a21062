"""What is asked of a server: how many sequences, how long, how many new tokens; alike, or as a trace of requests has them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydantic
from numpy.typing import NDArray

from ..base.errors import InputError, Problem, bad


@dataclass(frozen=True)
class Workload:
    """A homogeneous batch.

    Attributes:
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache when decoding starts, per sequence. [tokens]
        output_len: New tokens per sequence. [tokens]
    """

    batch_size: int
    context_len: int
    output_len: int = 128

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    def __post_init__(self) -> None:
        problems = [
            Problem("workload", key, "a positive whole number", repr(value))
            for key, value in vars(self).items()
            if not (isinstance(value, int) and value >= 1)
        ]
        if problems:
            raise InputError(*problems)

    @property
    def mean_context_len(self) -> float:
        """Context halfway through the output: what a step costs on average, costs being linear in context. [tokens]"""
        return self.context_len + self.output_len / 2

    @property
    def max_context_len(self) -> int:
        """Context after the last token: what memory must hold. [tokens]"""
        return self.context_len + self.output_len


@dataclass(frozen=True)
class RequestTrace:
    """Requests of mixed lengths, served in a batch that is kept full.

    Attributes:
        prompt_lens: Tokens of each prompt. [tokens]
        output_lens: New tokens of each request. [tokens]
    """

    prompt_lens: tuple[int, ...]
    output_lens: tuple[int, ...]

    @property
    def context_lens(self) -> NDArray[np.float64]:
        """Context of each request halfway through its output. [tokens]"""
        return np.array(self.prompt_lens) + np.array(self.output_lens) / 2

    @property
    def weights(self) -> NDArray[np.float64]:
        """How often each is met in the batch: in proportion to the time it stays, that is, to its output. [0-1]"""
        outputs = np.array(self.output_lens, np.float64)
        shares: NDArray[np.float64] = outputs / outputs.sum()
        return shares

    @property
    def typical(self) -> tuple[int, int]:
        """Prompt and output length of the mean request. [tokens]"""
        return max(1, round(float(np.mean(self.prompt_lens)))), max(1, round(float(np.mean(self.output_lens))))


LENGTHS = ("prompt_len", "output_len")


def load_trace(path: str) -> RequestTrace:
    """A trace from a CSV file or JSON lines with `prompt_len` and `output_len`; other columns are ignored.

    Raises:
        InputError: The file cannot be read, is empty, or a row lacks a positive whole number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, "", "a readable trace, CSV or JSON lines", getattr(error, "strerror", None) or error) from None
    rows = list(_rows(text, path))
    if not rows:
        raise bad(path, "", "a request a row, with prompt_len and output_len", "none")
    problems: list[Problem] = []
    columns = {
        name: [_length(row, name, f"{path}:{number}", problems) for number, row in rows] for name in ("prompt_len", "output_len")
    }
    if problems:
        raise InputError(*problems[:20])
    return RequestTrace(tuple(columns["prompt_len"]), tuple(columns["output_len"]))


def _rows(text: str, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and fields of every request."""
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold other separators
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise bad(f"{path}:{number}", "", "a JSON object", error) from None
                yield number, row if isinstance(row, dict) else {}
        return
    reader = csv.DictReader(io.StringIO(text))
    try:
        if missing := [name for name in LENGTHS if name not in (reader.fieldnames or ())]:
            raise bad(path, ", ".join(missing), "a column of this name", ", ".join(reader.fieldnames or ()) or "nothing")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise bad(f"{path}:{reader.line_num}", "", "CSV", error) from None


def _length(row: Mapping[str, Any], name: str, where: str, problems: list[Problem]) -> int:
    found = row.get(name)
    try:
        value = float("nan" if isinstance(found, bool) else found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not 1 <= value < 2**53 or value != int(value):
        problems.append(Problem(where, name, "a positive whole number", repr(found)))
        return 1
    return int(value)
