"""Find where the picture changes: bottlenecks, the critical context, the acceptance that a speedup needs."""

from __future__ import annotations

import numpy as np

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.planning.regimes import (
    admissible_budgets,
    bound_map,
    critical_context_len,
    crossover_batch_size,
    minimum_acceptance,
)
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.speculation.acceptance import find_curve
from magicdec.costmodel.speculation.drafts import Draft

from ..inputs.checks import finite, whole_number
from ..inputs.names import find_draft
from ..inputs.scenario import Scenario, resolve_scenario
from ..results.base import known
from ..results.regimes import BudgetNeed, Regimes

BATCH_SIZES = (1, 4, 16, 64, 256)
CONTEXT_LENS = (1000, 4000, 16000, 32000, 64000, 128000)
RIDGE_DTYPES = ("bfloat16", "fp8", "float32")
USUAL_ACCEPTANCE_RATE = 0.8  # of sparse drafts, where no curve is known


def regimes(
    model: str,
    hardware: str,
    *,
    batch_size: int = 64,
    context_len: int = 32000,
    kv_policy: str | None = None,
    kv_budget: int = 512,
    small_draft: str | None = None,
    speedup: float = 1.2,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    engine: str | None = None,
    task: str | None = None,
    quant: str | None = None,
) -> Regimes:
    """Find ridge points, bottlenecks, the critical context, the acceptance each budget needs, and when drafts overtake.

    Args:
        model, hardware: As in `predict`.
        batch_size: Where budgets are compared. [sequences]
        context_len: Where budgets and the small draft are compared. [tokens]
        kv_policy: Of the self draft; None for `streaming_llm`.
        kv_budget: Of the self draft. [tokens]
        small_draft: A draft model: from which batch size does self-speculation overtake it?
        speedup: Wanted, for the budgets. [ratio]
        num_gpus, tensor_parallel, verify_kernel, weight_dtype, kv_dtype: As in `predict`.
        engine: The serving engine that runs it, or its profile; None for the one that the machine was calibrated with.
        task: What is generated: code, chat, prose, reasoning or summary; None for a mean over tasks.
        quant: Quantisation of the weights, as files are named: Q4_K_M, AWQ, NVFP4; None for what the name says.

    Raises:
        InputError: A name is unknown, or a value is out of its range.
    """
    if finite("speedup", speedup, "a ratio of at least 1", least=1.0) is None:
        raise bad("speedup", "", "a ratio of at least 1", "None")
    batch_size, context_len = whole_number("batch_size", batch_size), whole_number("context_len", context_len)
    kv_budget = whole_number("kv_budget", kv_budget)
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
    deployment, curves = scenario.deployment, scenario.model.curves
    draft = find_draft("self", kv_policy, deployment, kv_budget)
    has_curve = find_curve(curves, deployment.target.name, draft) is not None
    bounds = bound_map(deployment, np.array(BATCH_SIZES), np.array(CONTEXT_LENS))
    return Regimes(
        scenario=scenario,
        draft=draft.strategy(1, kv_budget).draft_text,
        batch_size=batch_size,
        context_len=context_len,
        speedup=speedup,
        ridge_points={
            dtype: deployment.hardware.ridge_point(dtype) for dtype in deployment.hardware.peak.flop_per_s if dtype in RIDGE_DTYPES
        },
        bounds={batch: dict(zip(CONTEXT_LENS, row.tolist(), strict=True)) for batch, row in zip(BATCH_SIZES, bounds, strict=True)},
        critical_context_len=critical_context_len(
            deployment,
            draft,
            gammas=GAMMAS,
            kv_budget=kv_budget,
            curves=curves if has_curve else (),
            acceptance_rate=None if has_curve else USUAL_ACCEPTANCE_RATE,
        ),
        budgets=_budgets(scenario, draft, batch_size, context_len, speedup),
        small_draft=small_draft,
        crossover_batch_size=None if small_draft is None else _crossover(scenario, draft, small_draft, context_len, kv_budget),
    )


def _budgets(scenario: Scenario, draft: Draft, batch_size: int, context_len: int, speedup: float) -> tuple[BudgetNeed, ...]:
    deployment = scenario.deployment
    needed = minimum_acceptance(
        deployment,
        draft,
        kv_budgets=KV_BUDGETS,
        batch_size=batch_size,
        context_len=context_len,
        gammas=GAMMAS,
        speedup=speedup,
    )
    estimate = find_curve(scenario.model.curves, deployment.target.name, draft)
    sufficient, available = [], np.full(len(KV_BUDGETS), np.nan)
    if estimate is not None:
        available = estimate.curve.rate(np.minimum(KV_BUDGETS, context_len), context_len)
        sufficient = admissible_budgets(
            deployment,
            draft,
            kv_budgets=KV_BUDGETS,
            curve=estimate.curve,
            batch_size=batch_size,
            context_len=context_len,
            gammas=GAMMAS,
            speedup=speedup,
        )
    return tuple(
        BudgetNeed(budget, known(float(least)), known(float(rate)), budget in sufficient if estimate is not None else None)
        for budget, least, rate in zip(KV_BUDGETS, needed, available, strict=True)
    )


def _crossover(scenario: Scenario, draft: Draft, small: str, context_len: int, kv_budget: int) -> int | None:
    other = find_draft(small, "streaming_llm", scenario.deployment, where="small_draft")
    return crossover_batch_size(
        scenario.deployment,
        other,
        draft,
        context_len=context_len,
        gammas=GAMMAS,
        kv_budgets=(float(kv_budget), float(kv_budget)),
        curves=scenario.model.curves,
    )
