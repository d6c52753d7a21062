"""The whole map: the best strategy for every batch size and context length, as arrays, and what simple choices would lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..passes.forward import Array
from ..plans.policy import PolicyTable
from ..plans.strategy import NO_SPECULATION, Strategy
from ..speculation.acceptance import AcceptanceCurve
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation, evaluate_grid

CHUNK_POINTS = 2_000_000  # strategies evaluated at a time, so that a map of any size takes no more memory


@dataclass(frozen=True)
class Best:
    """The best gamma and budget of one draft at every (batch size, context length).

    Attributes:
        draft: What drafts.
        gamma, kv_budget: Chosen for the largest lower end of the speedup among what fits and is fast enough. [tokens]
        speedup, speedup_low, speedup_high: nan where nothing fits, or acceptance is unknown. [ratio]
        tpot_s: Seconds per output token. [s]
        minimum_acceptance_rate: From which it would pay there. [0-1]
        feasible: Some gamma and budget fit in memory and hold the latency limit.
    """

    draft: Draft
    gamma: NDArray[np.int64]
    kv_budget: Array
    speedup: Array
    speedup_low: Array
    speedup_high: Array
    tpot_s: Array
    minimum_acceptance_rate: Array
    feasible: NDArray[np.bool_]

    def strategy(self, i: int, j: int) -> Strategy:
        """The strategy of one cell."""
        return self.draft.strategy(int(self.gamma[i, j]), float(self.kv_budget[i, j]))


@dataclass(frozen=True)
class Sweep:
    """The best of every draft on one grid.

    Attributes:
        batch_sizes, context_lens: Axes of the grid. [sequences, tokens]
        autoregressive_tpot_s: Of plain decoding. [s]
        autoregressive_fits: Whether its KV cache fits.
        bound: What a plain step spends most on.
        bests: One for each draft.
        choice: Index into `bests` of the draft to use; -1 for plain decoding, -2 where nothing fits and is fast enough.
    """

    batch_sizes: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    autoregressive_tpot_s: Array
    autoregressive_fits: NDArray[np.bool_]
    bound: NDArray[np.str_]
    bests: tuple[Best, ...]
    choice: NDArray[np.int64]

    @property
    def speedup(self) -> Array:
        """Of what is chosen; 1 for plain decoding. [ratio]"""
        return self._chosen("speedup")

    @property
    def speedup_low(self) -> Array:
        """Its lower end. [ratio]"""
        return self._chosen("speedup_low")

    def strategy(self, i: int, j: int) -> Strategy:
        """What is chosen for one cell."""
        return NO_SPECULATION if self.choice[i, j] < 0 else self.bests[self.choice[i, j]].strategy(i, j)

    def regret(self, speedup: Array | float) -> float:
        """How much slower a token is if a choice with that speedup is made instead, on average over cells that can be served.

        Negative where a bolder choice is better on average: strategies are compared by the lower ends of their intervals. [ratio]
        """
        served = self.choice > -2
        return float(np.mean((self.speedup / np.maximum(speedup, 1e-9))[served]) - 1) if served.any() else 0.0

    @property
    def forced_speedup(self) -> Array:
        """Of the best draft in every cell, gain or loss, where one fits; else of plain decoding. [ratio]"""
        shape = self.choice.shape
        lows = np.stack([np.zeros(shape), *(np.nan_to_num(best.speedup_low) for best in self.bests)])
        speedups = np.stack([np.ones(shape), *(best.speedup for best in self.bests)])
        return np.asarray(np.take_along_axis(speedups, lows.argmax(axis=0)[None], 0)[0])

    @property
    def knows_acceptance(self) -> bool:
        """Of some draft it is known how often it is accepted."""
        return any(not np.isnan(best.speedup).all() for best in self.bests)

    def _chosen(self, name: str) -> Array:
        chosen = np.ones_like(self.autoregressive_tpot_s)
        for index, best in enumerate(self.bests):
            chosen = np.where(self.choice == index, getattr(best, name), chosen)
        return chosen


def sweep(
    deployment: Deployment,
    drafts: Sequence[Draft],
    *,
    batch_sizes: Sequence[int],
    context_lens: Sequence[int],
    gammas: Sequence[int],
    kv_budgets: Sequence[int],
    curves: tuple[AcceptanceCurve, ...] = (),
    acceptance_rate: float | None = None,
    acceptance_by_position: Sequence[float] | None = None,
    max_tpot_s: float | None = None,
) -> Sweep:
    """The best strategy of every cell of a grid.

    Strategies are compared by the lower end of their predicted speedup, so that a guess does not outrank a measurement
    lightly; where no lower end is above 1, plain decoding is chosen if it fits and is fast enough. The merit is the time per
    token: within one cell it orders throughput and cost alike.

    Args:
        deployment: Model and machine.
        drafts: What to consider beside plain decoding.
        batch_sizes, context_lens: Axes of the grid. [sequences, tokens]
        gammas, kv_budgets: What to consider; a budget beyond the context reads all of it. [tokens]
        curves: Where acceptance is looked up.
        acceptance_rate, acceptance_by_position: Given instead. [0-1]
        max_tpot_s: Most seconds per output token. [s]
    """
    batches, contexts = np.array(sorted(set(batch_sizes))), np.array(sorted(set(context_lens)))
    plain = evaluate_grid(deployment, Draft(), batch_size=batches[:, None], context_len=contexts)
    shape = (len(batches), len(contexts))
    given = {"acceptance_rate": acceptance_rate, "acceptance_by_position": acceptance_by_position, "curves": curves}
    bests = tuple(_best(deployment, draft, batches, contexts, gammas, kv_budgets, max_tpot_s, given) for draft in drafts)
    fits = np.broadcast_to(plain.fits_in_memory, shape)
    plain_s = np.broadcast_to(plain.round.target_step_s, shape)
    serves = fits & (True if max_tpot_s is None else plain_s <= max_tpot_s)
    lows = np.stack([np.where(serves, 1.0, 0.0), *(np.nan_to_num(best.speedup_low) for best in bests)])
    return Sweep(
        batch_sizes=batches,
        context_lens=contexts,
        autoregressive_tpot_s=plain_s,
        autoregressive_fits=fits,
        bound=np.broadcast_to(plain.target.bound, shape),
        bests=bests,
        choice=np.where(lows.max(axis=0) > 0, lows.argmax(axis=0) - 1, -2),
    )


def _best(
    deployment: Deployment,
    draft: Draft,
    batches: NDArray[np.int64],
    contexts: NDArray[np.int64],
    gammas: Sequence[int],
    kv_budgets: Sequence[int],
    max_tpot_s: float | None,
    given: dict[str, Any],
) -> Best:
    budgets = np.array(kv_budgets, np.float64) if draft.sparse else np.array([np.inf])
    points_per_cell = len(gammas) * len(budgets)
    parts = _chunks(contexts, CHUNK_POINTS // points_per_cell)
    rows = []
    for batch_part in _chunks(batches, CHUNK_POINTS // (points_per_cell * len(parts[0]))):
        row = [
            _best_of_chunk(
                evaluate_grid(
                    deployment,
                    draft,
                    batch_size=batch_part[:, None, None, None],
                    context_len=context_part[:, None, None],
                    gamma=np.array(gammas)[:, None],
                    kv_budget=budgets,
                    **given,
                ),
                np.array(gammas),
                budgets,
                max_tpot_s,
            )
            for context_part in parts
        ]
        rows.append([np.concatenate(column, axis=1) for column in zip(*row, strict=True)])
    return Best(draft, *(np.concatenate(column) for column in zip(*rows, strict=True)))


def _chunks(axis: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """An axis in pieces of at most a size, of one value at least."""
    step = max(1, size)
    return [axis[start : start + step] for start in range(0, len(axis), step)]


def _best_of_chunk(e: Evaluation, gammas: NDArray[np.int64], budgets: Array, max_tpot_s: float | None) -> tuple[NDArray[Any], ...]:
    """Of every (batch size, context length): the arrays of a `Best`."""
    r = e.round
    low, tpot_s = e.speedup_low, r.speculative_tpot_s
    shape = np.broadcast_shapes(low.shape, tpot_s.shape, e.fits_in_memory.shape, (len(gammas), len(budgets)))
    feasible = np.broadcast_to(e.fits_in_memory, shape)
    if max_tpot_s is not None:
        feasible = feasible & ~(tpot_s > max_tpot_s)  # an unknown time is not too long
    least = np.broadcast_to(r.minimum_acceptance_rate(), shape) if np.isnan(low).all() else np.full(shape, np.nan)
    merit = np.where(feasible, low if not np.isnan(low).all() else -np.nan_to_num(least, nan=2.0), -np.inf)
    flat = merit.reshape(*shape[:2], -1).argmax(axis=-1)

    any_feasible = np.asarray(feasible.any(axis=(2, 3)))

    def chosen(values: Array) -> Array:
        whole = np.broadcast_to(values, shape).reshape(*shape[:2], -1)
        return np.where(any_feasible, np.take_along_axis(whole, flat[..., None], -1)[..., 0], np.nan)

    return (
        gammas[flat // len(budgets)],
        budgets[flat % len(budgets)],
        chosen(r.speedup),
        chosen(low),
        chosen(e.speedup_high),
        chosen(tpot_s),
        chosen(least),
        any_feasible,
    )


def policy_table(found: Sweep, hysteresis: float = 0.05) -> PolicyTable:
    """The map as a table that a plan carries: a cell where nothing fits decodes plainly."""
    rows, columns = found.choice.shape
    cells = [[found.strategy(i, j) for j in range(columns)] for i in range(rows)]
    strategies = list(dict.fromkeys([NO_SPECULATION, *(one for row in cells for one in row)]))
    return PolicyTable(
        batch_sizes=[int(b) for b in found.batch_sizes],
        context_lens=[int(s) for s in found.context_lens],
        strategies=strategies,
        choice=[[strategies.index(one) for one in row] for row in cells],
        predicted_speedup=[[float(x) for x in row] for row in found.speedup],
        hysteresis=hysteresis,
    )
