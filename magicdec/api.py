"""Names in, predictions out: the questions that `predict` asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from magicdec.costmodel.passes.roofline import VERIFY_KERNELS
from magicdec.costmodel.planning.search import GAMMAS
from magicdec.costmodel.plans.strategy import COMPRESSED_DTYPES
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

from .names import DEFAULT_KV_BUDGET, Model, executed, find_draft, find_hardware, find_model, one_of


@dataclass(frozen=True)
class Question:
    """Model and machine of a question, resolved.

    Attributes:
        model: The target.
        deployment: The target, in the type it runs in, on its GPUs.
    """

    model: Model
    deployment: Deployment


def ask(
    model: str,
    hardware: str,
    *,
    num_gpus: int = 1,
    tensor_parallel: int | None = None,
    verify_kernel: str = VERIFY_KERNELS[0],
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
) -> Question:
    """Resolve the names of a model and a machine. Tensor parallelism spans all GPUs unless it is given."""
    found, profile = find_model(model), find_hardware(hardware)
    gpus = num_gpus if tensor_parallel is None else tensor_parallel
    kernel: Any = one_of("--verify-kernel", verify_kernel, VERIFY_KERNELS)
    weights = one_of("--weight-dtype", weight_dtype, COMPRESSED_DTYPES)
    target = executed(found.config, profile, gpus).compressed(
        weight_dtype=weights, kv_dtype=one_of("--kv-dtype", kv_dtype, COMPRESSED_DTYPES)
    )
    return Question(found, Deployment(target, profile, num_gpus, gpus, kernel))


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
    verify_kernel: str = VERIFY_KERNELS[0],
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    draft_kv_dtype: str | None = None,
    draft_weight_dtype: str | None = None,
    draft_tensor_parallel: int | None = None,
) -> Evaluation:
    """Predict speculative decoding against plain decoding; array arguments broadcast to a grid.

    Args:
        model: `reference`, a built-in name, a config.json or a checkpoint directory.
        hardware: A shipped profile's name, `cpu`, or a profile file.
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        draft: `none`, `self`, `ngram`, `eagle3`, `mtp`, or the name of a smaller model.
        kv_policy: One of `strategy.KV_POLICIES`; by default `streaming_llm` for a self draft, else `full`.
        kv_budget: KV entries the draft reads; by default 512 for sparse policies. [tokens]
        gamma: Draft tokens per round; None for the best one at every point. [tokens]
        acceptance_rate: Of draft tokens; None for the best curve that is known. [0-1]
        acceptance_by_position: A rate for each draft position instead. [0-1]
        mean_acceptance_length: Tokens per round, bonus included, instead of a rate. [tokens]
        num_gpus: GPUs in all.
        tensor_parallel: GPUs that share the target; None for all.
        verify_kernel: How verification attention reads the KV cache.
        weight_dtype, kv_dtype: Smaller types of the target's matrices and KV cache.
        draft_kv_dtype, draft_weight_dtype: Smaller types that a self draft reads instead.
        draft_tensor_parallel: GPUs that share a draft model; None for as many as it has KV heads, up to the target's.

    Raises:
        InputError: A name, or a combination of values, that makes no sense.

    >>> e = predict("llama-3.1-8b", "a100-sxm-80gb", num_gpus=8, batch_size=[1, 128], context_len=32000, gamma=2)
    >>> bool(e.round.speedup[0] < 1 < e.round.speedup[1])
    True
    """
    question = ask(
        model,
        hardware,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        verify_kernel=verify_kernel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
    )
    found = find_draft(
        draft,
        kv_policy,
        question.deployment,
        kv_budget,
        kv_dtype=draft_kv_dtype,
        weight_dtype=draft_weight_dtype,
        tensor_parallel=draft_tensor_parallel,
    )
    return evaluate(
        question,
        found,
        batch_size=batch_size,
        context_len=context_len,
        kv_budget=kv_budget,
        gamma=gamma,
        acceptance_rate=acceptance_rate,
        acceptance_by_position=acceptance_by_position,
        mean_acceptance_length=mean_acceptance_length,
    )


def evaluate(
    question: Question, draft: Draft, *, gamma: ArrayLike | None = None, kv_budget: ArrayLike | None = None, **where: Any
) -> Evaluation:
    """`evaluate_grid` with the question's acceptance curves, the default budget, and the best gamma where none is given."""
    budget = (DEFAULT_KV_BUDGET if kv_budget is None else kv_budget) if draft.sparse else np.inf

    def at(g: ArrayLike) -> Evaluation:
        return evaluate_grid(question.deployment, draft, gamma=g, kv_budget=budget, curves=question.model.curves, **where)

    if not draft.drafts:
        return at(0)
    return at(best_gamma([at(g) for g in GAMMAS]) if gamma is None else gamma)


def best_gamma(evaluations: Sequence[Evaluation]) -> np.ndarray[Any, Any]:
    """The gamma of `GAMMAS` with the largest speedup at every point; with unknown acceptance, the one that asks for the least."""
    shape = np.broadcast_shapes(*(e.round.speedup.shape for e in evaluations))
    speedups = np.stack([np.broadcast_to(e.round.speedup, shape) for e in evaluations])
    if np.isnan(speedups).all():
        speedups = -np.stack([np.broadcast_to(e.round.minimum_acceptance_rate(), shape) for e in evaluations])
    return np.asarray(np.array(GAMMAS)[np.nan_to_num(speedups, nan=-np.inf).argmax(axis=0)])
