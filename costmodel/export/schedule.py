"""Reduction of a plan to what one server can run: a single draft, with a draft length by batch size.

A plan may have a policy table with a strategy for every batch size and context length. Engines cannot switch by context or
load several drafts. So one column of the table is used, rows with other drafts become no speculation, and notes say what was
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from ..speculation.acceptance import implied_acceptance_rate, mean_acceptance_length
from .checkpoints import quantised, repository
from .document import Options

Supports = Callable[[Strategy], bool]


@dataclass(frozen=True)
class DraftSchedule:
    """One draft, and its draft length at every batch size of one server.

    Attributes:
        strategy: The draft planned for `batch_size` if the engine supports it, otherwise for the largest possible batch size;
            `NO_SPECULATION` if none is supported.
        rows: (smallest batch size, largest batch size, gamma), contiguous from 1; the last row also applies to larger batch
            sizes. [sequences, sequences, tokens]
        batch_size: The most important batch size. [sequences]
        notes: Sentences on what was dropped.
    """

    strategy: Strategy
    rows: tuple[tuple[int, int, int], ...]
    batch_size: int
    notes: tuple[str, ...]

    def gamma(self, batch_size: int) -> int:
        """Return the draft length at a batch size. [tokens]"""
        return next((gamma for _, most, gamma in self.rows if batch_size <= most), self.rows[-1][2])

    @property
    def max_gamma(self) -> int:
        """Largest draft length of any row. [tokens]"""
        return max(gamma for *_, gamma in self.rows)

    @property
    def varies(self) -> bool:
        """True if the draft length depends on the batch size."""
        return len({gamma for *_, gamma in self.rows}) > 1

    @property
    def rows_text(self) -> str:
        """The rows as text."""
        return ", ".join(f"{gamma} at batch {_span(least, most)}" for least, most, gamma in self.rows)


def replicas(plan: Plan) -> int:
    """Return the number of servers of a plan: one per replica."""
    return plan.hardware.num_gpus // plan.hardware.tensor_parallel


def server_batch_size(plan: Plan) -> int:
    """Return the plan's batch size per server. [sequences]"""
    return -(-plan.workload.batch_size // replicas(plan))


def server_ranges(batch_sizes: Sequence[int], servers: int) -> list[tuple[int, int, int]]:
    """Convert batch sizes of a policy table to batch size ranges of one server, if servers share each batch evenly.

    Args:
        batch_sizes: Upper bounds of the rows, ascending. [sequences]
        servers: Number of servers.

    Returns:
        (smallest batch size of a server, largest batch size of a server, batch size of the table).
    """
    ends = [batch_size // servers for batch_size in batch_sizes[:-1]] + [-(-batch_sizes[-1] // servers)]
    ranges = zip(pairwise([0, *ends]), batch_sizes, strict=True)
    return [(before + 1, end, batch_size) for (before, end), batch_size in ranges if end > before]


def planned_strategies(plan: Plan, options: Options) -> list[tuple[int, int, Strategy]]:
    """Return the planned strategies at the exported context length, merging equal neighbours.

    Args:
        plan: The plan.
        options: Choices of the user.

    Returns:
        (smallest batch size, largest batch size, strategy), for batch sizes of one server.
    """
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
    """Reduce a plan to one draft with a draft length by batch size.

    Args:
        plan: The plan.
        options: Choices of the user.
        supports: Whether the engine can run a strategy.
        batch_size: The most important batch size; None for the plan's batch size per server. [sequences]
        every_context: Whether the draft may come from another column of the policy table.
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
    """Note what is lost by exporting one column of the policy table."""
    table, context = plan.policy, options.context_len or plan.workload.context_len
    if table is None:
        return [] if options.context_len is None else ["`context_len` is ignored: the plan has no policy table."]
    if all(len(set(row)) == 1 for row in table.choice):
        return []
    return [f"The policy table also depends on context; its column for {context} tokens is used at every context."]


def hysteresis_notes(plan: Plan, served: DraftSchedule) -> list[str]:
    """Note that the hysteresis of the policy table is lost."""
    if plan.policy is None or not served.varies or not plan.policy.hysteresis:
        return []
    return [f"The hysteresis of {plan.policy.hysteresis:.0%} is dropped: the draft length changes exactly at the bounds."]


def one_gamma(served: DraftSchedule, engine: str) -> tuple[int, list[str]]:
    """Return the draft length for an engine that has only one, and notes on what is lost. [tokens]"""
    gamma = served.gamma(served.batch_size)
    lost = f"{engine} has a single draft length: {gamma}, as planned for batch {served.batch_size}. The plan: {served.rows_text}."
    return gamma, [lost] if served.varies else []


def draft_path(plan: Plan, strategy: Strategy, options: Options, target: str) -> tuple[str | None, list[str]]:
    """Return the path of the draft, or None if it has no checkpoint of its own; and notes.

    Args:
        plan: The plan.
        strategy: The exported strategy.
        options: Choices of the user.
        target: The target's checkpoint.
    """
    if strategy.draft_kind in ("none", "ngram", "mtp"):
        unused = options.draft_dir is not None
        return None, [f"`draft_dir` is ignored: {strategy.draft_text} has no checkpoint of its own."] if unused else []
    given = options.draft_dir or (plan.draft_checkpoint if strategy.draft_kind == "eagle3" else None)
    if given is not None:
        return given, []
    if strategy.draft_kind == "self" and strategy.weight_dtype is None:
        return target, []
    if strategy.draft_model is not None:
        name = strategy.draft_model
        own = plan.draft.checkpoint if plan.draft else None
        return own or repository(name) or name, [f"The draft has the name in the plan, {name}; `draft_dir` sets its checkpoint."]
    if strategy.weight_dtype is not None and (known := quantised(plan.target.name, strategy.weight_dtype)) is not None:
        return known, [f"{known} is the draft's quantised copy of the target; `draft_dir` sets another."]
    what = "EAGLE3_HEAD" if strategy.draft_kind == "eagle3" else f"{str(strategy.weight_dtype).upper()}_COPY_OF_THE_TARGET"
    return f"PATH_TO_{what}", [f"PATH_TO_{what} is a placeholder; `draft_dir` sets the checkpoint."]


def replayed(plan: Plan, served: DraftSchedule) -> tuple[float | None, list[str]]:
    """Return the predicted acceptance rate of the exported draft, or None if the plan has none; and notes. [0-1]"""
    planned, draft = plan.strategy, served.strategy
    if planned.family != draft.family or planned.kv_budget != draft.kv_budget:
        return None, [f"Acceptance is not simulated: the plan predicts it for {planned}, not for {draft.draft_text}."]
    rate = plan.prediction.predicted_acceptance_rate
    if rate is None:
        rate = float(implied_acceptance_rate(planned.gamma, plan.prediction.predicted_mean_acceptance_length))
    where = f"the rate predicted at context {plan.workload.context_len}"
    return rate, [f"Acceptance is simulated at {rate:.4f}, {where}: the output is not the output of the model."]


def unconditional_rates(acceptance_rate: float, gamma: int) -> list[float]:
    """Return the probability that the first i draft tokens are all accepted, for i from 1 to gamma. [0-1]

    Args:
        acceptance_rate: Acceptance probability of a token, given that all earlier ones were accepted. [0-1]
        gamma: Draft tokens per round. [tokens]

    >>> unconditional_rates(0.5, 3)
    [0.5, 0.25, 0.125]
    """
    return [round(acceptance_rate**i, 6) for i in range(1, gamma + 1)]


def replayed_length(acceptance_rate: float, gamma: int) -> float:
    """Return the mean tokens per round, bonus token included, rounded to four decimals. [tokens]"""
    return round(float(mean_acceptance_length(gamma, acceptance_rate)), 4)


def names_note(source: str, options: Options) -> str:
    """Note the version of the engine that the option names come from."""
    asked = f"; not verified for version {options.engine_version}" if options.engine_version else ""
    return f"Option names are from {source}{asked}."


def copies_target(strategy: Strategy) -> bool:
    """True for a self draft that differs from the target only in dtypes: a quantised copy of the target can replace it."""
    return strategy.draft_kind == "self" and strategy.kv_policy == "full"


def _plan_notes(plan: Plan) -> list[str]:
    notes = []
    if replicas(plan) > 1:
        servers = f"{replicas(plan)} servers of {plan.hardware.tensor_parallel} GPUs"
        batch = f"the planned batch of {plan.workload.batch_size} becomes {server_batch_size(plan)}"
        notes.append(f"Replicas: {servers}. Batch sizes are per server: {batch}.")
    planned = plan.policy and plan.policy.at(plan.workload.batch_size, plan.workload.context_len)
    if planned and planned != plan.strategy:
        notes.append(f"The policy table is exported. For the planned workload it has {planned}; the plan has {plan.strategy}.")
    return notes


def _left_out(column: Sequence[tuple[int, int, Strategy]], strategy: Strategy, supports: Supports) -> list[str]:
    notes = []
    for least, most, lost in column:
        if lost.draft_kind != "none" and lost.family != strategy.family:
            why = "a server loads only one draft" if supports(lost) else "the engine does not support it"
            notes.append(f"Batch {_span(least, most)} runs without speculation instead of {lost}: {why}.")
    return notes


def _draft_notes(strategy: Strategy) -> list[str]:
    if strategy.draft_kind == "model" and strategy.kv_policy != "full":
        planned = f"{strategy.kv_policy} budget {strategy.kv_budget}"
        return [
            f"The draft model reads its full KV cache instead of {planned}; it is slower than predicted, mostly at long contexts."
        ]
    if copies_target(strategy):
        return ["The draft is a second copy of the target, with weights and a KV cache of its own; they are in the price below."]
    return []


def _span(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
