"""Predict speculative decoding beside autoregressive decoding, for one point or for a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from magicdec.costmodel.base.arrays import as_floats, check_grid
from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.planning.best_gamma import evaluate_best_gamma
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import GridInputs, evaluate_grid

from ..inputs.checks import probabilities, quantities, text, whole_number
from ..inputs.engines import check_engine
from ..inputs.names import DEFAULT_KV_BUDGET, find_draft
from ..inputs.scenario import Scenario, resolve_scenario
from ..results.prediction import Prediction


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
    acceptance_by_position: Sequence[float] | None = None,
    mean_acceptance_length: ArrayLike | None = None,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str | None = None,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    draft_kv_dtype: str | None = None,
    draft_weight_dtype: str | None = None,
    draft_tensor_parallel: int | None = None,
    engine: str | None = None,
    task: str | None = None,
    quant: str | None = None,
    output_len: int | None = None,
) -> Prediction:
    """Predict step times, speedup and memory; array arguments broadcast to a grid.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A GPU's name, `cpu`, `local`, a profile file, or several of them separated by commas.
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        draft: `none`, `self`, `ngram`, `eagle3`, `mtp`, or the name of a smaller model.
        kv_policy: Which KV entries the draft reads; None for `streaming_llm` with a self draft, `full` with others.
        kv_budget: KV entries the draft reads, per sequence; None for 512 with a sparse policy. [tokens]
        gamma: Draft tokens per round; None for the best one at every point. [tokens]
        acceptance_rate: Probability that a draft token is accepted, given that all earlier ones were; None for the best
            curve known. [0-1]
        acceptance_by_position: A rate for each draft position instead. [0-1]
        mean_acceptance_length: Tokens per round, bonus token included, instead of a rate; needs `gamma`. [tokens]
        num_gpus: GPUs in all.
        tensor_parallel: GPUs that share one replica of the target; None for all.
        verify_kernel: How verification attention reads the KV cache, one of `VERIFY_KERNELS`; None for the
            engine's own.
        weight_dtype, kv_dtype: Narrower types of the target's matrices and KV cache: fp8, int8 or int4.
        draft_kv_dtype, draft_weight_dtype: Narrower types that a self draft reads.
        draft_tensor_parallel: GPUs that share a draft model; None for as many as it has KV heads, up to the target's.
        engine: The serving engine that runs it, or its profile; None for the one that the machine was calibrated with.
        task: What is generated: code, chat, prose, reasoning or summary; None for a mean over tasks.
        quant: Quantisation of the weights, as files are named: Q4_K_M, AWQ, NVFP4; None for what the name says.
        output_len: New tokens of a request whose prompt is `context_len`: adds what is gained end to end. [tokens]

    Raises:
        InputError: A name is unknown, a value is out of its range, or values contradict one another.

    >>> found = predict("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=[1, 128], context_len=32000, gamma=2)
    >>> bool(found.speedup[0] < 1 < found.speedup[1])
    True
    """
    rates = {"acceptance_rate": acceptance_rate, "acceptance_by_position": acceptance_by_position}
    given = {
        "gamma": gamma,
        "kv_budget": kv_budget,
        "kv_policy": kv_policy,
        **rates,
        "mean_acceptance_length": mean_acceptance_length,
    }
    draft = text("draft", draft)
    if draft == "none" and (useless := [name for name, value in given.items() if value is not None]):
        raise bad(useless[0], "", "nothing beside `draft` none, which drafts nothing", ", ".join(f"`{name}`" for name in useless))
    quantities("batch_size", batch_size)
    quantities("context_len", context_len, whole=False)
    for name, value in {"kv_budget": kv_budget, "gamma": gamma}.items():
        if value is not None:
            quantities(name, value)
    for name, value in {"acceptance_rate": acceptance_rate, "mean_acceptance_length": mean_acceptance_length}.items():
        if value is not None:
            as_floats(name, value)
    check_grid(
        {
            "batch_size": batch_size,
            "context_len": context_len,
            "kv_budget": kv_budget,
            "gamma": gamma,
            "acceptance_rate": acceptance_rate,
            "mean_acceptance_length": mean_acceptance_length,
        }
    )
    probabilities("acceptance_by_position", acceptance_by_position)
    if mean_acceptance_length is not None:
        if not np.all(np.isfinite(np.asarray(mean_acceptance_length, np.float64))):
            raise bad("mean_acceptance_length", "", "a number of tokens", mean_acceptance_length)
        if any(value is not None for value in rates.values()):
            raise bad("mean_acceptance_length", "", "no `acceptance_rate` beside it: one of the two", "both")
        if gamma is None:
            raise bad("gamma", "", "a value beside `mean_acceptance_length`, which belongs to one gamma", "nothing")
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
    found = find_draft(
        draft,
        kv_policy,
        scenario.deployment,
        kv_budget,
        kv_dtype=draft_kv_dtype,
        weight_dtype=draft_weight_dtype,
        tensor_parallel=draft_tensor_parallel,
    )
    check_engine(scenario.deployment.engine, [found])
    if kv_budget is not None and found.drafts and not found.sparse:
        raise bad("kv_budget", "", "a draft that reads part of its KV cache beside it", found.strategy(1, 1).draft_text)
    predicted = evaluate(
        scenario,
        found,
        batch_size=batch_size,
        context_len=context_len,
        kv_budget=kv_budget,
        gamma=gamma,
        acceptance_rate=acceptance_rate,
        acceptance_by_position=acceptance_by_position,
        mean_acceptance_length=mean_acceptance_length,
    )
    return predicted if output_len is None else replace(predicted, output_len=whole_number("output_len", output_len))


def evaluate(
    scenario: Scenario,
    draft: Draft,
    *,
    batch_size: ArrayLike,
    context_len: ArrayLike,
    kv_budget: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    acceptance_rate: ArrayLike | None = None,
    acceptance_by_position: Sequence[float] | None = None,
    mean_acceptance_length: ArrayLike | None = None,
) -> Prediction:
    """`predict` with model, machine and draft resolved already; the arguments are those of `predict`."""
    budget = np.asarray((DEFAULT_KV_BUDGET if kv_budget is None else kv_budget) if draft.sparse else np.inf, np.float64)

    inputs: GridInputs = {
        "batch_size": batch_size,
        "context_len": context_len,
        "kv_budget": budget,
        "acceptance_rate": acceptance_rate,
        "acceptance_by_position": acceptance_by_position,
        "mean_acceptance_length": mean_acceptance_length,
        "curves": scenario.model.curves,
    }
    if gamma is None or not draft.drafts:
        evaluation = evaluate_best_gamma(scenario.deployment, draft, **inputs)
    else:
        evaluation = evaluate_grid(scenario.deployment, draft, gamma=gamma, **inputs)
    batches, contexts = np.asarray(batch_size, np.float64), np.asarray(context_len, np.float64)
    return Prediction(scenario, draft, batches, contexts, budget, evaluation)
