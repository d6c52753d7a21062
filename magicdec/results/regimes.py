"""Where the picture changes for a model on a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from magicdec.costmodel.base.units import format_tokens
from magicdec.costmodel.planning.regimes import LARGE_BATCH, SMALL_BATCH

from ..inputs.scenario import Scenario
from ..render.tables import text_table
from .base import Result, Row


@dataclass(frozen=True)
class BudgetNeed:
    """What a KV budget needs for the wanted speedup.

    Attributes:
        kv_budget: Entries the draft reads. [tokens]
        minimum_acceptance_rate: Required, at the best gamma; None where no rate suffices. [0-1]
        acceptance_rate: Available, from the best curve known; None without one. [0-1]
        admissible: The available rate suffices; None if it is unknown.
    """

    kv_budget: int
    minimum_acceptance_rate: float | None
    acceptance_rate: float | None
    admissible: bool | None


@dataclass(frozen=True, repr=False, eq=False)
class Regimes(Result):
    """Ridge points, bottlenecks, critical context, required acceptance and the crossover of two drafts.

    Attributes:
        scenario: Model and machine.
        draft: The self draft, in words.
        batch_size, context_len: Where budgets are compared. [sequences, tokens]
        speedup: The wanted speedup. [ratio]
        ridge_points: Arithmetic intensity above which a pass is compute-bound, by type, from the datasheet. [FLOP/byte]
        bounds: Bottleneck of an autoregressive step by batch size and context.
        critical_context_len: From this context on a large batch gains more than a small one; None if there is none. [tokens]
        budgets: What each KV budget needs.
        small_draft: A draft model to compare with, if one was given.
        crossover_batch_size: From this batch size on self-speculation overtakes it; None if it never does.
    """

    scenario: Scenario
    draft: str
    batch_size: int
    context_len: int
    speedup: float
    ridge_points: dict[str, float]
    bounds: dict[int, dict[int, str]]
    critical_context_len: float | None
    budgets: tuple[BudgetNeed, ...]
    small_draft: str | None = None
    crossover_batch_size: int | None = None

    @property
    def headline(self) -> str:
        critical = self.critical_context_len
        where = "no context" if critical is None else f"a context of about {critical:,.0f} tokens"
        return f"{self.scenario}, {self.draft}: large batches gain more from {where} on"

    def rows(self) -> list[Row]:
        return [asdict(budget) for budget in self.budgets]

    def to_dict(self) -> dict[str, object]:
        return {
            "ridge_points_flop_per_byte": dict(self.ridge_points),
            "critical_context_len": self.critical_context_len,
            "bounds": {str(batch): {str(context): bound for context, bound in row.items()} for batch, row in self.bounds.items()},
            "wanted_speedup": self.speedup,
            "budgets": [asdict(budget) for budget in self.budgets],
            "crossover_batch_size": self.crossover_batch_size,
        }

    def __str__(self) -> str:
        bounds = [[str(batch), *row.values()] for batch, row in self.bounds.items()]
        contexts = [format_tokens(context) for context in next(iter(self.bounds.values()))]
        budgets = [
            [str(b.kv_budget), _rate(b.minimum_acceptance_rate), _rate(b.acceptance_rate), _yes(b.admissible)] for b in self.budgets
        ]
        ridges = ", ".join(f"{value:.0f} in {dtype}" for dtype, value in self.ridge_points.items())
        critical = self.critical_context_len
        when = "at no context up to 131,072" if critical is None else f"from a context of about {critical:,.0f} tokens on"
        wanted = f"a speedup of {self.speedup:.2f}x at batch {self.batch_size}, context {format_tokens(self.context_len)}"
        lines = [
            f"{self.scenario.deployment.hardware.name}: compute-bound above {ridges} FLOP/byte (datasheet)",
            "",
            "bottleneck of an autoregressive step",
            text_table(["batch \\ context", *contexts], bounds),
            "",
            f"{self.draft}: batch {LARGE_BATCH} gains more than batch {SMALL_BATCH} {when}",
            "",
            f"acceptance rate for {wanted}, at the best gamma",
            text_table(["KV budget", "required", "available", "sufficient"], budgets),
        ]
        if self.small_draft is not None:
            found = self.crossover_batch_size
            since = "at no batch size up to 4096" if found is None else f"from batch size {found} on"
            lines += ["", f"self-speculation overtakes {self.small_draft} {since}, at context {format_tokens(self.context_len)}"]
        return "\n".join(lines)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "-"}[value]
