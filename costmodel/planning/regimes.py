"""Regime boundaries: critical context lengths, crossover batch sizes, required acceptance rates, dominant costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..passes.forward import Array
from ..speculation.acceptance import AcceptanceCurve
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import GridInputs
from .best_gamma import evaluate_gammas

SHORTEST, LONGEST = 128.0, 131_072.0  # search range of critical context lengths [tokens]
SMALL_BATCH, LARGE_BATCH = 16, 256


def best_speedup(deployment: Deployment, draft: Draft, *, gammas: Sequence[int], **inputs: Unpack[GridInputs]) -> Array:
    """Speedup at the best gamma of every point. [ratio]

    Args:
        deployment: Model and hardware.
        draft: The draft.
        gammas: Draft lengths to choose from. [tokens]
        inputs: The other arguments of `evaluate_grid`.

    Raises:
        InputError: As `evaluate_grid`.
    """
    return np.asarray(evaluate_gammas(deployment, draft, gammas=gammas, **inputs).round.speedup.max(axis=0))


def critical_context_len(
    deployment: Deployment,
    draft: Draft,
    *,
    gammas: Sequence[int],
    kv_budget: float,
    curves: tuple[AcceptanceCurve, ...] = (),
    acceptance_rate: float | None = None,
    batch_sizes: tuple[int, int] = (SMALL_BATCH, LARGE_BATCH),
) -> float | None:
    """Find the shortest context at which the larger batch gains more from speculation. [tokens]

    Below it, large batches are compute-bound and verification is expensive; above it, reading the KV cache dominates.

    Args:
        deployment: Model and hardware.
        draft: The draft.
        gammas: Draft lengths to choose from. [tokens]
        kv_budget: KV entries the draft reads; inf for all. [tokens]
        curves: Measured acceptance.
        acceptance_rate: Acceptance rate; None to look it up. [0-1]
        batch_sizes: The two batch sizes to compare.

    Returns:
        The context length, or None if the larger batch gains less up to 131,072 tokens.

    Raises:
        InputError: As `evaluate_grid`.

    Source:
        MagicDec (arXiv 2408.11049), section 3: the inflection S.
    """

    def gain(context_len: ArrayLike) -> Array:
        small, large = (
            best_speedup(
                deployment,
                draft,
                batch_size=size,
                context_len=context_len,
                gammas=gammas,
                kv_budget=kv_budget,
                curves=curves,
                acceptance_rate=acceptance_rate,
            )
            for size in batch_sizes
        )
        return large - small

    return first_root(gain, max(SHORTEST, kv_budget if np.isfinite(kv_budget) else SHORTEST), LONGEST)


def crossover_batch_size(
    deployment: Deployment,
    first: Draft,
    second: Draft,
    *,
    context_len: float,
    gammas: Sequence[int],
    kv_budgets: tuple[float, float],
    curves: tuple[AcceptanceCurve, ...] = (),
    largest: int = 4096,
) -> int | None:
    """Find the smallest batch size at which the second draft gains more than the first. [sequences]

    Args:
        deployment: Model and hardware.
        first, second: The drafts.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gammas: Draft lengths to choose from. [tokens]
        kv_budgets: KV budget of each draft; inf for all entries. [tokens]
        curves: Measured acceptance.
        largest: Largest batch size to consider.

    Returns:
        The batch size, or None if the second draft never gains more.

    Raises:
        InputError: As `evaluate_grid`.

    Source:
        MagicDec (arXiv 2408.11049), Fig. 7: self-speculation overtakes a small draft.
    """

    def lead(batch_size: ArrayLike) -> Array:
        b = np.maximum(np.round(np.asarray(batch_size)), 1)
        speedups = [
            best_speedup(deployment, draft, batch_size=b, context_len=context_len, gammas=gammas, kv_budget=budget, curves=curves)
            for draft, budget in zip((first, second), kv_budgets, strict=True)
        ]
        return speedups[1] - speedups[0]

    found = first_root(lead, 1.0, float(largest))
    return None if found is None else round(found)


def first_root(function: Callable[[ArrayLike], Array], low: float, high: float, points: int = 200) -> float | None:
    """Find the first change from negative to positive, searching a logarithmic grid and then bisecting.

    Args:
        function: Vectorised function of one variable.
        low, high: Search range.
        points: Grid points.

    Returns:
        The root; `low` if the function is positive there; None if it is positive nowhere.
    """
    grid = np.geomspace(low, high, points)
    positive = np.asarray(function(grid) > 0)
    if not positive.any():
        return None
    above = int(positive.argmax())
    if above == 0:
        return float(low)
    left, right = grid[above - 1], grid[above]
    for _ in range(40):
        middle = np.sqrt(left * right)
        left, right = (left, middle) if function(middle) > 0 else (middle, right)
    return float(right)


def minimum_acceptance(
    deployment: Deployment,
    draft: Draft,
    *,
    batch_size: int,
    context_len: int,
    gammas: Sequence[int],
    kv_budgets: ArrayLike,
    speedup: float,
) -> Array:
    """Return the minimum acceptance rate at which each KV budget reaches a speedup, at the best gamma. [0-1]

    Args:
        deployment: Model and hardware.
        draft: The draft.
        batch_size: Sequences over all replicas.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gammas: Draft lengths to choose from. [tokens]
        kv_budgets: KV budgets. [tokens]
        speedup: Speedup to reach. [ratio]

    Returns:
        One rate per budget; NaN where no rate suffices.

    Raises:
        InputError: As `evaluate_grid`.

    Source:
        MagicDec (arXiv 2408.11049), Fig. 5c.
    """
    budgets = np.asarray(kv_budgets, np.float64)
    e = evaluate_gammas(
        deployment,
        draft,
        gammas=gammas,
        batch_size=batch_size,
        context_len=context_len,
        kv_budget=budgets,
        acceptance_rate=0.5,  # hardly matters: it only sets how often `draft_rereads_last` applies
    )
    rates = np.broadcast_to(e.round.minimum_acceptance_rate(speedup), (len(gammas), len(budgets)))
    return np.where(np.isnan(rates).all(axis=0), np.nan, np.nanmin(np.where(np.isnan(rates), 2.0, rates), axis=0))


def admissible_budgets(
    deployment: Deployment,
    draft: Draft,
    *,
    batch_size: int,
    context_len: int,
    gammas: Sequence[int],
    kv_budgets: Sequence[int],
    speedup: float,
    curve: AcceptanceCurve,
) -> list[int]:
    """Return the KV budgets whose measured acceptance suffices for a speedup. [tokens]

    Args:
        deployment: Model and hardware.
        draft: The draft.
        batch_size: Sequences over all replicas.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gammas: Draft lengths to choose from. [tokens]
        kv_budgets: KV budgets to check. [tokens]
        speedup: Speedup to reach. [ratio]
        curve: Measured acceptance.

    Raises:
        InputError: As `evaluate_grid`.
    """
    required = minimum_acceptance(
        deployment, draft, batch_size=batch_size, context_len=context_len, gammas=gammas, kv_budgets=kv_budgets, speedup=speedup
    )
    available = curve.rate(np.minimum(kv_budgets, context_len), context_len)
    return [int(budget) for budget, sufficient in zip(kv_budgets, available >= required, strict=True) if sufficient]


def bound_map(deployment: Deployment, batch_sizes: ArrayLike, context_lens: ArrayLike) -> NDArray[np.str_]:
    """Return the bottleneck of an autoregressive step by batch size and context: one of `roofline.BOUNDS`."""
    b, s = np.asarray(batch_sizes), np.asarray(context_lens)
    shape = (len(b), len(s))
    return np.broadcast_to(deployment.pass_time(np.ceil(b[:, None] / deployment.replicas), 1, s).bound, shape)
