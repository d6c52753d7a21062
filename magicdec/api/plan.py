"""Choose the best strategy for a workload and write it down as a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning.requests import Requests, predicted_serving, requests_of
from magicdec.costmodel.planning.search import GAMMAS, Candidate, candidates, rank
from magicdec.costmodel.plans.plan import (
    Plan,
    PlannedCost,
    PlannedHardware,
    PlannedLimits,
    PlannedMix,
    PlannedModel,
    PredictedRound,
    RunnerUp,
    fingerprint,
)
from magicdec.costmodel.plans.trace import RequestTrace
from magicdec.costmodel.plans.workload import Workload

from ..inputs.checks import finite, flag, names, one_of, probabilities, some_names, text, whole_number, whole_numbers
from ..inputs.engines import check_engine, exported_engine
from ..inputs.names import executed
from ..inputs.plan_search import DEFAULT_OUTPUT_LEN, OBJECTIVES, PlanSearch, check_types
from ..inputs.scenario import Scenario, resolve_scenario
from ..inputs.served import Serving
from ..render.sentences import prediction_notes
from ..results.plan import PlanResult

if TYPE_CHECKING:
    from ..results.speedup_map import SpeedupMap


def plan(
    model: str,
    hardware: str,
    *,
    batch_size: int | Sequence[int] | None = None,
    context_len: int | Sequence[int] | None = None,
    output_len: int | None = None,
    trace: str | Path | RequestTrace | None = None,
    trace_columns: Mapping[str, str] | None = None,
    sweep: bool = False,
    draft: str | Sequence[str] | None = None,
    kv_policy: str | Sequence[str] = (),
    kv_budget: int | Sequence[int] | None = None,
    gamma: int | Sequence[int] | None = None,
    objective: str | None = None,
    max_tpot_s: float | None = None,
    max_ttft_s: float | None = None,
    cached_share: float = 0.0,
    queue_s: float = 0.0,
    gpu_price: float | None = None,
    acceptance_rate: float | None = None,
    acceptance_by_position: Sequence[float] | None = None,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    draft_kv_dtype: str | None = None,
    draft_weight_dtype: str | None = None,
    engine: str | None = None,
    task: str | None = None,
    quant: str | None = None,
) -> PlanResult:
    """Choose draft, KV policy, KV budget and gamma for a workload, under memory and latency limits.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A GPU's name, `cpu`, `local`, a profile file, or several of them separated by commas.
        batch_size: Sequences decoded together; several to choose from; None with an `engine` for one.
        context_len: Prompt length, per sequence; several only with `sweep`. [tokens]
        output_len: New tokens per sequence; None for 128, which the result says. [tokens]
        trace: Requests of mixed lengths, or a CSV or JSON file of them, instead of the two lengths.
        trace_columns: What that file calls `prompt_len`, `output_len` and `arrival_s`, where its names are not known.
        sweep: Also find the best strategy over batch size and context; its table goes into the plan.
        draft: Drafts to choose from: `self`, `ngram`, `eagle3`, `mtp` and names of smaller models; None for `self`, or with
            `engine` for the kinds that it runs.
        kv_policy: KV policies to choose from; empty for the usual ones of each draft.
        kv_budget: KV budgets to choose from; None for 64 to 4096. [tokens]
        gamma: Draft tokens per round to choose from; None for 1 to 10. [tokens]
        objective: `latency`, `throughput` or `cost`; None for throughput with several batch sizes, else latency.
        max_tpot_s, max_ttft_s: Limits on the time per output token and to the first token. [s]
        cached_share: Share of each prompt whose KV cache is there already, as of a common prefix. [0-1]
        queue_s: Time that a request waits before its prefill. [s]
        gpu_price: Price of a GPU, for the cost of a million tokens. [dollars per hour]
        acceptance_rate, acceptance_by_position: Given instead of looked up. [0-1]
        num_gpus, tensor_parallel, verify_kernel, weight_dtype, kv_dtype: As in `predict`.
        draft_kv_dtype, draft_weight_dtype: Narrower types of one more self draft, which reads the whole KV cache.
        engine: The serving engine that the plan is for, or its profile: priced as it runs, and only what it runs is
            considered; None for the engine that the machine was calibrated with.
        task: What is generated: code, chat, prose, reasoning or summary; None for a mean over tasks.
        quant: Quantisation of the weights, as files are named: Q4_K_M, AWQ, NVFP4; None for what the name says.

    Raises:
        InputError: A name is unknown, values contradict one another, or no strategy fits in memory and holds the limits.

    >>> found = plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000)
    >>> found.strategy.draft_kind
    'self'
    """
    if trace_columns is not None and not isinstance(trace_columns, Mapping):
        raise bad("trace_columns", "", "the name of a column for each of ours", repr(trace_columns))
    requests = _requests(trace, trace_columns)
    if requests is not None and (context_len is not None or output_len is not None):
        raise bad("trace", "", "no `context_len` or `output_len` beside it: the trace has them", "both")
    if requests is not None:
        context_len, output_len = requests.typical
    contexts = whole_numbers("context_len", context_len)
    assumed = output_len is None
    output_len = DEFAULT_OUTPUT_LEN if output_len is None else whole_number("output_len", output_len)
    finite("gpu_price", gpu_price, "dollars per GPU and hour")
    probabilities("cached_share", [cached_share])
    finite("queue_s", queue_s, "a time")
    if max_ttft_s is not None and not finite("max_ttft_s", max_ttft_s, "a positive time"):
        raise bad("max_ttft_s", "", "a positive time", max_ttft_s)
    sizes = whole_numbers("batch_size", batch_size) or ((1,) if engine is not None and contexts and not sweep else ())
    if not flag("sweep", sweep) and (not sizes or not contexts):
        raise bad("context_len" if sizes else "batch_size", "", "a value, or `sweep` for the whole map", "nothing")
    if not sweep and len(contexts) > 1:
        raise bad("context_len", "", "one value, or `sweep` beside several", ", ".join(map(str, contexts)))
    scenario = resolve_scenario(
        model,
        hardware,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        verify_kernel=verify_kernel,
        engine=engine,
        task=task,
        quant=quant,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
    )
    search = PlanSearch(
        drafts=None if draft is None else some_names("draft", draft),
        kv_policies=names("kv_policy", kv_policy),
        batch_sizes=sizes,
        objective=one_of("objective", objective, OBJECTIVES) or ("throughput" if len(sizes) > 1 else "latency"),
        max_tpot_s=max_tpot_s,
        gammas=whole_numbers("gamma", gamma) or GAMMAS,
        kv_budgets=whole_numbers("kv_budget", kv_budget),
        acceptance_rate=acceptance_rate,
        acceptance_by_position=probabilities("acceptance_by_position", acceptance_by_position),
        draft_kv_dtype=draft_kv_dtype,
        draft_weight_dtype=draft_weight_dtype,
        engine=exported_engine(scenario.deployment),
        output_len=output_len,
    )
    check_types(search.engine, weight_dtype, kv_dtype)
    speedups = None
    if sweep:
        from .explore import explore_scenario

        speedups = explore_scenario(scenario, search, context_lens=contexts)
        sizes = sizes or speedups.typical[:1]
        contexts = contexts if len(contexts) == 1 else (speedups.typical[1],)
    workload = Workload(sizes[0], contexts[0], output_len)
    served = Serving(cached_share, queue_s, max_ttft_s, gpu_price, output_len_assumed=assumed)
    return make_plan(scenario, workload, search, trace=requests, speedup_map=speedups, served=served)


def make_plan(
    scenario: Scenario,
    workload: Workload,
    search: PlanSearch,
    *,
    trace: RequestTrace | None = None,
    speedup_map: SpeedupMap | None = None,
    served: Serving | None = None,
) -> PlanResult:
    """`plan` with everything resolved already.

    Args:
        scenario: Model and machine.
        workload: Batch size, prompt length and output length to plan for.
        search: Search space and constraints.
        trace: Requests of mixed lengths, of which the workload is the mean.
        speedup_map: Best strategies at other batch sizes and contexts; its table goes into the plan.
        served: How requests are served, what they may take and what a GPU costs; None for no limits.

    Raises:
        InputError: No strategy fits in memory and holds the limits.
    """
    deployment, served = scenario.deployment, served or Serving()
    requests = requests_of(deployment, workload, trace, cached_share=served.cached_share, queue_s=served.queue_s)
    served.check(float(requests.served(1, 1.0).ttft_s))
    drafts = search.resolve_drafts(deployment)
    check_engine(deployment.engine, drafts)
    considered = candidates(
        deployment,
        drafts,
        workload,
        trace=trace,
        batch_sizes=search.batch_sizes,
        gammas=search.gammas,
        kv_budgets=search.budgets,
        curves=scenario.model.curves,
        acceptance_rate=search.acceptance_rate,
        acceptance_by_position=search.acceptance_by_position,
        exact_output=search.exact_output,
    )
    left_out = search.left_out(search.batch_sizes or (workload.batch_size,))
    considered = [c for c in considered if search.runs(c.strategy, c.batch_size)]
    if search.must_speculate:
        considered = [c for c in considered if c.strategy.gamma]
    ranked = rank(considered, objective=search.objective, max_tpot_s=search.max_tpot_s, cautious=search.cautious)
    best = ranked[0]
    same_batch = [c for c in sorted(ranked, key=lambda c: -c.speedup) if c.batch_size == best.batch_size]
    runner_up = next((c for c in same_batch if c.strategy.family != best.strategy.family), None)
    draft = next((d for d in drafts if d.strategy(1, 1).family == best.strategy.family), None)
    draft_model = draft.model if draft else None
    chosen = Workload(best.batch_size, workload.context_len, workload.output_len)
    stored = executed(scenario.model.config, deployment.hardware, deployment.tensor_parallel)
    notes = prediction_notes(scenario, best, chosen.max_context_len, chosen.context_len, draft_model)
    made = Plan(
        workload=chosen,
        hardware=PlannedHardware(
            name=deployment.hardware.name,
            sha256=deployment.hardware.sha256,
            num_gpus=deployment.num_gpus,
            tensor_parallel=deployment.tensor_parallel,
        ),
        target=_planned_model(deployment.target, stored, scenario.model.checkpoint),
        draft=_planned_model(draft_model, draft_model, search.checkpoint_of(draft_model)) if draft_model else None,
        strategy=best.strategy,
        prediction=_predicted_round(best),
        serving=predicted_serving(requests, best, output_len_assumed=served.output_len_assumed),
        cost=_planned_cost(requests, best, served.gpu_price),
        limits=_planned_limits(search.max_tpot_s, served.max_ttft_s),
        runner_up=(RunnerUp(strategy=runner_up.strategy, predicted_speedup=runner_up.speedup) if runner_up else None),
        policy=speedup_map.policy if speedup_map else None,
        draft_checkpoint=draft.head.name if draft and draft.head and best.strategy.draft_kind == "eagle3" else None,
        mix=_planned_mix(trace),
        verify_kernel=deployment.verify_kernel,
        engine=deployment.engine.name if deployment.engine else search.engine,
        task=deployment.task,
        notes=[*notes, *_trace_notes(trace, deployment.target), *served.notes(workload.output_len, trace), *left_out],
    )
    if deployment.engine is not None:
        from ..render.engine_notes import engine_notes

        made = replace(made, notes=[*engine_notes(deployment, best, chosen, made, drafts), *made.notes])
    return PlanResult(made, tuple(ranked), tuple(considered), requests, runner_up, speedup_map, search.max_tpot_s, served.gpu_price)


def _predicted_round(best: Candidate) -> PredictedRound:
    rate = best.acceptance_rate
    return PredictedRound(
        **best.steps,
        predicted_acceptance_rate=None if np.isnan(rate) else rate,
        predicted_speedup=best.speedup,
        predicted_speedup_low=best.speedup_low,
        predicted_speedup_high=best.speedup_high,
        predicted_memory_bytes=best.memory_bytes,
        bound=best.bound,
        breakdown=best.breakdown,
    )


def _requests(trace: str | Path | RequestTrace | None, columns: Mapping[str, str] | None) -> RequestTrace | None:
    """The requests of a trace, read if they are in a file."""
    if trace is None or isinstance(trace, RequestTrace):
        if columns:
            raise bad("trace_columns", "", "a file in `trace` beside it", "none")
        return trace
    from magicdec.costmodel.plans.trace_file import load_trace  # slow to import

    return load_trace(text("trace", trace), columns)


def _trace_notes(trace: RequestTrace | None, target: TransformerConfig) -> list[str]:
    """What a trace left out, how fast its requests arrive, and how many are longer than the model supports."""
    if trace is None:
        return []
    found = [f"trace: {note}" for note in trace.notes]
    if trace.requests_per_s is not None:
        found.append(f"trace: {len(trace):,} requests, {trace.requests_per_s:,.2f} a second on average")
    longer = int((trace.max_context_lens > target.max_context_len).sum())
    requests = f"{longer} of {len(trace)} requests need more"
    return found + ([f"{target.name} supports {target.max_context_len:,} tokens; {requests}"] if longer else [])


def _planned_mix(trace: RequestTrace | None) -> PlannedMix | None:
    if trace is None:
        return None
    contexts, weights = trace.groups()
    return PlannedMix(
        mean_context_len=float(np.dot(contexts, weights)),
        mean_final_len=float(trace.weights @ trace.max_context_lens),
        longest_len=int(np.max(trace.max_context_lens)),
    )


def _planned_model(deployed: TransformerConfig, stored: TransformerConfig, checkpoint: str | None) -> PlannedModel:
    """A model as a plan names it; with its types only where they are not the stored ones."""
    weights = deployed.linear_dtype if deployed.linear_dtype != stored.linear_dtype else None
    kv = deployed.kv_dtype if deployed.kv_dtype != stored.kv_dtype else None
    own = checkpoint if checkpoint != deployed.name else None
    return PlannedModel(name=deployed.name, fingerprint=fingerprint(deployed), weight_dtype=weights, kv_dtype=kv, checkpoint=own)


def _planned_cost(requests: Requests, best: Candidate, gpu_price: float | None) -> PlannedCost | None:
    if gpu_price is None:
        return None
    cost = requests.cost(best.batch_size, best.tpot_s, gpu_price)
    plain = requests.cost(best.batch_size, best.steps["predicted_target_step_s"], gpu_price)
    return PlannedCost(
        gpu_price=gpu_price,
        per_million_tokens=cost.per_million_tokens,
        plain_per_million_tokens=plain.per_million_tokens,
        per_million_input_tokens=cost.per_million_input_tokens,
        per_million_output_tokens=cost.per_million_output_tokens,
        per_request=cost.per_request,
        saving=1 - 1 / requests.speedup(best)[1],
    )


def _planned_limits(max_tpot_s: float | None, max_ttft_s: float | None) -> PlannedLimits | None:
    return None if max_tpot_s is None and max_ttft_s is None else PlannedLimits(max_tpot_s=max_tpot_s, max_ttft_s=max_ttft_s)
