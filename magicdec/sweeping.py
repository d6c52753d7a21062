"""The whole map over batch size and context: its table for a plan, and how people see it."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.planning.sweep import Sweep, policy_table, sweep
from magicdec.costmodel.plans.policy import PolicyTable

from . import text
from .api import Question
from .planning import Wishes

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT_LENS = (1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)


@dataclass(frozen=True)
class Map:
    """A sweep for a plan and for people.

    Attributes:
        policy: Its table.
        lines: For people.
        typical: Batch size and context of the cell that gains most; of the largest that is served, where none gains.
    """

    policy: PolicyTable
    lines: list[str]
    typical: tuple[int, int]


def swept(question: Question, wanted: Wishes, context_len: int | None) -> Map:
    """The map over the usual axes and the asked values."""
    longest = question.deployment.target.max_context_len
    contexts = {length for length in CONTEXT_LENS if length <= longest} | ({context_len} if context_len else set())
    batches = sorted({*BATCH_SIZES, *wanted.batch_sizes})
    found = _sweep(question, wanted, batches, sorted(contexts or {longest}), wanted.gammas)
    return Map(policy_table(found), ["", *sweep_lines(found, _regrets(question, wanted, found))], _typical(found))


def _typical(found: Sweep) -> tuple[int, int]:
    sizes = np.multiply.outer(found.batch_sizes, found.context_lens) / 1e12  # decides between equals
    merit = np.where(found.choice > -2, found.speedup_low + sizes, -1.0)
    i, j = np.unravel_index(merit.argmax(), merit.shape)
    return int(found.batch_sizes[i]), int(found.context_lens[j])


def _sweep(question: Question, wanted: Wishes, batches: Sequence[int], contexts: Sequence[int], gammas: Sequence[int]) -> Sweep:
    return sweep(
        question.deployment,
        wanted.found_drafts(question.deployment),
        batch_sizes=batches,
        context_lens=contexts,
        gammas=gammas,
        kv_budgets=wanted.budgets,
        curves=question.model.curves,
        acceptance_rate=wanted.acceptance_rate,
        acceptance_by_position=wanted.acceptance_by_position,
        max_tpot_s=wanted.max_tpot_s,
    )


def _regrets(question: Question, wanted: Wishes, found: Sweep) -> dict[str, float]:
    """How much more time per token simple choices take than the map, on average over its cells. [ratio]"""
    regrets = {"never speculating": found.regret(1.0)}
    if found.knows_acceptance:
        axes = found.batch_sizes.tolist(), found.context_lens.tolist()
        always = {g: found.regret(_sweep(question, wanted, *axes, [g]).forced_speedup) for g in wanted.gammas}
        best = min(always, key=lambda gamma: always[gamma])
        regrets[f"always speculating, with gamma {best}, the best of fixed ones,"] = always[best]
    return regrets


def sweep_lines(found: Sweep, regrets: Mapping[str, float]) -> list[str]:
    """The map for people: the chosen strategy's speedup in every cell, the strategies, and what simple choices would lose."""
    table = policy_table(found)
    letters = [*string.ascii_letters, *map(str, range(1000))]
    marks = ["-", *letters]  # the first strategy is plain decoding
    rows = [
        [str(batch), *(_cell(found, marks[table.choice[i][j]], i, j) for j in range(len(table.context_lens)))]
        for i, batch in enumerate(table.batch_sizes)
    ]
    header = ["batch \\ context", *(format_tokens(length) for length in table.context_lens)]
    return [
        text.table(header, rows),
        "",
        *(f"{mark}  {one}" for mark, one in zip(letters, table.strategies[1:], strict=False)),
        "-  plain decoding",
        *([".. does not fit"] if (found.choice == -2).any() else []),
        "",
        *(
            f"{choice} would take {max(more, 0.0):.0%} more time per token, on average over the map"
            for choice, more in regrets.items()
        ),
    ]


def _more(part: float) -> str:
    """A share of time more; less where a bolder choice than the map's, which goes by lower ends, is better on average."""
    return f"{part:.0%} more" if part >= 0 else f"{-part:.0%} less"


def _cell(found: Sweep, mark: str, i: int, j: int) -> str:
    if found.choice[i, j] == -2:
        return ".."
    return mark if found.choice[i, j] == -1 else f"{found.speedup[i, j]:.2f}{mark}"
