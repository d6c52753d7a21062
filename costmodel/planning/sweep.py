"""The best strategy for every batch size and context length, and the regret of simpler policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..passes.forward import Array, BoolArray
from ..plans.policy_table import PolicyTable
from ..plans.strategy import NO_SPECULATION, Strategy
from ..speculation.acceptance import AcceptanceCurve, measured_gammas
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import AcceptanceInputs, Evaluation, evaluate_grid

CHUNK_POINTS = 2_000_000  # strategies per call of `evaluate_grid`; bounds the memory of large grids


@dataclass(frozen=True)
class BestOfDraft:
    """The best gamma and KV budget of one draft at every (batch size, context length).

    Attributes:
        draft: The draft.
        gamma, kv_budget: Values with the largest `speedup_low` among those that fit and meet the latency limit. [tokens]
        speedup, speedup_low, speedup_high: Speedup and its interval; NaN if nothing fits or the acceptance is unknown. [ratio]
        tpot_s: Time per output token. [s]
        minimum_acceptance_rate: Break-even acceptance rate, only if the acceptance is unknown. [0-1]
        feasible: Whether some gamma and budget fit in memory and meet the latency limit.
    """

    draft: Draft
    gamma: NDArray[np.int64]
    kv_budget: Array
    speedup: Array
    speedup_low: Array
    speedup_high: Array
    tpot_s: Array
    minimum_acceptance_rate: Array
    feasible: BoolArray

    def strategy(self, i: int, j: int) -> Strategy:
        """Return the strategy of one cell."""
        return self.draft.strategy(int(self.gamma[i, j]), float(self.kv_budget[i, j]))


@dataclass(frozen=True)
class Sweep:
    """The best strategies of several drafts on one grid.

    Attributes:
        batch_sizes, context_lens: Axes of the grid. [sequences, tokens]
        autoregressive_tpot_s: Time per output token without speculation. [s]
        autoregressive_fits: Whether decoding without speculation fits in memory.
        bound: Bottleneck of an autoregressive step.
        bests: Best gamma and budget of each draft.
        choice: Index into `bests` of the draft to use; -1 for no speculation, -2 if nothing fits and meets the latency limit.
    """

    batch_sizes: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    autoregressive_tpot_s: Array
    autoregressive_fits: BoolArray
    bound: NDArray[np.str_]
    bests: tuple[BestOfDraft, ...]
    choice: NDArray[np.int64]

    @property
    def speedup(self) -> Array:
        """Speedup of the chosen strategy; 1 for no speculation. [ratio]"""
        return self._chosen([best.speedup for best in self.bests])

    @property
    def speedup_low(self) -> Array:
        """Lower end of its interval. [ratio]"""
        return self._chosen([best.speedup_low for best in self.bests])

    def strategy(self, i: int, j: int) -> Strategy:
        """Return the chosen strategy of one cell."""
        return NO_SPECULATION if self.choice[i, j] < 0 else self.bests[self.choice[i, j]].strategy(i, j)

    def regret(self, speedup: Array | float) -> float:
        """Mean slowdown of another policy relative to this table, over feasible cells. [ratio]

        It can be negative, because this table maximises the lower end of the speedup, not the speedup.

        Args:
            speedup: Speedup of the other policy.
        """
        served = self.choice > -2
        return float(np.mean((self.speedup / np.maximum(speedup, 1e-9))[served]) - 1) if served.any() else 0.0

    @property
    def forced_speedup(self) -> Array:
        """Speedup of always speculating with the best draft that fits, even at a loss; 1 where none fits. [ratio]"""
        shape = self.choice.shape
        lows = np.stack([np.zeros(shape), *(np.nan_to_num(best.speedup_low) for best in self.bests)])
        speedups = np.stack([np.ones(shape), *(best.speedup for best in self.bests)])
        return np.asarray(np.take_along_axis(speedups, lows.argmax(axis=0)[None], 0)[0])

    @property
    def knows_acceptance(self) -> bool:
        """True if the acceptance of at least one draft is known."""
        return any(not np.isnan(best.speedup).all() for best in self.bests)

    def _chosen(self, values: Sequence[Array]) -> Array:
        """Pick the entries of the chosen drafts from one array per draft; 1 for no speculation."""
        chosen = np.ones_like(self.autoregressive_tpot_s)
        for index, of_draft in enumerate(values):
            chosen = np.where(self.choice == index, of_draft, chosen)
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
    output_len: int = 0,
) -> Sweep:
    """Find the best strategy of every cell of a grid.

    Strategies are compared by the lower end of their speedup, so that assumed acceptance rarely outranks measured acceptance.
    If no lower end exceeds 1, the choice is no speculation, provided that it fits and meets the latency limit. Within one cell
    the time per output token ranks throughput and cost too.

    Args:
        deployment: Model and hardware.
        drafts: Drafts to consider.
        batch_sizes, context_lens: Axes of the grid. [sequences, tokens]
        gammas, kv_budgets: Values to consider; a budget longer than the context reads all of it. [tokens]
        curves: Measured acceptance.
        acceptance_rate, acceptance_by_position: Known acceptance, instead of `curves`. [0-1]
        max_tpot_s: Limit on the time per output token. [s]
        output_len: Tokens that each sequence grows by: a cell costs what its mean context costs, and the final one must fit, as
            in `candidates`. [tokens]

    Raises:
        InputError: A value is out of range, or a draft model has a different vocabulary.
    """
    batches, contexts = np.array(sorted(set(batch_sizes))), np.array(sorted(set(context_lens)))
    autoregressive = evaluate_grid(deployment, Draft(), batch_size=batches[:, None], **_lengths(contexts, output_len))
    shape = (len(batches), len(contexts))
    acceptance: AcceptanceInputs = {
        "acceptance_rate": acceptance_rate,
        "acceptance_by_position": acceptance_by_position,
        "curves": curves,
    }
    limits = max_tpot_s, acceptance, output_len
    bests = tuple(_best(deployment, draft, batches, contexts, gammas, kv_budgets, *limits) for draft in drafts)
    fits = np.broadcast_to(autoregressive.fits_in_memory, shape)
    tpot_s = np.broadcast_to(autoregressive.round.target_step_s, shape)
    feasible = fits & (True if max_tpot_s is None else tpot_s <= max_tpot_s)
    lows = np.stack([np.where(feasible, 1.0, 0.0), *(np.nan_to_num(best.speedup_low) for best in bests)])
    return Sweep(
        batch_sizes=batches,
        context_lens=contexts,
        autoregressive_tpot_s=tpot_s,
        autoregressive_fits=fits,
        bound=np.broadcast_to(autoregressive.target.bound, shape),
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
    acceptance: AcceptanceInputs,
    output_len: int,
) -> BestOfDraft:
    """Search gamma and budget of one draft, in chunks of the grid."""
    if acceptance.get("acceptance_rate") is None and acceptance.get("acceptance_by_position") is None:
        gammas = measured_gammas(acceptance.get("curves", ()), deployment.target.name, draft, deployment.task, gammas)
    budgets = np.array(kv_budgets, np.float64) if draft.sparse else np.array([np.inf])
    points_per_cell = len(gammas) * len(budgets)
    parts = _chunks(contexts, CHUNK_POINTS // points_per_cell)
    rows: list[BestOfDraft] = []
    for batch_part in _chunks(batches, CHUNK_POINTS // (points_per_cell * len(parts[0]))):
        row = [
            _best_of_chunk(
                draft,
                evaluate_grid(
                    deployment,
                    draft,
                    batch_size=batch_part[:, None, None, None],
                    **_lengths(context_part[:, None, None], output_len),
                    gamma=np.array(gammas)[:, None],
                    kv_budget=budgets,
                    **acceptance,
                ),
                np.array(gammas),
                budgets,
                context_part[:, None, None],
                max_tpot_s,
            )
            for context_part in parts
        ]
        rows.append(_concatenate(row, axis=1))
    return _concatenate(rows, axis=0)


def _concatenate(parts: Sequence[BestOfDraft], axis: int) -> BestOfDraft:
    """Join the arrays of adjacent chunks along an axis of the grid."""
    return BestOfDraft(
        draft=parts[0].draft,
        gamma=np.concatenate([part.gamma for part in parts], axis),
        kv_budget=np.concatenate([part.kv_budget for part in parts], axis),
        speedup=np.concatenate([part.speedup for part in parts], axis),
        speedup_low=np.concatenate([part.speedup_low for part in parts], axis),
        speedup_high=np.concatenate([part.speedup_high for part in parts], axis),
        tpot_s=np.concatenate([part.tpot_s for part in parts], axis),
        minimum_acceptance_rate=np.concatenate([part.minimum_acceptance_rate for part in parts], axis),
        feasible=np.concatenate([part.feasible for part in parts], axis),
    )


def _chunks(axis: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Split an axis into pieces of at most `size` values, and at least one."""
    step = max(1, size)
    return [axis[start : start + step] for start in range(0, len(axis), step)]


class _Lengths(TypedDict):
    context_len: Array
    max_context_len: Array


def _lengths(contexts: NDArray[np.int64], output_len: int) -> _Lengths:
    """Mean and final context of sequences that begin to decode at these contexts. [tokens]"""
    return {
        "context_len": np.asarray(contexts + output_len / 2, np.float64),
        "max_context_len": np.asarray(contexts + output_len, np.float64),
    }


def _best_of_chunk(
    draft: Draft,
    e: Evaluation,
    gammas: NDArray[np.int64],
    budgets: Array,
    contexts: NDArray[np.int64],
    max_tpot_s: float | None,
) -> BestOfDraft:
    """Choose gamma and budget in an evaluation over [batch, context, gamma, budget]."""
    r = e.round
    low, tpot_s = e.speedup_low, r.speculative_tpot_s
    shape = np.broadcast_shapes(low.shape, tpot_s.shape, e.fits_in_memory.shape, (len(gammas), len(budgets)))
    feasible = np.broadcast_to(e.fits_in_memory, shape)
    if max_tpot_s is not None:
        feasible = feasible & ~(tpot_s > max_tpot_s)  # keeps NaN: an unknown time does not violate the limit
    if draft.sparse:  # a budget below the context, as in `candidates`
        feasible = feasible & ((budgets < contexts) | (budgets == budgets.min()))
    least = np.broadcast_to(r.minimum_acceptance_rate(), shape) if np.isnan(low).all() else np.full(shape, np.nan)
    merit = np.where(feasible, low if not np.isnan(low).all() else -np.nan_to_num(least, nan=2.0), -np.inf)
    flat = merit.reshape(*shape[:2], -1).argmax(axis=-1)

    any_feasible = np.asarray(feasible.any(axis=(2, 3)))

    def chosen(values: Array) -> Array:
        whole = np.broadcast_to(values, shape).reshape(*shape[:2], -1)
        return np.where(any_feasible, np.take_along_axis(whole, flat[..., None], -1)[..., 0], np.nan)

    return BestOfDraft(
        draft=draft,
        gamma=gammas[flat // len(budgets)],
        kv_budget=budgets[flat % len(budgets)],
        speedup=chosen(r.speedup),
        speedup_low=chosen(low),
        speedup_high=chosen(e.speedup_high),
        tpot_s=chosen(tpot_s),
        minimum_acceptance_rate=chosen(least),
        feasible=any_feasible,
    )


def policy_table(found: Sweep, hysteresis: float = 0.05) -> PolicyTable:
    """Convert a sweep to the policy table of a plan; infeasible cells get no speculation.

    Args:
        found: The sweep.
        hysteresis: Share by which another strategy must be better before an engine switches. [0-1]
    """
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
