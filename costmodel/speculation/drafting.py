"""Time of drafting in a round: one pass a token, one pass for a whole block, or one pass a level of a tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..hardware.profile import HOST_SEQUENCES
from ..models.transformer import TransformerConfig
from ..passes.forward import Array
from ..passes.roofline import NO_TIME, StepTime
from .deployment import Deployment
from .drafts import Draft


def drafting_time(
    deployment: Deployment,
    draft: Draft,
    network: TransformerConfig | None,
    *,
    batch_size: Array,
    context_len: Array,
    gamma: Array,
    kv_budget: Array,
) -> StepTime:
    """Time of drafting per draft token, with what the engine adds to a draft step; arrays broadcast.

    Args:
        deployment: Model and hardware.
        draft: The draft.
        network: The network that drafts; None if there is none.
        batch_size: Sequences of the replica.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gamma: Draft tokens per round. [tokens]
        kv_budget: KV entries that a draft step reads, per sequence. [tokens]
    """
    if network is None:
        return NO_TIME
    engine = deployment.hardware.calibration.engine
    queries: Array = np.ones(())
    if draft.one_pass:
        queries = np.maximum(gamma, 1.0)
    elif draft.tree is not None:
        queries = np.asarray(float(draft.tree.width))
    step = deployment.pass_time(
        batch_size,
        queries,
        context_len,
        kv_budget=kv_budget,
        model=network,
        gpus=draft.gpus(deployment.tensor_parallel),
        cold=False,
    )
    added_s = engine.draft_step_s + np.minimum(batch_size, HOST_SEQUENCES) * engine.draft_sequence_s
    if np.any(added_s):
        step = replace(step, overhead_s=step.overhead_s + added_s)
    if not draft.one_pass:
        return step
    return StepTime(*(part / queries for part in step.parts.values()))


def verified_tokens(draft: Draft, gamma: Array) -> Array:
    """Tokens of a sequence that verification reads: the draft and the token before it; of a tree, all of it. [tokens]"""
    if draft.tree is None:
        return gamma + 1
    return np.where(gamma > 0, float(draft.tree.tokens), 1.0)
