"""Find the best strategy of every batch size and context length."""

from __future__ import annotations

from collections.abc import Sequence

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.export.engines import ENGINES
from magicdec.costmodel.planning.search import GAMMAS
from magicdec.costmodel.planning.sweep import Sweep, policy_table, sweep

from ..inputs.checks import names, probabilities, some_names, whole_number, whole_numbers
from ..inputs.engines import exported_engine
from ..inputs.plan_search import DEFAULT_OUTPUT_LEN, PlanSearch, check_types
from ..inputs.scenario import Scenario, resolve_scenario
from ..results.speedup_map import Regret, SpeedupMap

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT_LENS = (1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)


def explore(
    model: str,
    hardware: str,
    *,
    batch_size: int | Sequence[int] | None = None,
    context_len: int | Sequence[int] | None = None,
    draft: str | Sequence[str] | None = None,
    kv_policy: str | Sequence[str] = (),
    kv_budget: int | Sequence[int] | None = None,
    gamma: int | Sequence[int] | None = None,
    output_len: int | None = None,
    max_tpot_s: float | None = None,
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
) -> SpeedupMap:
    """Map the best strategy and its speedup over batch size and context length.

    Args:
        model, hardware: As in `predict`.
        batch_size, context_len: Several values are the axis; one joins the usual ones, which are 1 to 256 sequences and 1,000
            to 128,000 tokens as far as the model supports them. [sequences, tokens]
        output_len: New tokens per sequence; None for 128. [tokens]
        draft, kv_policy, kv_budget, gamma, max_tpot_s, acceptance_rate, acceptance_by_position: As in `plan`.
        num_gpus, tensor_parallel, verify_kernel, weight_dtype, kv_dtype, draft_kv_dtype, draft_weight_dtype: As in `plan`.
        engine: The serving engine that runs it, or its profile; None for the one that the machine was calibrated with.
        task: What is generated: code, chat, prose, reasoning or summary; None for a mean over tasks.
        quant: Quantisation of the weights, as files are named: Q4_K_M, AWQ, NVFP4; None for what the name says.

    Raises:
        InputError: A name is unknown, or values contradict one another.

    >>> found = explore("llama-3.1-8b", "h100-sxm", num_gpus=8)
    >>> found.policy.at(batch_size=64, context_len=32000).draft_kind
    'self'
    """
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
        batch_sizes=whole_numbers("batch_size", batch_size),
        max_tpot_s=max_tpot_s,
        gammas=whole_numbers("gamma", gamma) or GAMMAS,
        kv_budgets=whole_numbers("kv_budget", kv_budget),
        acceptance_rate=acceptance_rate,
        acceptance_by_position=probabilities("acceptance_by_position", acceptance_by_position),
        draft_kv_dtype=draft_kv_dtype,
        draft_weight_dtype=draft_weight_dtype,
        engine=exported_engine(scenario.deployment),
        output_len=DEFAULT_OUTPUT_LEN if output_len is None else whole_number("output_len", output_len),
    )
    check_types(search.engine, weight_dtype, kv_dtype)
    return explore_scenario(scenario, search, context_lens=whole_numbers("context_len", context_len))


def explore_scenario(scenario: Scenario, search: PlanSearch, *, context_lens: Sequence[int] = ()) -> SpeedupMap:
    """`explore` with everything resolved already; several `context_lens` or batch sizes are the axis, one joins the usual ones."""
    longest = scenario.deployment.target.max_context_len
    contexts = _axis(context_lens, [length for length in CONTEXT_LENS if length <= longest] or [longest])
    if search.engine is not None and not ENGINES[search.engine].drafts_batches and max(search.batch_sizes, default=2) > 1:
        raise bad("batch_size", "", f"1 beside a sweep: {search.engine} drafts for one sequence at a time", "more, or nothing")
    found = sweep_scenario(scenario, search, _axis(search.batch_sizes, BATCH_SIZES), contexts, search.gammas)
    return SpeedupMap(scenario, found, policy_table(found), _regrets(scenario, search, found), search.output_len)


def _axis(given: Sequence[int], usual: Sequence[int]) -> list[int]:
    return sorted(set(given) if len(given) > 1 else {*usual, *given})


def sweep_scenario(
    scenario: Scenario, search: PlanSearch, batches: Sequence[int], contexts: Sequence[int], gammas: Sequence[int]
) -> Sweep:
    return sweep(
        scenario.deployment,
        search.resolve_drafts(scenario.deployment),
        batch_sizes=batches,
        context_lens=contexts,
        gammas=gammas,
        kv_budgets=search.budgets,
        curves=scenario.model.curves,
        acceptance_rate=search.acceptance_rate,
        acceptance_by_position=search.acceptance_by_position,
        max_tpot_s=search.max_tpot_s,
        output_len=search.output_len,
    )


def _regrets(scenario: Scenario, search: PlanSearch, found: Sweep) -> tuple[Regret, ...]:
    """What it costs never to speculate, and always to speculate with the best fixed gamma."""
    regrets = [Regret("never speculating", found.regret(1.0))]
    if found.knows_acceptance:
        axes = found.batch_sizes.tolist(), found.context_lens.tolist()
        always = {gamma: found.regret(sweep_scenario(scenario, search, *axes, [gamma]).forced_speedup) for gamma in search.gammas}
        best = min(always, key=lambda gamma: always[gamma])
        regrets.append(Regret(f"always speculating, with gamma {best} (the best fixed one),", always[best]))
    return tuple(regrets)
