"""Workloads: a uniform batch, or a trace of requests with mixed lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError, Problem, bad
from ..base.files import read_text
from ..base.json_text import load_json_object
from ..base.limits import MAX_DATA_BYTES, MAX_SEQUENCES, MAX_TOKENS
from ..base.records import STRICT


@dataclass(frozen=True)
class Workload:
    """A batch of equal sequences.

    Attributes:
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache when decoding starts, per sequence. [tokens]
        output_len: Output tokens per sequence. [tokens]
    """

    batch_size: int
    context_len: int
    output_len: int = 128

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        problems = [
            Problem("workload", key, f"a positive whole number of at most {most:,}", repr(value))
            for key, value in vars(self).items()
            for most in (MAX_SEQUENCES if key == "batch_size" else MAX_TOKENS,)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most
        ]
        if problems:
            raise InputError(*problems)

    @property
    def mean_context_len(self) -> float:
        """Context halfway through the output. Step costs are linear in context, so this gives the mean cost. [tokens]"""
        return self.context_len + self.output_len / 2

    @property
    def max_context_len(self) -> int:
        """Context after the last output token, which must fit in memory. [tokens]"""
        return self.context_len + self.output_len


@dataclass(frozen=True)
class RequestTrace:
    """Requests of mixed lengths, served by continuous batching.

    Attributes:
        prompt_lens: Prompt length of each request. [tokens]
        output_lens: Output length of each request. [tokens]
    """

    prompt_lens: tuple[int, ...]
    output_lens: tuple[int, ...]

    @property
    def context_lens(self) -> NDArray[np.float64]:
        """Context of each request, halfway through its output. [tokens]"""
        return np.array(self.prompt_lens) + np.array(self.output_lens) / 2

    @property
    def weights(self) -> NDArray[np.float64]:
        """Share of each request in the running batch: proportional to its output length, thus to its time in the batch. [0-1]"""
        outputs = np.array(self.output_lens, np.float64)
        weights: NDArray[np.float64] = outputs / outputs.sum()
        return weights

    @property
    def typical(self) -> tuple[int, int]:
        """Mean prompt length and mean output length. [tokens]"""
        return max(1, round(float(np.mean(self.prompt_lens)))), max(1, round(float(np.mean(self.output_lens))))


LENGTHS = ("prompt_len", "output_len")


def load_trace(path: str) -> RequestTrace:
    """Read a request trace: CSV or JSON Lines with `prompt_len` and `output_len`; other columns are ignored.

    Raises:
        InputError: The file cannot be read or is empty, or a length is not a positive whole number.
    """
    rows = list(_rows(read_text(path, "trace, CSV or JSON Lines", encoding="utf-8-sig", max_bytes=MAX_DATA_BYTES), path))
    if not rows:
        raise bad(path, "", "one request per row, with prompt_len and output_len", "none")
    problems: list[Problem] = []
    columns = {name: [_length(row, name, f"{path}:{number}", problems) for number, row in rows] for name in LENGTHS}
    if problems:
        raise InputError(*problems[:20])
    return RequestTrace(tuple(columns["prompt_len"]), tuple(columns["output_len"]))


def _rows(text: str, path: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield line number and fields of every request."""
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): a JSON string may contain other line separators
            if line.strip():
                yield number, load_json_object(line, f"{path}:{number}", "a request", finite=False)
        return
    from ..base.csv_text import read_csv  # only needed for traces

    _, found = read_csv(path, "requests", LENGTHS)
    yield from found


def _length(row: Mapping[str, object], name: str, where: str, problems: list[Problem]) -> int:
    """Parse one length; a problem is appended to `problems`."""
    found = row.get(name)
    try:
        value = float(found) if isinstance(found, int | float | str) and not isinstance(found, bool) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not 1 <= value <= MAX_TOKENS or value != int(value):
        problems.append(Problem(where, name, "a positive whole number", repr(found)))
        return 1
    return int(value)
