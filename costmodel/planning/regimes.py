"""Where the picture changes: critical lengths, ridge points, the acceptance that is needed, and who overtakes whom."""

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

SHORTEST, LONGEST = 128.0, 131_072.0  # tokens between which critical lengths are looked for
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
    """The context from which a larger batch gains more from speculation; None if there is none up to 131,072. [tokens]

    Below it a large batch makes decoding compute-bound, and verification is dear; above it reading the KV cache dominates.

    Args:
        batch_sizes: The two batches whose speedups are compared.

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
    """The batch size from which the second draft gains more than the first; None if it never does. [sequences]

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
    """Where a function first turns from negative to positive between two ends, on a logarithmic scale.

    The low end itself where it is positive there; None where it is positive nowhere.
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
    """The least acceptance rate, at the best gamma, from which each budget reaches a speedup; nan where none does. [0-1]

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
    """The KV budgets whose measured acceptance reaches what a wanted speedup needs. [tokens]"""
    needed = minimum_acceptance(
        deployment, draft, batch_size=batch_size, context_len=context_len, gammas=gammas, kv_budgets=kv_budgets, speedup=speedup
    )
    reached = curve.rate(np.minimum(kv_budgets, context_len), context_len)
    return [int(budget) for budget, enough in zip(kv_budgets, reached >= needed, strict=True) if enough]


def bound_map(deployment: Deployment, batch_sizes: ArrayLike, context_lens: ArrayLike) -> NDArray[np.str_]:
    """What a plain decoding step spends most on, by batch size and context: one of `roofline.BOUNDS`."""
    b, s = np.asarray(batch_sizes), np.asarray(context_lens)
    shape = (len(b), len(s))
    return np.broadcast_to(deployment.pass_time(np.ceil(b[:, None] / deployment.replicas), 1, s).bound, shape)
