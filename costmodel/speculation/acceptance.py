"""Acceptance rates, measured or assumed, and the tokens per round that follow from them.

The acceptance of a sparse draft depends mostly on context_len / kv_budget. A self draft that reads all entries equals the
target, so its acceptance rate is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..base.files import read_text
from ..base.json_types import JsonObject
from ..base.yaml_text import load_mapping, load_shipped, render_yaml
from ..passes.forward import Array, BoolArray
from .drafts import Draft

# The rejection rate of the published PG-19 curve (in acceptance_curves/) grows with this power of context_len / kv_budget.
REJECTION_EXPONENT = 0.09
# Typical differences of the rate between tasks (PG-19 and RULER in the paper), and between model pairs.
MEASURED_UNCERTAINTY, ASSUMED_UNCERTAINTY = 0.02, 0.1
TASKS = ("code", "chat", "prose", "reasoning", "summary")
EXACT_OUTPUT = 1024  # tokens up to which rounds are counted one by one; beyond, each further token costs the same


def mean_acceptance_length(gamma: ArrayLike, acceptance_rate: ArrayLike, decay: float = 1.0) -> Array:
    """Expected tokens per round, bonus token included, for independent acceptances. [tokens]

    Args:
        gamma: Draft tokens per round. [tokens]
        acceptance_rate: Acceptance probability of a draft token, given that all earlier ones were accepted. [0-1]
        decay: What this rate is multiplied with at each further position. [0-1]

    Source:
        Leviathan et al. (arXiv 2211.17192), eq. 1.

    >>> float(mean_acceptance_length(4, 0.8).round(4))
    3.3616
    """
    g, a = np.broadcast_arrays(np.asarray(gamma, np.float64), np.asarray(acceptance_rate, np.float64))
    length, term = np.ones(g.shape), np.ones(g.shape)
    for position in range(1, int(g.max(initial=0)) + 1):  # sum instead of closed form: exact near 1, same rounding in any layout
        term = term * (a * decay ** (position - 1) if decay != 1.0 else a)
        length = length + np.where(position <= g, term, 0.0)
    return np.asarray(length)


def cut_acceptance_length(gamma: ArrayLike, acceptance_rate: ArrayLike, output_len: int) -> Array:
    """Expected tokens per round of requests that end after exactly `output_len` tokens. [tokens]

    What the last round accepts beyond the end is lost, so this is less than `mean_acceptance_length`: by 6 % at gamma 8, a rate
    of 0.95 and 64 tokens.

    Args:
        gamma: Draft tokens per round. [tokens]
        acceptance_rate: As for `mean_acceptance_length`. [0-1]
        output_len: New tokens of a request. [tokens]

    >>> float(cut_acceptance_length(4, 1.0, 12))
    4.0
    """
    g, a = np.broadcast_arrays(np.asarray(gamma, np.float64), np.asarray(acceptance_rate, np.float64))
    longest = int(g.max(initial=0)) + 1
    emitted = np.arange(1, longest + 1).reshape(-1, *[1] * g.ndim)
    share = np.where(
        emitted <= g, a ** (emitted - 1.0) * (1 - a), np.where(emitted == g + 1, a**g, 0.0)
    )  # rounds that emit so many
    rounds = np.zeros((longest, *g.shape))  # expected rounds for the last `longest` numbers of tokens, the most tokens first
    exact = min(output_len, EXACT_OUTPUT)
    for _ in range(exact):
        rounds = np.concatenate([1.0 + (share * rounds).sum(axis=0, keepdims=True), rounds[:-1]])
    return np.asarray(output_len / (rounds[0] + (output_len - exact) / mean_acceptance_length(g, a)))


def mean_acceptance_length_by_position(gamma: ArrayLike, rates: Sequence[float]) -> Array:
    """Expected tokens per round, bonus token included, with one acceptance rate per position. [tokens]

    Args:
        gamma: Draft tokens per round. [tokens]
        rates: Acceptance rate of each position, given that all earlier ones were accepted; the last rate applies to all
            further positions. [0-1]

    >>> mean_acceptance_length_by_position([1, 2, 4], [0.9, 0.5]).tolist()
    [1.9, 2.35, 2.6875]
    """
    g = np.asarray(gamma, np.float64)
    most = max(int(g.max()), len(rates))
    every = np.array([*rates, *[rates[-1]] * (most - len(rates))])
    lengths = np.cumsum([1.0, *np.cumprod(every)])
    return np.asarray(lengths[g.astype(int)])


def implied_acceptance_rate(gamma: ArrayLike, mean_length: ArrayLike) -> Array:
    """Invert `mean_acceptance_length`: the constant rate that yields `mean_length` tokens per round. [0-1]

    Args:
        gamma: Draft tokens per round. [tokens]
        mean_length: Tokens per round, bonus token included. [tokens]

    Returns:
        The rate: 0 for a length of 1 or less, NaN for a length above gamma + 1.
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
    """Measured acceptance rates of one draft.

    Attributes:
        target: The target model.
        task: The text or benchmark.
        draft_kind, kv_policy, draft_model, kv_dtype, weight_dtype: The draft, as in `Strategy`.
        points: (kv_budget, context_len, acceptance_rate); kv_budget equals context_len for a draft with full KV.
        source: Origin of the numbers.
        decay: What the rate is multiplied with at each further position of a round. [0-1]
        spread: Uncertainty of the rate on its own target; None for the usual one. [0-1]
        longest: Longest draft that it was measured with; None if the rate was measured directly. [tokens]
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
    decay: float = 1.0
    spread: float | None = None
    longest: int | None = None

    def matches(self, draft: Draft) -> bool:
        """True for the same draft kind and, for a self draft, the same KV policy and dtypes."""
        if self.draft_kind != draft.kind:
            return False
        compression = (self.kv_policy, self.kv_dtype, self.weight_dtype)
        return draft.kind != "self" or compression == (draft.kv_policy, draft.kv_dtype, draft.weight_dtype)

    def rate(self, kv_budget: ArrayLike, context_len: ArrayLike) -> Array:
        """Acceptance rate, interpolated monotonically over context and budget. [0-1]

        For each budget the rate is interpolated over log(context_len / kv_budget), starting at 1 for a self draft that reads
        everything. Between budgets it is interpolated over their logarithm; outside the measured budgets only the ratio counts.
        Beyond the largest measured ratio, the rejection rate grows with `REJECTION_EXPONENT`.

        Args:
            kv_budget: KV entries the draft reads, per sequence. [tokens]
            context_len: Tokens in the KV cache, per sequence. [tokens]
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
        stacked = np.maximum.accumulate(np.stack(rates))  # a larger budget never lowers the rate
        low, high = (np.take_along_axis(stacked, index[None], 0)[0] for index in (lower, upper))
        rate = low + (place - lower) * (high - low)
        return np.asarray(np.where((self.draft_kind == "self") & (budget >= context), 1.0, rate))

    def covers(self, kv_budget: ArrayLike, context_len: ArrayLike) -> BoolArray:
        """True where budget and context are within a factor of two of the measured range.

        Args:
            kv_budget: KV entries the draft reads, per sequence. [tokens]
            context_len: Tokens in the KV cache, per sequence. [tokens]
        """
        context, budget = np.broadcast_arrays(np.asarray(context_len, np.float64), np.asarray(kv_budget, np.float64))
        budgets, contexts, _ = (np.array(column) for column in zip(*self.points, strict=True))
        inside = (context >= contexts.min() / 2) & (context <= 2 * contexts.max())
        if self.kv_policy == "full":
            return np.asarray(inside)
        reads_all = (self.draft_kind == "self") & (budget >= context)
        return np.asarray(reads_all | (inside & (budget >= budgets.min() / 2) & (budget <= 2 * budgets.max())))

    def _by_budget(self) -> list[tuple[float, Array, Array]]:
        """(budget, ascending context_len / budget, rates) of every measured budget; with full KV (1, contexts, rates)."""
        full = self.kv_policy == "full"
        points = sorted((1.0 if full else budget, context, rate) for budget, context, rate in self.points)
        groups = []
        for budget in sorted({point[0] for point in points}):
            here = np.array([(context / budget, rate) for b, context, rate in points if b == budget])
            ratios = np.array(sorted(set(here[:, 0])))
            groups.append((budget, ratios, np.array([here[here[:, 0] == ratio, 1].mean() for ratio in ratios])))
        return groups

    def _along(self, group: tuple[float, Array, Array], ratio: Array) -> Array:
        """Interpolate the curve of one budget over context_len / kv_budget."""
        _, known, rates = group
        if self.draft_kind == "self" and known[0] > 1:
            known, rates = np.append(1.0, known), np.append(1.0, rates)
        falling = np.minimum.accumulate(rates)
        rate = np.interp(np.log(ratio), np.log(known), falling)
        growth = np.power(np.maximum(ratio, known[-1]) / known[-1], 0.0 if self.kv_policy == "full" else REJECTION_EXPONENT)
        return np.asarray(np.clip(1 - (1 - rate) * growth, 0.0, 1.0))


def parse_curves(text: str, *, where: str) -> tuple[AcceptanceCurve, ...]:
    """Parse the YAML text of acceptance curves.

    Args:
        text: Content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    from ..base.validation import validate_mapping  # pydantic is slow to import
    from .acceptance_schema import CurvesFile

    raw = load_mapping(text, where, "acceptance curves, as `magicdec acceptance -o` writes them")
    return _curves(validate_mapping(CurvesFile, raw, where).model_dump())


def _curves(raw: Mapping[str, Any]) -> tuple[AcceptanceCurve, ...]:
    """Convert the content of a valid file."""
    return tuple(
        AcceptanceCurve(
            **{"draft_model": None, **{key: value for key, value in curve.items() if key != "uncertainty"}},
            spread=curve.get("uncertainty"),
        )
        for curve in ({**one, "points": tuple(map(_point, one["points"]))} for one in raw["curves"])
    )


def _point(raw: Mapping[str, float]) -> tuple[float, float, float]:
    """(kv_budget, context_len, acceptance_rate) of one point; without a budget the draft read everything."""
    return float(raw.get("kv_budget") or raw["context_len"]), float(raw["context_len"]), float(raw["acceptance_rate"])


def render_curves(curves: Sequence[JsonObject]) -> str:
    """Render curves as YAML text.

    Args:
        curves: Curves as mappings with the keys that `parse_curves` reads.
    """
    return render_yaml({"schema_version": 1, "curves": list(curves)})


@cache
def published_curves() -> tuple[AcceptanceCurve, ...]:
    """Return the acceptance curves shipped with the package. Tests validate them, so that a start does not have to."""
    files = sorted((Path(__file__).parents[1] / "acceptance_curves").glob("*.yaml"))
    texts = (file.read_text(encoding="utf-8") for file in files)
    return tuple(curve for text in texts for curve in _curves(load_shipped(text)))


def load_checkpoint_curves(checkpoint: Path) -> tuple[AcceptanceCurve, ...]:
    """Read `acceptance.yaml` in a checkpoint directory; no curves if there is no such file.

    Raises:
        InputError: The file cannot be read, or is invalid.
    """
    file = checkpoint / "acceptance.yaml"
    return parse_curves(read_text(file, "acceptance curve file"), where=str(file)) if file.is_file() else ()


@dataclass(frozen=True)
class AcceptanceEstimate:
    """The curve used for a draft.

    Attributes:
        curve: The measured curve.
        measured_here: Whether it was measured on this target and draft model; otherwise it is a prior from another model.
    """

    curve: AcceptanceCurve
    measured_here: bool

    def uncertainty(self, kv_budget: ArrayLike, context_len: ArrayLike) -> Array:
        """Uncertainty of the rate: small if measured on this target, larger if borrowed or extrapolated. [0-1]

        Args:
            kv_budget: KV entries the draft reads, per sequence. [tokens]
            context_len: Tokens in the KV cache, per sequence. [tokens]
        """
        measured = np.logical_and(self.curve.covers(kv_budget, context_len), self.measured_here)
        here = MEASURED_UNCERTAINTY if self.curve.spread is None else self.curve.spread
        return np.where(measured, here, max(ASSUMED_UNCERTAINTY, here))

    def exceeded_by(self, gamma: ArrayLike) -> BoolArray:
        """True for drafts longer than those that were measured: what they add is extrapolated.

        Args:
            gamma: Draft tokens per round. [tokens]
        """
        longest = self.curve.longest
        return np.asarray(np.asarray(gamma) > (np.inf if longest is None else longest))

    @property
    def note(self) -> str:
        """One sentence on the origin of the rate."""
        origin = f"{self.curve.target}, {self.curve.task} ({self.curve.source})"
        return f"acceptance measured on {origin}" if self.measured_here else f"acceptance assumed equal to that of {origin}"


def _measured_on(curve: AcceptanceCurve, target: str) -> bool:
    """Whether a curve is of this target; curves by task hold for any spelling and quantisation of its name."""
    if curve.target == target:
        return True
    by_task = curve.task == "mix" or curve.task in TASKS
    return by_task and curve.draft_kind != "self" and _base_name(curve.target) == _base_name(target)


@cache
def _base_name(name: str) -> str:
    from ..models.naming import base_name

    return base_name(name)


def find_curve(curves: Sequence[AcceptanceCurve], target: str, draft: Draft, task: str | None = None) -> AcceptanceEstimate | None:
    """Find the curve for a draft: measured on this target if possible, otherwise on another target as a prior.

    For a draft model any KV policy matches: its acceptance depends mostly on its size.

    Args:
        curves: Measured curves, in order of preference.
        target: Name of the target.
        draft: The draft.
        task: What is generated, one of `TASKS`; None for a mean over tasks where there is one.

    Returns:
        The estimate, or None if no curve matches.
    """
    kind = [curve for curve in curves if curve.matches(draft)]
    model = draft.model.name if draft.model else None
    wanted = [curve for curve in kind if curve.task == (task or "mix")]
    kind = [*wanted, *(curve for curve in kind if curve not in wanted)]
    own = [curve for curve in kind if _measured_on(curve, target) and curve.draft_model == model]
    if task is not None and not any(curve.task == task for curve in own):
        own = [curve for curve in own if curve.task not in TASKS]
    if not kind:
        return None
    exact = [curve for curve in own if curve.kv_policy == draft.kv_policy]
    return AcceptanceEstimate((exact or own or kind)[0], bool(own))


def measured_gammas(
    curves: Sequence[AcceptanceCurve], target: str, draft: Draft, task: str | None, gammas: Sequence[int]
) -> tuple[int, ...]:
    """Draft lengths to choose from: none may win by acceptance beyond the positions that were measured.

    Args:
        curves: Measured curves, in order of preference.
        target: Name of the target.
        draft: The draft.
        task: What is generated, as for `find_curve`.
        gammas: Draft lengths to consider. [tokens]

    Returns:
        Those within what was measured; all of them if none is.
    """
    estimate = find_curve(curves, target, draft, task)
    if estimate is None:
        return tuple(gammas)
    return tuple(gamma for gamma in gammas if not estimate.exceeded_by(gamma)) or tuple(gammas)
