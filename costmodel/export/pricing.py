"""The price of an exported command: what it runs after the plan was reduced to one engine's options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from ..base.units import format_bytes
from ..models.transformer import TransformerConfig
from ..plans.plan import Plan
from ..speculation.acceptance import AcceptanceCurve, implied_acceptance_rate
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation, evaluate_grid
from ..speculation.memory import usable_bytes
from .document import Options, Served

SAME = 1e-6  # relative difference of acceptance rates that are the same


@dataclass(frozen=True)
class Price:
    """What a command is predicted to do.

    Attributes:
        speedup, speedup_low, speedup_high: Output rate over that of the planned batch without speculation, with the command's
            types; NaN if the acceptance is unknown. [ratio]
        planned_speedup: Of the plan. [ratio]
        tpot_s: Time per output token of a sequence. [s]
        throughput_tokens_per_s: Output rate of all servers while decoding. [tokens/s]
        memory_bytes, usable_bytes: Of one GPU: required, and available to an engine. [bytes]
    """

    speedup: float
    speedup_low: float
    speedup_high: float
    planned_speedup: float
    tpot_s: float
    throughput_tokens_per_s: float
    memory_bytes: float
    usable_bytes: float

    @property
    def fits(self) -> bool:
        """Whether the command fits in memory."""
        return self.memory_bytes <= self.usable_bytes

    @property
    def known(self) -> bool:
        """Whether the acceptance of the command's draft is known."""
        return not np.isnan(self.speedup)

    @property
    def pays(self) -> bool:
        """Whether the command decodes at least as fast as without speculation."""
        return self.speedup >= 1 - 1e-9

    def __str__(self) -> str:
        memory = f"{format_bytes(self.memory_bytes)} of {format_bytes(self.usable_bytes)} usable on each GPU"
        if not self.known:
            return f"acceptance unknown, {memory}; planned {self.planned_speedup:.2f}x"
        interval = f"{self.speedup_low:.2f}x to {self.speedup_high:.2f}x"
        return f"{self.speedup:.2f}x ({interval}), {memory}; planned {self.planned_speedup:.2f}x"


@dataclass(frozen=True)
class Networks:
    """The models of a plan, resolved, in the types of their checkpoints.

    Attributes:
        target, draft, head: `draft` for a draft model, `head` for a prediction layer with a checkpoint of its own.
        curves: Acceptance curves to look up.
    """

    target: TransformerConfig
    draft: TransformerConfig | None = None
    head: TransformerConfig | None = None
    curves: tuple[AcceptanceCurve, ...] = ()


class _Point(TypedDict):
    batch_size: int
    context_len: float
    max_context_len: float
    kv_budget: float


def price(plan: Plan, served: Served, machine: Deployment, networks: Networks, options: Options) -> Price:
    """Price what a command runs.

    Args:
        plan: The plan.
        served: What the command runs.
        machine: The planned machine; its target is replaced.
        networks: The models.
        options: Choices of the user; the exported context is priced.
    """
    target = networks.target.compressed(weight_dtype=served.weight_dtype, kv_dtype=served.kv_dtype)
    deployment = replace(
        machine,
        target=target,
        num_gpus=served.replicas * served.tensor_parallel,
        tensor_parallel=served.tensor_parallel,
    )
    mean, final = _lengths(plan, served, options)
    plain = evaluate_grid(deployment, Draft(), batch_size=plan.workload.batch_size, context_len=mean)
    plain_tokens_per_s = plan.workload.batch_size / float(plain.round.target_step_s)
    draft, gamma = _draft(served, target, networks), served.strategy.gamma
    inputs: _Point = {
        "batch_size": served.batch_size,
        "context_len": mean,
        "max_context_len": final,
        "kv_budget": float(served.strategy.kv_budget or np.inf),
    }
    found, carried = _evaluated(plan, served, deployment, draft, inputs, networks.curves)
    tpot_s = float(found.round.speculative_tpot_s)
    speedup = served.batch_size / tpot_s / plain_tokens_per_s
    own = float(found.round.speedup)
    low, high = float(found.speedup_low) / own, float(found.speedup_high) / own
    if carried and gamma:  # a rate that was given to the export was uncertain in the plan
        p = plan.prediction
        low = min(low, p.predicted_speedup_low / p.predicted_speedup)
        high = max(high, p.predicted_speedup_high / p.predicted_speedup)
    return Price(
        speedup=speedup,
        speedup_low=speedup * low,
        speedup_high=speedup * high,
        planned_speedup=plan.prediction.predicted_speedup,
        tpot_s=tpot_s,
        throughput_tokens_per_s=served.batch_size / tpot_s,
        memory_bytes=float(found.memory.total_bytes),
        usable_bytes=usable_bytes(machine.hardware),
    )


def _lengths(plan: Plan, served: Served, options: Options) -> tuple[float, float]:
    """Mean context of a running sequence, and the context that memory must hold. [tokens]"""
    output_len = plan.workload.output_len
    context = options.context_len or plan.workload.context_len
    mean, final = context + output_len / 2, float(context + output_len)
    if plan.mix is not None and options.context_len is None:
        mean, final = plan.mix.mean_context_len, plan.mix.mean_final_len
    return mean, float(served.max_len - served.strategy.gamma) if served.allocates_longest else final


def _draft(served: Served, target: TransformerConfig, networks: Networks) -> Draft:
    """The draft as the engine runs it."""
    strategy, shared_by = served.strategy, served.draft_tensor_parallel
    if served.copies_target:
        copy = target.compressed(weight_dtype=strategy.weight_dtype, kv_dtype=served.draft_kv_dtype)
        return Draft("model", "full", copy, shared_by)
    if strategy.draft_kind == "model":
        assert networks.draft is not None
        return Draft("model", "full", networks.draft.compressed(kv_dtype=served.draft_kv_dtype), shared_by)
    head = networks.head if strategy.draft_kind in ("eagle3", "mtp") else None
    return Draft(strategy.draft_kind, strategy.kv_policy, None, None, strategy.kv_dtype, strategy.weight_dtype, head)


def _evaluated(
    plan: Plan,
    served: Served,
    deployment: Deployment,
    draft: Draft,
    inputs: _Point,
    curves: tuple[AcceptanceCurve, ...],
) -> tuple[Evaluation, bool]:
    """The evaluation, and whether its acceptance is the plan's: of the same draft, perhaps with another length or more KV."""
    planned, strategy = plan.strategy, served.strategy
    looked_up = evaluate_grid(deployment, draft, gamma=strategy.gamma, curves=curves, **inputs)
    if not strategy.gamma or planned.draft_kind != strategy.draft_kind or planned.draft_model != strategy.draft_model:
        return looked_up, False
    length, rate = plan.prediction.predicted_mean_acceptance_length, plan.prediction.predicted_acceptance_rate
    if rate is None:
        rate = float(implied_acceptance_rate(planned.gamma, length))
    known = float(looked_up.acceptance_rate)
    more_kv = planned.kv_policy != strategy.kv_policy
    if not np.isnan(known) and (more_kv or abs(known - rate) <= SAME):
        return looked_up, False
    if strategy.gamma == planned.gamma:
        return evaluate_grid(deployment, draft, gamma=strategy.gamma, mean_acceptance_length=length, **inputs), True
    return evaluate_grid(deployment, draft, gamma=strategy.gamma, acceptance_rate=rate, **inputs), True
