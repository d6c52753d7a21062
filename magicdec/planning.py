"""From a question to a plan: candidates priced and ranked, described, and put into a plan file's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS, Candidate, candidates, rank
from magicdec.costmodel.plans.plan import Plan, PredictedRound, fingerprint
from magicdec.costmodel.plans.policy import PolicyTable
from magicdec.costmodel.plans.workload import RequestTrace, Workload
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.serving import serving

from .api import Question, ask
from .names import DEFAULT_KV_BUDGET, executed, find_draft

SELF_POLICIES = ("streaming_llm", "snapkv")  # what a self draft may read, unless told otherwise
MODEL_POLICIES = ("full", "streaming_llm")


def describe(question: Question, candidate: Candidate, workload: Workload, draft: TransformerConfig | None) -> dict[str, Any]:
    """One priced strategy as the document that `predict --json` prints. Quantities in SI units, named so."""
    steps, evaluation = candidate.steps, candidate.evaluation
    drafts = candidate.strategy.draft_kind != "none"
    least = _known(candidate.at(evaluation.round.minimum_acceptance_rate())) if drafts else None
    rate = candidate.acceptance_rate
    memory = evaluation.memory
    return {
        "predicted_speedup": _known(candidate.speedup),
        "predicted_speedup_low": _known(candidate.speedup_low),
        "predicted_speedup_high": _known(candidate.speedup_high),
        **{name: _known(value) for name, value in steps.items()},
        "predicted_step_intervals": candidate.step_intervals,
        "predicted_ttft_s": float(question.deployment.ttft_s(workload.context_len)),
        "throughput_tokens_per_s": _known(candidate.throughput_tokens_per_s),
        "acceptance_rate": _known(rate),
        "minimum_useful_acceptance_rate": least,
        "bound": candidate.bound,
        "breakdown": candidate.breakdown,
        "fits_in_memory": candidate.fits_in_memory,
        "memory_bytes": candidate.memory_bytes,
        "memory_breakdown": {name: candidate.at(getattr(memory, name)) for name in vars(memory)},
        "strategy": vars(candidate.strategy),
        "workload": vars(workload),
        "model": question.deployment.target.name,
        "hardware": question.deployment.hardware.name,
        "num_gpus": question.deployment.num_gpus,
        "tensor_parallel": question.deployment.tensor_parallel,
        "calibrated": question.deployment.hardware.calibrated,
        "notes": notes(question, candidate, workload, draft),
    }


def _known(value: float) -> float | None:
    """For JSON, which has no nan."""
    return None if np.isnan(value) else value


def notes(question: Question, candidate: Candidate, workload: Workload, draft: TransformerConfig | None) -> list[str]:
    """What a reader must know to judge the numbers."""
    hardware, target = question.deployment.hardware, question.deployment.target
    found = [f"{hardware.name}: {hardware.provenance}"]
    answer = candidate.evaluation.acceptance
    if answer is not None:
        found.append(answer.note)
        budget = candidate.strategy.kv_budget or workload.context_len
        if not answer.curve.covers(budget, workload.context_len):
            found.append("that acceptance is extrapolated: budget or context is not within a factor of two of what was measured")
    if not candidate.fits_in_memory:
        found.append(f"does not fit in the memory of one GPU ({hardware.peak.memory_bytes / 1e9:.0f} GB)")
    if workload.max_context_len > target.max_context_len:
        found.append(f"{target.name} knows {target.max_context_len} positions; the workload asks for {workload.max_context_len}")
    if draft is not None and workload.max_context_len > draft.max_context_len:
        found.append(
            f"{draft.name} knows {draft.max_context_len} positions only: it cannot draft at {workload.max_context_len} as it is"
        )
    return found


@dataclass(frozen=True)
class Wishes:
    """What a plan is to consider and to hold.

    Attributes:
        drafts: Draft kinds beside plain decoding: `self`, `ngram`, `eagle3`, `mtp` and names of smaller models.
        kv_policies: For those drafts that have a KV budget; by default what is usual for each.
        batch_sizes: To choose from; the workload's by default. [sequences]
        objective: `latency`, `throughput` or `cost`.
        max_tpot_s: Most seconds per output token. [s]
        gammas: To consider. [tokens]
        kv_budgets: To consider; with a given acceptance, which belongs to one budget, 512 only by default. [tokens]
        acceptance_rate, acceptance_by_position: Given instead of looked up. [0-1]
        draft_kv_dtype, draft_weight_dtype: Smaller types for one more self draft, which reads everything.
    """

    drafts: Sequence[str] = ("self",)
    kv_policies: Sequence[str] = ()
    batch_sizes: Sequence[int] = ()
    objective: str = "latency"
    max_tpot_s: float | None = None
    gammas: Sequence[int] = GAMMAS
    kv_budgets: Sequence[int] | None = None
    acceptance_rate: float | None = None
    acceptance_by_position: Sequence[float] | None = None
    draft_kv_dtype: str | None = None
    draft_weight_dtype: str | None = None

    @property
    def budgets(self) -> Sequence[int]:
        """The KV budgets that are considered. [tokens]"""
        given = self.acceptance_rate is not None or self.acceptance_by_position is not None
        return self.kv_budgets or ((DEFAULT_KV_BUDGET,) if given else KV_BUDGETS)

    def found_drafts(self, deployment: Deployment) -> list[Draft]:
        """The drafts that are considered."""
        found = []
        for text in self.drafts:
            usual = {"self": SELF_POLICIES, "none": (), "ngram": ("full",), "eagle3": ("full",), "mtp": ("full",)}
            budgeted = text not in usual or text == "self"
            if not budgeted and text != "none" and self.drafts == (text,) and (self.kv_policies or self.kv_budgets):
                raise bad("--kv-policy" if self.kv_policies else "--kv-budget", "", f"none beside --draft {text}", "one")
            policies = (self.kv_policies if budgeted else ()) or usual.get(text, MODEL_POLICIES)
            found += [find_draft(text, policy, deployment) for policy in policies]
        if self.draft_kv_dtype is not None or self.draft_weight_dtype is not None:
            kv, weights = self.draft_kv_dtype, self.draft_weight_dtype
            found.append(find_draft("self", "full", deployment, kv_dtype=kv, weight_dtype=weights))
        return list(dict.fromkeys(found))


def make_plan(
    question: Question, workload: Workload, wishes: Wishes, *, trace: RequestTrace | None = None, policy: PolicyTable | None = None
) -> tuple[Plan, list[Candidate], list[Candidate]]:
    """The best strategy for a workload as a plan, the candidates that qualify, best first, and all of them.

    Args:
        question: Model and machine.
        workload: What is asked.
        wishes: What to consider and to hold.
        trace: Mixed lengths, of which the workload is the mean.
        policy: A table for other batch sizes and contexts, which goes into the plan.

    Raises:
        InputError: Nothing fits in memory or is fast enough.
    """
    drafts = wishes.found_drafts(question.deployment)
    priced = candidates(
        question.deployment,
        drafts,
        workload,
        trace=trace,
        batch_sizes=wishes.batch_sizes,
        gammas=wishes.gammas,
        kv_budgets=wishes.budgets,
        curves=question.model.curves,
        acceptance_rate=wishes.acceptance_rate,
        acceptance_by_position=wishes.acceptance_by_position,
    )
    ranked = rank(priced, objective=wishes.objective, max_tpot_s=wishes.max_tpot_s)
    best = ranked[0]
    same_batch = [c for c in sorted(ranked, key=lambda c: -c.speedup) if c.batch_size == best.batch_size]
    other = next((c for c in same_batch if c.strategy.family != best.strategy.family), None)
    model = next((d.model for d in drafts if d.strategy(1, 1).family == best.strategy.family), None)
    chosen = Workload(best.batch_size, workload.context_len, workload.output_len)
    document = describe(question, best, chosen, model)
    prediction = {key: document[key] for key in PredictedRound.model_fields if key in document}
    hardware = question.deployment.hardware
    facts = {
        "workload": chosen,
        "hardware": {
            "name": hardware.name,
            "sha256": hardware.sha256,
            "num_gpus": question.deployment.num_gpus,
            "tensor_parallel": question.deployment.tensor_parallel,
        },
        "target": _planned(
            question.deployment.target, executed(question.model.config, hardware, question.deployment.tensor_parallel)
        ),
        "draft": _planned(model, model) if model else None,
        "strategy": best.strategy,
        "prediction": {
            **prediction,
            "predicted_acceptance_rate": document["acceptance_rate"],
            "predicted_memory_bytes": document["memory_bytes"],
        },
        "serving": _served(question.deployment, best, chosen, trace),
        "runner_up": {"strategy": other.strategy, "predicted_speedup": other.speedup} if other else None,
        "policy": policy,
        "notes": [*document["notes"], *_beyond(trace, question.deployment.target)],
    }
    plan = Plan.model_validate(facts)  # in one go: validators of its parts on their own would take a while to build
    return plan, ranked, priced


def _beyond(trace: RequestTrace | None, target: TransformerConfig) -> list[str]:
    """A note on requests of a trace that are longer than the model's positions."""
    if trace is None:
        return []
    longer = int((np.array(trace.prompt_lens) + trace.output_lens > target.max_context_len).sum())
    asked = f"{longer} of {len(trace.prompt_lens)} requests need more"
    return [f"{target.name} knows {target.max_context_len} positions; {asked}"] if longer else []


def _planned(priced: TransformerConfig, stored: TransformerConfig) -> dict[str, Any]:
    """A model as a plan names it; types only where they are not those it runs in by itself."""
    weights = priced.linear_dtype if priced.linear_dtype != stored.linear_dtype else None
    kv = priced.kv_dtype if priced.kv_dtype != stored.kv_dtype else None
    return {"name": priced.name, "fingerprint": fingerprint(priced), "weight_dtype": weights, "kv_dtype": kv}


def _served(deployment: Deployment, best: Candidate, workload: Workload, trace: RequestTrace | None) -> dict[str, float]:
    """Whole requests, speculating and plainly decoded."""
    fast, plain = (
        serving(
            deployment,
            prompt_lens=trace.prompt_lens if trace else workload.context_len,
            output_len=float(np.mean(trace.output_lens)) if trace else workload.output_len,
            batch_size=best.batch_size,
            tpot_s=tpot_s,
        )
        for tpot_s in (best.tpot_s, best.steps["predicted_target_step_s"])
    )
    return {
        "predicted_ttft_s": float(fast.ttft_s),
        "predicted_request_s": float(fast.request_s),
        "predicted_plain_request_s": float(plain.request_s),
        "predicted_throughput_tokens_per_s": float(fast.throughput_tokens_per_s),
        "predicted_plain_throughput_tokens_per_s": float(plain.throughput_tokens_per_s),
        "prefill_share": float(fast.prefill_share),
    }


def plan(
    model: str,
    hardware: str,
    *,
    batch_size: int,
    context_len: int,
    output_len: int = 128,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    **wishes: Any,
) -> Plan:
    """The best strategy for a workload, as a plan; `wishes` are the attributes of `Wishes`."""
    question = ask(model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel)
    return make_plan(question, Workload(batch_size, context_len, output_len), Wishes(**wishes))[0]
