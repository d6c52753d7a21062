"""The public functions: names in, predictions and plans out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from costmodel.errors import InputError
from costmodel.evaluate import Draft, Evaluation, Setup, evaluate_grid
from costmodel.plan import Plan, PlannedHardware, PlannedModel, PredictedRound, RunnerUp, fingerprint
from costmodel.roofline import VerifyKernel
from costmodel.search import GAMMAS, KV_BUDGETS, Candidate, candidates, rank
from costmodel.speculation import minimum_acceptance_rate
from costmodel.transformer import TransformerConfig
from costmodel.workload import Workload
from magicdec.names import DEFAULT_KV_BUDGET, Model, executed, find_draft, find_hardware, find_model


@dataclass(frozen=True)
class Question:
    """Model and machine of a question, resolved.

    Attributes:
        model: The target.
        setup: The target, in the type it runs in, on its GPUs.
    """

    model: Model
    setup: Setup


def ask(
    model: str,
    hardware: str,
    *,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: VerifyKernel = "shared_kv_splitkv",
) -> Question:
    """Resolve the names of a model and a machine. Tensor parallelism spans all GPUs unless it is given."""
    found, profile = find_model(model), find_hardware(hardware)
    gpus = num_gpus if tensor_parallel is None else tensor_parallel
    setup = Setup(executed(found.config, profile), profile, num_gpus, gpus, verify_kernel)
    return Question(found, setup)


def predict(
    model: str,
    hardware: str,
    *,
    batch_size: ArrayLike,
    context_len: ArrayLike,
    draft: str = "self",
    kv_policy: str | None = None,
    kv_budget: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    acceptance_rate: ArrayLike | None = None,
    mean_acceptance_length: ArrayLike | None = None,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: VerifyKernel = "shared_kv_splitkv",
) -> Evaluation:
    """Predict speculative decoding against plain decoding; array arguments broadcast to a grid.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A shipped profile's name, `cpu`, or a profile file.
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        draft: `none`, `self`, or the name of a smaller model.
        kv_policy: `full`, `streaming_llm` or `snapkv`; by default `streaming_llm` for a self draft, else `full`.
        kv_budget: KV entries the draft reads; by default 512 for sparse policies. [tokens]
        gamma: Draft tokens per round; None for the best one at every point. [tokens]
        acceptance_rate: Of draft tokens; None for the best curve that is known. [0-1]
        mean_acceptance_length: Tokens per round, bonus included, instead of a rate. [tokens]
        num_gpus: GPUs in all.
        tensor_parallel: GPUs that share the target; None for all.
        verify_kernel: How verification attention reads the KV cache.

    Raises:
        InputError: A name, or a combination of values, that makes no sense.

    >>> e = predict("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=[1, 128], context_len=32000, gamma=2)
    >>> bool(e.round.speedup[0] < 1 < e.round.speedup[1])
    True
    """
    question = ask(model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel, verify_kernel=verify_kernel)
    found = find_draft(draft, kv_policy, question.setup.hardware, kv_budget)
    budget: ArrayLike = np.inf if found.kv_policy == "full" else (DEFAULT_KV_BUDGET if kv_budget is None else kv_budget)

    def evaluate(g: ArrayLike) -> Evaluation:
        return evaluate_grid(
            question.setup,
            found,
            batch_size=batch_size,
            context_len=context_len,
            gamma=g,
            kv_budget=budget,
            acceptance_rate=acceptance_rate,
            acceptance_length=mean_acceptance_length,
            curves=question.model.curves,
        )

    if found.kind == "none":
        return evaluate(0)
    return evaluate(best_gamma(evaluate) if gamma is None else gamma)


def best_gamma(evaluate: Any) -> np.ndarray[Any, Any]:
    """The gamma of `GAMMAS` with the largest speedup at every point of the grid that `evaluate` prices."""
    speedups = np.stack([evaluate(gamma).round.speedup for gamma in GAMMAS])
    return np.asarray(np.array(GAMMAS)[speedups.argmax(axis=0)])


def describe(question: Question, candidate: Candidate, workload: Workload, draft: TransformerConfig | None) -> dict[str, Any]:
    """One priced strategy as the document that `predict --json` prints. Quantities in SI units, named so."""
    steps, evaluation = candidate.steps, candidate.evaluation
    drafts = candidate.strategy.draft_kind != "none"
    least = None
    if drafts:
        round_s = steps["predicted_gamma_draft_step_s"] + steps["predicted_verify_step_s"] + steps["predicted_round_overhead_s"]
        least = minimum_acceptance_rate(candidate.strategy.gamma, round_s, steps["predicted_target_step_s"])
    rate = candidate.acceptance_rate
    memory = evaluation.memory
    return {
        "predicted_speedup": candidate.speedup,
        "predicted_speedup_low": candidate.speedup_low,
        "predicted_speedup_high": candidate.speedup_high,
        **steps,
        "throughput_tokens_per_s": candidate.throughput_tokens_per_s,
        "acceptance_rate": None if np.isnan(rate) else rate,
        "minimum_useful_acceptance_rate": least,
        "bound": candidate.bound,
        "breakdown": candidate.breakdown,
        "fits_in_memory": candidate.fits_in_memory,
        "memory_bytes": candidate.memory_bytes,
        "memory_breakdown": {name: candidate.at(getattr(memory, name)) for name in vars(memory)},
        "strategy": vars(candidate.strategy),
        "workload": vars(workload),
        "model": question.setup.target.name,
        "hardware": question.setup.hardware.name,
        "num_gpus": question.setup.num_gpus,
        "tensor_parallel": question.setup.tensor_parallel,
        "calibrated": question.setup.hardware.calibrated,
        "notes": notes(question, candidate, workload, draft),
    }


def notes(question: Question, candidate: Candidate, workload: Workload, draft: TransformerConfig | None) -> list[str]:
    """What a reader must know to judge the numbers."""
    found = []
    hardware, target = question.setup.hardware, question.setup.target
    fit = hardware.calibration.fit
    if fit is None:
        found.append(f"{hardware.name} is not calibrated: priced at stated default efficiencies, step times within about 25 %")
    else:
        found.append(f"{hardware.name} is calibrated on {fit.data}: mean error {fit.mean_error:.1%}, worst {fit.worst_error:.0%}")
    answer = candidate.evaluation.answer
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


def make_plan(
    question: Question,
    workload: Workload,
    *,
    drafts: Sequence[str] = ("self",),
    batch_sizes: Sequence[int] = (),
    objective: str = "latency",
    max_tpot_s: float | None = None,
    gammas: Sequence[int] = GAMMAS,
    kv_budgets: Sequence[int] | None = None,
    acceptance_rate: float | None = None,
) -> tuple[Plan, list[Candidate]]:
    """The best strategy for a workload as a plan, and every candidate that qualifies, best first.

    Args:
        question: Model and machine.
        workload: What is asked.
        drafts: Draft kinds to consider beside plain decoding: `self` and names of smaller models.
        batch_sizes: Batch sizes to choose from; the workload's by default.
        objective: `latency` or `throughput`.
        max_tpot_s: Most seconds per output token. [s]
        gammas, kv_budgets: What to consider; with a given acceptance, which belongs to one budget, 512 only. [tokens]
        acceptance_rate: Given instead of looked up. [0-1]

    Raises:
        InputError: Nothing fits in memory or is fast enough.
    """
    setup = question.setup
    if kv_budgets is None:
        kv_budgets = KV_BUDGETS if acceptance_rate is None else (DEFAULT_KV_BUDGET,)
    found = [draft for text in drafts for draft in _with_policies(text, question, acceptance_rate)]
    priced = candidates(
        setup,
        found,
        workload,
        batch_sizes=batch_sizes,
        gammas=gammas,
        kv_budgets=kv_budgets,
        curves=question.model.curves,
        acceptance_rate=acceptance_rate,
    )
    ranked = rank(priced, objective=objective, max_tpot_s=max_tpot_s)
    best = ranked[0]
    same_batch = [c for c in sorted(ranked, key=lambda c: -c.speedup) if c.batch_size == best.batch_size]
    other = next((c for c in same_batch if c.strategy.family != best.strategy.family), None)
    draft = next((d for d in found if best.strategy.family == (d.kind, d.kv_policy, d.model and d.model.name)), Draft())
    chosen = Workload(best.batch_size, workload.context_len, workload.output_len)
    document = describe(question, best, chosen, draft.model)
    prediction = {key: document[key] for key in PredictedRound.model_fields if key in document}
    plan = Plan(
        workload=chosen,
        hardware=PlannedHardware(
            name=setup.hardware.name,
            sha256=setup.hardware.sha256,
            num_gpus=setup.num_gpus,
            tensor_parallel=setup.tensor_parallel,
        ),
        target=PlannedModel(name=setup.target.name, fingerprint=fingerprint(setup.target)),
        draft=PlannedModel(name=draft.model.name, fingerprint=fingerprint(draft.model)) if draft.model else None,
        strategy=best.strategy,
        prediction=PredictedRound(
            **prediction,
            predicted_acceptance_rate=document["acceptance_rate"],
            predicted_memory_bytes=document["memory_bytes"],
        ),
        runner_up=RunnerUp(strategy=other.strategy, predicted_speedup=other.speedup) if other else None,
        notes=document["notes"],
    )
    return plan, ranked


def plan(
    model: str,
    hardware: str,
    *,
    batch_size: int,
    context_len: int,
    output_len: int = 128,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    **options: Any,
) -> Plan:
    """The best strategy for a workload, as a plan; `options` are those of `make_plan`."""
    question = ask(model, hardware, num_gpus=num_gpus, tensor_parallel=tensor_parallel)
    return make_plan(question, Workload(batch_size, context_len, output_len), **options)[0]


def _with_policies(text: str, question: Question, acceptance_rate: float | None) -> list[Draft]:
    """The policies that the executor can run and whose acceptance is known, for one `--draft`."""
    policies = ("streaming_llm",) if text == "self" else ("full", "streaming_llm")
    drafts = [find_draft(text, policy, question.setup.hardware) for policy in policies] if text != "none" else []
    if acceptance_rate is not None:
        return drafts
    known = []
    for draft in drafts:
        try:
            evaluate_grid(question.setup, draft, batch_size=1, context_len=1, gamma=1, kv_budget=1, curves=question.model.curves)
            known.append(draft)
        except InputError:
            continue
    return known
