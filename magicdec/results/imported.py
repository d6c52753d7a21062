"""Measurements that were read from the files of other tools."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict, dataclass, fields

from magicdec.costmodel.base.units import format_seconds

from ..importing.measured import Measured
from ..render.tables import text_table
from .base import Result, Row


@dataclass(frozen=True, repr=False, eq=False)
class Imported(Result):
    """Measurements of other tools.

    Attributes:
        measured: One for each setting that was measured.
        output: Where they were written; None for nowhere.
    """

    measured: tuple[Measured, ...]
    output: str | None = None

    @property
    def headline(self) -> str:
        tools = ", ".join(f"{count} of {tool}" for tool, count in Counter(one.tool for one in self.measured).items())
        return f"{len(self.measured)} measurements: {tools}"

    def rows(self) -> list[Row]:
        return [dict(one.cells()) for one in self.measured]

    def to_dict(self) -> dict[str, object]:
        return {"measurements": [{**asdict(one), "acceptance_by_position": [*one.acceptance_by_position]} for one in self.measured]}

    def csv(self) -> str:
        """A CSV file that `magicdec validate` and `magicdec predict --scenarios` read; columns that are empty are left out."""
        rows = [one.cells() for one in self.measured]
        names = [field.name for field in fields(Measured) if any(row[field.name] for row in rows)]
        file = io.StringIO()
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def __str__(self) -> str:
        heads = ["tool", "model", "engine", "draft", "batch", "context", "step", "TPOT", "tokens per round", "of"]
        table = text_table(heads, [_line(one) for one in self.measured])
        missing = [name for name in ("model", "gpu") if any(getattr(one, name) is None for one in self.measured)]
        notes = []
        if missing:
            notes.append(f"note: not in these files, and needed for predictions beside them: {', '.join(missing)} (name them)")
        if self.output is not None and self.output != "-":
            notes.append(f"written to {self.output}")
        return "\n".join([self.headline, "", table, *([""] if notes else []), *notes])


def _line(one: Measured) -> list[str]:
    length = f"{one.tokens_per_round:.2f}" if one.tokens_per_round else ""
    place = [one.tool, one.model or "?", one.engine or "?", _draft(one), _word(one.batch_size), _word(one.context_len)]
    return [*place, _time(one.step_s), _time(one.tpot_s), length, _word(one.samples)]


def _draft(one: Measured) -> str:
    return f"{one.draft or 'speculative'}, {one.gamma}" if one.gamma else one.draft or "speculative"


def _word(value: int | None) -> str:
    return "" if value is None else str(value)


def _time(value_s: float | None) -> str:
    return "" if value_s is None else format_seconds(value_s)
