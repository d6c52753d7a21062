"""What one server can run of a plan: engines load one draft, and know batch sizes at most.

A plan may hold a policy table, with a strategy for every batch size and context. From it remain the column of one
context, and of that column the rows whose draft is the one that the server loads; the other rows become plain decoding, which
is no slower than not speculating. Everything left out on the way is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from ..speculation.acceptance import implied_acceptance_rate, mean_acceptance_length
from .document import Options

Supports = Callable[[Strategy], bool]


@dataclass(frozen=True)
class DraftSchedule:
    """One draft, and how many tokens it drafts at every batch size.

    Attributes:
        strategy: The draft: that of `batch_size` if it runs, else that of the largest batch size; `NO_SPECULATION` for none.
        rows: (least batch size, most batch size, gamma), from 1 on without gaps; the last row holds beyond its end. Batch sizes
            are those of one server. [sequences, sequences, tokens]
        batch_size: The one that matters most. [sequences]
        notes: What was left out.
    """

    strategy: Strategy
    rows: tuple[tuple[int, int, int], ...]
    batch_size: int
    notes: tuple[str, ...]

    def gamma(self, batch_size: int) -> int:
        """Draft tokens per round at a batch size. [tokens]"""
        return next((gamma for _, most, gamma in self.rows if batch_size <= most), self.rows[-1][2])

    @property
    def max_gamma(self) -> int:
        """The largest gamma of any row. [tokens]"""
        return max(gamma for *_, gamma in self.rows)

    @property
    def varies(self) -> bool:
        """Gamma depends on the batch size."""
        return len({gamma for *_, gamma in self.rows}) > 1

    @property
    def rows_text(self) -> str:
        """The rows in words."""
        return ", ".join(f"{gamma} at batch {_span(least, most)}" for least, most, gamma in self.rows)


def replicas(plan: Plan) -> int:
    """Servers that the plan's GPUs make."""
    return plan.hardware.num_gpus // plan.hardware.tensor_parallel


def server_batch_size(plan: Plan) -> int:
    """The plan's batch size, of one server. [sequences]"""
    return -(-plan.workload.batch_size // replicas(plan))


def server_ranges(batch_sizes: Sequence[int], servers: int) -> list[tuple[int, int, int]]:
    """(least, most, batch size of the table) for the batch sizes of one of several servers that share each batch evenly."""
    ends = [batch_size // servers for batch_size in batch_sizes[:-1]] + [-(-batch_sizes[-1] // servers)]
    ranges = zip(pairwise([0, *ends]), batch_sizes, strict=True)
    return [(before + 1, end, batch_size) for (before, end), batch_size in ranges if end > before]


def planned_strategies(plan: Plan, options: Options) -> list[tuple[int, int, Strategy]]:
    """(least, most batch size of one server, strategy) at the context that is exported, equal neighbours merged."""
    if plan.policy is None:
        return [(1, server_batch_size(plan), plan.strategy)]
    context = options.context_len or plan.workload.context_len
    column: list[tuple[int, int, Strategy]] = []
    for least, most, batch_size in server_ranges(plan.policy.batch_sizes, replicas(plan)):
        strategy = plan.policy.at(batch_size, context)
        if column and column[-1][2] == strategy:
            least = column.pop()[0]
        column.append((least, most, strategy))
    return column


def draft_schedule(
    plan: Plan, options: Options, supports: Supports, *, batch_size: int | None = None, every_context: bool = False
) -> DraftSchedule:
    """What a server that `runs` some strategies makes of a plan.

    Args:
        plan: The plan.
        options: What the user chose.
        runs: Whether the engine can run a strategy.
        batch_size: Whose strategy matters most; None for the plan's own, of one server. [sequences]
        every_context: The draft may come from another column of the policy table.
    """
    column = planned_strategies(plan, options)
    batch_size = batch_size or server_batch_size(plan)
    here = next((strategy for _, most, strategy in column if batch_size <= most), column[-1][2])
    elsewhere = plan.policy.strategies if every_context and plan.policy else []
    strategies = [here, *(strategy for *_, strategy in reversed(column)), *elsewhere]
    served = next((s for s in strategies if s.draft_kind != "none" and supports(s)), NO_SPECULATION)
    rows: list[tuple[int, int, int]] = []
    for least, most, strategy in column:
        gamma = strategy.gamma if strategy.family == served.family else 0
        if rows and rows[-1][2] == gamma:
            least = rows.pop()[0]
        rows.append((least, most, gamma))
    notes = [*_plan_notes(plan), *_left_out(column, served, supports), *_draft_notes(served)]
    return DraftSchedule(served, tuple(rows), batch_size, tuple(notes))


def column_notes(plan: Plan, options: Options) -> list[str]:
    """What exporting one column of the policy table loses."""
    table, context = plan.policy, options.context_len or plan.workload.context_len
    if table is None:
        return [] if options.context_len is None else ["The plan has no policy table from which to take another context."]
    if all(len(set(row)) == 1 for row in table.choice):
        return []
    return [f"The policy table also depends on context; exported is its column for {context} tokens, used at every context."]


def hysteresis_notes(plan: Plan, served: DraftSchedule) -> list[str]:
    """A table's hysteresis is for engines that compare strategies while running."""
    if plan.policy is None or not served.varies or not plan.policy.hysteresis:
        return []
    return [f"The table's hysteresis of {plan.policy.hysteresis:.0%} is dropped: the draft length changes exactly at the bounds."]


def one_gamma(served: DraftSchedule, engine: str) -> tuple[int, list[str]]:
    """Gamma, and what is lost, for an engine with one draft length for all batch sizes."""
    gamma = served.gamma(served.batch_size)
    lost = f"{engine} has one draft length: {gamma}, that of batch {served.batch_size}; planned are {served.rows_text}."
    return gamma, [lost] if served.varies else []


def target_path(plan: Plan, options: Options) -> tuple[str, list[str]]:
    """Where the target is loaded from."""
    if options.model_dir is not None:
        return options.model_dir, []
    return plan.target.name, [f"The target is named as in the plan, {plan.target.name}: --model-dir names its checkpoint."]


def draft_path(plan: Plan, strategy: Strategy, options: Options) -> tuple[str | None, list[str]]:
    """Where the draft is loaded from; None where it needs no checkpoint of its own."""
    if strategy.draft_kind in ("none", "ngram", "mtp"):
        unused = options.draft_dir is not None
        return None, [f"{strategy.draft_text} needs no checkpoint of its own: --draft-dir is not used."] if unused else []
    if options.draft_dir is not None:
        return options.draft_dir, []
    if strategy.draft_kind == "self" and strategy.weight_dtype is None:
        return target_path(plan, options)[0], []
    if strategy.draft_model is not None:
        name = strategy.draft_model
        return name, [f"The draft is named as in the plan, {name}: --draft-dir names its checkpoint."]
    what = "EAGLE3_HEAD" if strategy.draft_kind == "eagle3" else f"{str(strategy.weight_dtype).upper()}_COPY_OF_THE_TARGET"
    return f"PATH_TO_{what}", [f"PATH_TO_{what} is a placeholder: --draft-dir names the checkpoint."]


def replayed(plan: Plan, served: DraftSchedule) -> tuple[float | None, list[str]]:
    """The predicted acceptance rate of what is served, each token given those before it; None where none was predicted. [0-1]"""
    planned, draft = plan.strategy, served.strategy
    if planned.family != draft.family or planned.kv_budget != draft.kv_budget:
        return None, [f"Acceptance is not replayed: the plan predicts it for {planned}, not for {draft.draft_text}."]
    rate = plan.prediction.predicted_acceptance_rate
    if rate is None:
        rate = float(implied_acceptance_rate(planned.gamma, plan.prediction.predicted_mean_acceptance_length))
    where = f"the rate predicted at context {plan.workload.context_len}"
    return rate, [f"Acceptance is simulated at {rate:.4f}, {where}: what is generated is not the model's text."]


def unconditional_rates(acceptance_rate: float, gamma: int) -> list[float]:
    """The chance that the first i draft tokens are all accepted, for i from 1 to gamma. [0-1]

    >>> unconditional_rates(0.5, 3)
    [0.5, 0.25, 0.125]
    """
    return [round(acceptance_rate**i, 6) for i in range(1, gamma + 1)]


def replayed_length(acceptance_rate: float, gamma: int) -> float:
    """Tokens a round emits at a rate, bonus token included, rounded. [tokens]"""
    return round(float(mean_acceptance_length(gamma, acceptance_rate)), 4)


def names_note(source: str, options: Options) -> str:
    """Which version of the engine the option names are from."""
    asked = f"; not checked against version {options.engine_version}" if options.engine_version else ""
    return f"Option names are those of {source}{asked}."


def copies_target(strategy: Strategy) -> bool:
    """A self draft with all its KV, smaller in type only: a second, quantised copy of the target can stand for it."""
    return strategy.draft_kind == "self" and strategy.kv_policy == "full"


def _plan_notes(plan: Plan) -> list[str]:
    notes = []
    if replicas(plan) > 1:
        servers = f"{replicas(plan)} servers of {plan.hardware.tensor_parallel} GPUs"
        batch = f"the plan's batch of {plan.workload.batch_size} is {server_batch_size(plan)} for each"
        notes.append(f"This is one of {servers}: start them all. Batch sizes are those of one server; {batch}.")
    planned = plan.policy and plan.policy.at(plan.workload.batch_size, plan.workload.context_len)
    if planned and planned != plan.strategy:
        notes.append(f"The policy table is exported; for the plan's own workload it wants {planned}, the plan {plan.strategy}.")
    return notes


def _left_out(column: Sequence[tuple[int, int, Strategy]], strategy: Strategy, supports: Supports) -> list[str]:
    notes = []
    for least, most, lost in column:
        if lost.draft_kind != "none" and lost.family != strategy.family:
            why = "a server loads one draft" if supports(lost) else "which this engine cannot run"
            notes.append(f"Batch {_span(least, most)} is planned with {lost}, {why}: taken as plain decoding.")
    return notes


def _draft_notes(strategy: Strategy) -> list[str]:
    if strategy.draft_kind == "model" and strategy.kv_policy != "full":
        planned = f"{strategy.kv_policy} budget {strategy.kv_budget}"
        return [
            f"The draft model reads its whole KV cache, not {planned}: it is slower than predicted, most of all at long context."
        ]
    if copies_target(strategy):
        return ["The draft is a second copy of the target, with weights and a KV cache of its own that the plan's memory lacks."]
    return []


def _span(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
