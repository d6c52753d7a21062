"""How many draft tokens survive verification: acceptance rates, measured or assumed, and what they yield per round.

What a sparse draft loses depends on the share of the context it reads, so curves are kept over context_len / kv_budget:
a draft that reads everything is the target and is always accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import yaml
from numpy.typing import ArrayLike

from ..base.errors import bad, from_pydantic
from ..base.yaml_text import load_mapping
from ..passes.forward import Array
from ..plans.strategy import CompressedDtype, DraftKind, KvPolicy
from .drafts import Draft

# Rejection of the published PG-19 curve (data in acceptance_curves/) grows as this power of context_len / kv_budget.
REJECTION_EXPONENT = 0.09
# Rates of one draft differ by about so much between tasks (PG-19 and RULER in the paper), and between pairs of models.
MEASURED_UNCERTAINTY, ASSUMED_UNCERTAINTY = 0.02, 0.1


def mean_acceptance_length(gamma: ArrayLike, acceptance_rate: ArrayLike) -> Array:
    """Tokens emitted per verification, bonus token included, if acceptances are independent. [tokens]

    Args:
        gamma: Draft tokens per round. [tokens]
        acceptance_rate: Probability that a draft token is accepted, given those before it were. [0-1]

    Source:
        Leviathan et al. (arXiv 2211.17192), eq. 1.

    >>> float(mean_acceptance_length(4, 0.8).round(4))
    3.3616
    """
    g, a = np.broadcast_arrays(np.asarray(gamma, np.float64), np.asarray(acceptance_rate, np.float64))
    length, term = np.ones(g.shape), np.ones(g.shape)
    for position in range(1, int(g.max(initial=0)) + 1):  # the sum itself: exact near a rate of 1, and alike in any layout
        term = term * a
        length = length + np.where(position <= g, term, 0.0)
    return np.asarray(length)


def mean_acceptance_length_by_position(gamma: ArrayLike, rates: Sequence[float]) -> Array:
    """Tokens emitted per verification when position i is accepted at its own rate, given those before it were. [tokens]

    Positions beyond the last rate are accepted at it.

    >>> mean_acceptance_length_by_position([1, 2, 4], [0.9, 0.5]).tolist()
    [1.9, 2.35, 2.6875]
    """
    g = np.asarray(gamma, np.float64)
    most = max(int(g.max()), len(rates))
    every = np.array([*rates, *[rates[-1]] * (most - len(rates))])
    lengths = np.cumsum([1.0, *np.cumprod(every)])
    return np.asarray(lengths[g.astype(int)])


def implied_acceptance_rate(gamma: ArrayLike, mean_length: ArrayLike) -> Array:
    """The independent rate that yields `mean_length` tokens per round of `gamma`: the inverse of `mean_acceptance_length`. [0-1]

    0 where a single token is asked for, nan where more than gamma + 1 are.
    """
    g, wanted = np.broadcast_arrays(np.asarray(gamma, np.float64), np.asarray(mean_length, np.float64))
    low, high = np.zeros_like(g), np.ones_like(g)
    for _ in range(50):
        middle = (low + high) / 2
        less = mean_acceptance_length(g, middle) < wanted
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return np.asarray(np.where(wanted > g + 1, np.nan, np.where(wanted <= 1, 0.0, (low + high) / 2)))


@dataclass(frozen=True)
class AcceptanceCurve:
    """Measured acceptance of one kind of draft.

    Attributes:
        target: Model it was measured on.
        task: Text it was measured on.
        draft_kind, kv_policy, draft_model, kv_dtype, weight_dtype: The draft.
        points: (kv_budget, context_len, acceptance_rate); kv_budget is context_len for a draft with all its KV.
        source: Where the numbers come from.
    """

    target: str
    task: str
    draft_kind: str
    kv_policy: str
    draft_model: str | None
    points: tuple[tuple[float, float, float], ...]
    source: str
    kv_dtype: str | None = None
    weight_dtype: str | None = None

    def is_of(self, draft: Draft) -> bool:
        """It was measured with this kind of draft: of a smaller model with any, of the target with the same compression."""
        if self.draft_kind != draft.kind:
            return False
        compression = (self.kv_policy, self.kv_dtype, self.weight_dtype)
        return draft.kind != "self" or compression == (draft.kv_policy, draft.kv_dtype, draft.weight_dtype)

    def rate(self, kv_budget: ArrayLike, context_len: ArrayLike) -> Array:
        """Acceptance rate, interpolated monotonically over context and budget. [0-1]

        At one budget it falls over log(context_len / kv_budget), for a self draft from 1 where all is read; between budgets
        it is interpolated over their logarithm, beyond them it depends on the ratio alone. Beyond the longest
        measured ratio, rejection grows as a power of it that was fitted to the published curve.

        Args:
            kv_budget: Entries the draft reads, per sequence. [tokens]
            context_len: Tokens in the cache. [tokens]
        """
        context, budget = np.broadcast_arrays(np.asarray(context_len, np.float64), np.asarray(kv_budget, np.float64))
        groups = self._by_budget()
        if self.kv_policy == "full":
            return self._along(groups[0], context)
        budgets = np.array([group[0] for group in groups])
        rates = []
        for i, group in enumerate(groups):
            outside = (budget < group[0] if i == 0 else False) | (budget > group[0] if i == len(groups) - 1 else False)
            rates.append(self._along(group, np.maximum(context / np.where(outside, budget, group[0]), 1.0)))
        place = np.interp(np.log(budget), np.log(budgets), np.arange(len(budgets)))
        lower = np.floor(place).astype(int)
        upper = np.minimum(lower + 1, len(budgets) - 1)
        stacked = np.maximum.accumulate(np.stack(rates))  # reading more is never accepted less
        low, high = (np.take_along_axis(stacked, index[None], 0)[0] for index in (lower, upper))
        rate = low + (place - lower) * (high - low)
        return np.asarray(np.where((self.draft_kind == "self") & (budget >= context), 1.0, rate))

    def covers(self, kv_budget: ArrayLike, context_len: ArrayLike) -> Array:
        """Whether budget and context lie inside what was measured, within a factor of two."""
        context, budget = np.broadcast_arrays(np.asarray(context_len, np.float64), np.asarray(kv_budget, np.float64))
        budgets, contexts, _ = (np.array(column) for column in zip(*self.points, strict=True))
        inside = (context >= contexts.min() / 2) & (context <= 2 * contexts.max())
        if self.kv_policy == "full":
            return np.asarray(inside)
        reads_all = (self.draft_kind == "self") & (budget >= context)
        return np.asarray(reads_all | (inside & (budget >= budgets.min() / 2) & (budget <= 2 * budgets.max())))

    def _by_budget(self) -> list[tuple[float, Array, Array]]:
        """(budget, rising context_len / budget, rates) of every measured budget; contexts themselves with full KV."""
        full = self.kv_policy == "full"
        points = sorted((1.0 if full else budget, context, rate) for budget, context, rate in self.points)
        groups = []
        for budget in sorted({point[0] for point in points}):
            here = np.array([(context / budget, rate) for b, context, rate in points if b == budget])
            ratios = np.array(sorted(set(here[:, 0])))
            groups.append((budget, ratios, np.array([here[here[:, 0] == ratio, 1].mean() for ratio in ratios])))
        return groups

    def _along(self, group: tuple[float, Array, Array], asked: Array) -> Array:
        """The curve of one budget over the ratio."""
        _, known, rates = group
        if self.draft_kind == "self" and known[0] > 1:
            known, rates = np.append(1.0, known), np.append(1.0, rates)
        falling = np.minimum.accumulate(rates)
        rate = np.interp(np.log(asked), np.log(known), falling)
        growth = np.power(np.maximum(asked, known[-1]) / known[-1], 0.0 if self.kv_policy == "full" else REJECTION_EXPONENT)
        return np.asarray(np.clip(1 - (1 - rate) * growth, 0.0, 1.0))


class _PointFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, defer_build=True)
    kv_budget: pydantic.PositiveInt | None = None
    context_len: pydantic.PositiveInt
    acceptance_rate: float = pydantic.Field(ge=0.0, le=1.0)
    standard_error: pydantic.NonNegativeFloat | None = None


class _CurveFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, defer_build=True)
    target: str
    task: str
    draft_kind: DraftKind
    kv_policy: KvPolicy
    draft_model: str | None = None
    kv_dtype: CompressedDtype | None = None
    weight_dtype: CompressedDtype | None = None
    source: str
    points: list[_PointFile] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _sparse_points_have_budgets(self) -> _CurveFile:
        if self.kv_policy != "full" and any(point.kv_budget is None for point in self.points):
            raise ValueError(f"a kv_budget for every point of {self.kv_policy}")
        return self


class _CurvesFile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, defer_build=True)
    schema_version: Literal[1]
    curves: list[_CurveFile]


def parse_curves(text: str, *, where: str) -> tuple[AcceptanceCurve, ...]:
    """The curves that a YAML text holds. Raises `InputError` with all that is wrong."""
    raw = load_mapping(text, where, "acceptance curves, as `magicdec acceptance -o` writes them")
    try:
        file = _CurvesFile.model_validate(raw)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    return tuple(
        AcceptanceCurve(
            **curve.model_dump(exclude={"points"}),
            points=tuple((float(p.kv_budget or p.context_len), float(p.context_len), p.acceptance_rate) for p in curve.points),
        )
        for curve in file.curves
    )


def render_curves(curves: Sequence[Mapping[str, Any]]) -> str:
    """The YAML text of curves given as the mappings that `parse_curves` reads."""
    return yaml.safe_dump({"schema_version": 1, "curves": list(curves)}, sort_keys=False, allow_unicode=True, width=120)


@cache
def published_curves() -> tuple[AcceptanceCurve, ...]:
    """The curves that ship with the package."""
    folder = resources.files("magicdec.costmodel") / "acceptance_curves"
    entries = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return tuple(
        curve
        for entry in entries
        for curve in parse_curves(entry.read_text(encoding="utf-8"), where=f"acceptance_curves/{entry.name}")
    )


def load_checkpoint_curves(checkpoint: Path) -> tuple[AcceptanceCurve, ...]:
    """The curves measured for a checkpoint directory: its `acceptance.yaml`, if there is one."""
    file = checkpoint / "acceptance.yaml"
    try:
        return parse_curves(file.read_text(encoding="utf-8"), where=str(file)) if file.is_file() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise bad(file, "", "a readable acceptance curve", error) from None


@dataclass(frozen=True)
class AcceptanceEstimate:
    """The curve that answers for a draft, and whether it was measured on this very target.

    Attributes:
        curve: The measured curve.
        measured_here: It was measured on this target (and draft model); else it is borrowed as a prior.
    """

    curve: AcceptanceCurve
    measured_here: bool

    def uncertainty(self, kv_budget: ArrayLike, context_len: ArrayLike) -> Array:
        """How far the rate may be off: little where it was measured on this target, more where borrowed or extrapolated. [0-1]"""
        sure = np.logical_and(self.curve.covers(kv_budget, context_len), self.measured_here)
        return np.where(sure, MEASURED_UNCERTAINTY, ASSUMED_UNCERTAINTY)

    @property
    def note(self) -> str:
        """Where the rate comes from, for people."""
        origin = f"{self.curve.target}, {self.curve.task} ({self.curve.source})"
        return f"acceptance measured on {origin}" if self.measured_here else f"acceptance assumed, borrowed from {origin}"


def find_curve(curves: Sequence[AcceptanceCurve], target: str, draft: Draft) -> AcceptanceEstimate | None:
    """The curve for a draft: one of this target if there is one, else another target's as a prior; None if there is none.

    A small draft that reads part of its own cache is answered by whichever policy was measured: what it
    loses, it loses mostly by being small.
    """
    kind = [curve for curve in curves if curve.is_of(draft)]
    model = draft.model.name if draft.model else None
    own = [curve for curve in kind if curve.target == target and curve.draft_model == model]
    if not kind:
        return None
    exact = [curve for curve in own if curve.kv_policy == draft.kv_policy]
    return AcceptanceEstimate((exact or own or kind)[0], bool(own))
