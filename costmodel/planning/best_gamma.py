"""The best gamma at every point of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from ..speculation.acceptance import measured_gammas
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation, GridInputs, evaluate_grid
from .search import GAMMAS


def evaluate_best_gamma(
    deployment: Deployment, draft: Draft, *, gammas: Sequence[int] = GAMMAS, **inputs: Unpack[GridInputs]
) -> Evaluation:
    """Evaluate a grid at the gamma with the largest speedup at every point.

    If the acceptance rate is unknown everywhere, the gamma that needs the lowest acceptance rate to break even is chosen. The
    chosen gammas are `round.gamma` of the result. Without a draft, gamma is 0.

    Args:
        deployment: Model and hardware.
        draft: The draft.
        gammas: Draft lengths to choose from; of those that `curves` were measured with, if any is. [tokens]
        inputs: The other arguments of `evaluate_grid`; they broadcast to the grid.

    Raises:
        InputError: As `evaluate_grid`.

    >>> from magicdec.costmodel.hardware.catalog import resolve_profile
    >>> from magicdec.costmodel.models.catalog import resolve_model
    >>> deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile("a100-sxm-80gb"), 8, 8)
    >>> e = evaluate_best_gamma(
    ...     deployment, Draft("self", "streaming_llm"), batch_size=[1, 128], context_len=32000, kv_budget=512, acceptance_rate=0.8
    ... )
    >>> e.round.gamma.tolist()
    [1.0, 3.0]
    """
    if not draft.drafts:
        return evaluate_grid(deployment, draft, gamma=0, **inputs)
    if not _acceptance_given(inputs):
        gammas = measured_gammas(inputs.get("curves", ()), deployment.target.name, draft, deployment.task, gammas)
    along_gamma = evaluate_gammas(deployment, draft, gammas=gammas, **inputs).round
    merit = along_gamma.speedup
    if np.isnan(merit).all():
        merit = -along_gamma.minimum_acceptance_rate()
    best = np.array(gammas)[np.nan_to_num(merit, nan=-np.inf).argmax(axis=0)]
    return evaluate_grid(deployment, draft, gamma=best, **inputs)


def _acceptance_given(inputs: GridInputs) -> bool:
    given = inputs.get("acceptance_rate"), inputs.get("acceptance_by_position"), inputs.get("mean_acceptance_length")
    return any(value is not None for value in given)


def evaluate_gammas(deployment: Deployment, draft: Draft, *, gammas: Sequence[int], **inputs: Unpack[GridInputs]) -> Evaluation:
    """Evaluate a grid at several gammas, which form a new first axis of the result.

    Args:
        deployment: Model and hardware.
        draft: The draft.
        gammas: Draft lengths. [tokens]
        inputs: The other arguments of `evaluate_grid`; they broadcast to the grid.

    Raises:
        InputError: As `evaluate_grid`.
    """
    axes = [inputs["batch_size"], inputs.get("kv_budget"), inputs.get("max_context_len")]
    axes += [inputs.get("acceptance_rate"), inputs.get("mean_acceptance_length")]
    if inputs.get("context_weights") is None:  # otherwise context_len is a distribution, not an axis of the grid
        axes.append(inputs["context_len"])
    dimensions = max(0 if axis is None else np.ndim(axis) for axis in axes)
    return evaluate_grid(deployment, draft, gamma=np.reshape(gammas, (-1, *[1] * dimensions)), **inputs)
