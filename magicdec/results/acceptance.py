"""A measured acceptance curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from magicdec.costmodel.base.json_types import JsonObject
from magicdec.costmodel.speculation.acceptance import render_curves

from ..files.writing import write_text
from ..render.tables import text_table
from .base import Result, Row


@dataclass(frozen=True)
class CurvePoint:
    """Acceptance with one budget at one context.

    Attributes:
        context_len: Tokens of each prompt. [tokens]
        acceptance_rate: Accepted share of the draft tokens whose predecessors were accepted. [0-1]
        standard_error: Of that rate. [0-1]
        kv_budget: KV entries the draft read; None for all. [tokens]
    """

    context_len: int
    acceptance_rate: float
    standard_error: float
    kv_budget: int | None = None


@dataclass(frozen=True, repr=False, eq=False)
class AcceptanceResult(Result):
    """How often a model accepts its own sparse or compressed drafts.

    Attributes:
        target: The model.
        task: Name of the text.
        kv_policy, kv_dtype: What the draft read.
        source: How it was measured.
        points: By context and budget.
    """

    target: str
    task: str
    kv_policy: str
    kv_dtype: str | None
    source: str
    points: tuple[CurvePoint, ...]

    def save(self, path: str | Path) -> None:
        """Write a curves file; as `acceptance.yaml` beside a checkpoint, planning uses it.

        Raises:
            InputError: It cannot be written.
        """
        write_text(str(path), render_curves([self._curve()]))

    @property
    def headline(self) -> str:
        return f"{self.target} on {self.task}, {self.kv_policy}: {len(self.points)} points"

    def rows(self) -> list[Row]:
        return [
            {
                "context_len": point.context_len,
                "kv_budget": point.kv_budget,
                "acceptance_rate": point.acceptance_rate,
                "standard_error": point.standard_error,
            }
            for point in self.points
        ]

    def to_dict(self) -> dict[str, object]:
        """The curve as a curves file has it."""
        return dict(self._curve())

    def _curve(self) -> JsonObject:
        points = [{key: value for key, value in row.items() if value is not None} for row in self.rows()]
        dtype: JsonObject = {"kv_dtype": self.kv_dtype} if self.kv_dtype else {}
        return {
            "target": self.target,
            "task": self.task,
            "draft_kind": "self",
            "kv_policy": self.kv_policy,
            **dtype,
            "source": self.source,
            "points": points,
        }

    def __str__(self) -> str:
        rows = [
            [
                str(point.context_len),
                "all" if point.kv_budget is None else str(point.kv_budget),
                f"{point.acceptance_rate:.3f}",
                f"{point.standard_error:.3f}",
            ]
            for point in self.points
        ]
        return text_table(["context", "KV budget", "acceptance rate", "standard error"], rows)
