"""Strict schema of acceptance curve files, for files of users."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from ..base.limits import MAX_TOKENS
from ..base.validation import Name, StrictModel
from ..plans.strategy import MAX_GAMMA, CompressedDtype, DraftKind, KvPolicy

Tokens = Annotated[int, pydantic.Field(ge=1, le=MAX_TOKENS)]


class PointFile(StrictModel):
    """One measured rate; without a budget the draft read the whole context."""

    kv_budget: Tokens | None = None
    context_len: Tokens
    acceptance_rate: float = pydantic.Field(ge=0.0, le=1.0)
    standard_error: pydantic.NonNegativeFloat | None = None


class CurveFile(StrictModel):
    """One curve; the keys are those of `AcceptanceCurve`."""

    target: Name
    task: Name
    draft_kind: DraftKind
    kv_policy: KvPolicy
    draft_model: Name | None = None
    kv_dtype: CompressedDtype | None = None
    weight_dtype: CompressedDtype | None = None
    source: str
    decay: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    uncertainty: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] | None = None
    longest: Annotated[int, pydantic.Field(ge=1, le=MAX_GAMMA)] | None = None
    points: list[PointFile] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _sparse_points_have_budgets(self) -> CurveFile:
        if self.kv_policy != "full" and any(point.kv_budget is None for point in self.points):
            raise ValueError(f"a kv_budget for every point of {self.kv_policy}")
        return self


class CurvesFile(StrictModel):
    """A file of acceptance curves."""

    schema_version: Literal[1]
    curves: list[CurveFile]
