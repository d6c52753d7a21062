"""Step times, memory and speedup of speculative decoding for a whole grid in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Required, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from ..base.arrays import as_floats, check_grid
from ..base.errors import InputError, Problem, bad
from ..base.limits import MAX_TOKENS
from ..hardware.profile import HOST_SEQUENCES, HardwareProfile
from ..models.transformer import TransformerConfig
from ..passes.forward import Array, BoolArray, whole_power
from ..passes.roofline import StepTime
from ..plans.strategy import MAX_GAMMA
from .acceptance import (
    ASSUMED_UNCERTAINTY,
    AcceptanceCurve,
    AcceptanceEstimate,
    cut_acceptance_length,
    find_curve,
    implied_acceptance_rate,
    mean_acceptance_length,
    mean_acceptance_length_by_position,
)
from .acceptance import mean_acceptance_length as uncut_length
from .deployment import Deployment
from .drafting import drafting_time, rounds_without_drafts, tree_length, verified_tokens
from .drafts import Draft, copied_bytes
from .memory import Memory, memory_of
from .rounds import Round

UNCALIBRATED_ERROR = 0.25  # of a step time from default efficiencies; plain datasheet rooflines do worse
OTHER_MODEL_ERROR = 0.03  # mean error for a model held out of the fit (docs/accuracy.md)
KERNELS_ONLY_ERROR = 0.12  # kernels measured, engine overheads assumed


class AcceptanceInputs(TypedDict, total=False):
    """Arguments of `evaluate_grid` that say how many draft tokens are accepted."""

    acceptance_rate: ArrayLike | None
    acceptance_by_position: Sequence[float] | None
    mean_acceptance_length: ArrayLike | None
    curves: tuple[AcceptanceCurve, ...]


class GridInputs(AcceptanceInputs, total=False):
    """Keyword arguments of `evaluate_grid`, except gamma."""

    batch_size: Required[ArrayLike]
    context_len: Required[ArrayLike]
    kv_budget: ArrayLike
    max_context_len: ArrayLike | None
    context_weights: ArrayLike | None


@dataclass(frozen=True, eq=False)
class ContextMix:
    """The contexts of a batch: either an axis of the grid, or a weighted distribution of lengths.

    Attributes:
        contexts: Context lengths; one-dimensional if there are weights. [tokens]
        weights: Share of each length in the batch; None if `contexts` is an axis of the grid. [0-1]
    """

    contexts: Array
    weights: Array | None

    def spread(self, axis: Array) -> Array:
        """Add a last axis to a grid axis, if needed, so that it broadcasts against all lengths."""
        return axis if self.weights is None else axis[..., None]

    def mean(self, values: Array) -> Array:
        """Average over the lengths of the batch; a grid without weights stays unchanged."""
        return values if self.weights is None else np.asarray((values * self.weights).sum(axis=-1))


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a grid. All arrays broadcast over batch size, context, gamma and KV budget.

    Attributes:
        target, draft, verify: Time breakdown of the three passes; `draft` is a single draft step.
        round: Times and yield of one speculative round.
        memory: Memory of one GPU.
        fits_in_memory: Whether that memory is available.
        acceptance_rate: Given, looked up or implied; NaN if only the mean acceptance length was given. [0-1]
        acceptance: Measured curve behind the rate; None if the caller gave the acceptance, or nothing is known.
        acceptance_error: Uncertainty of the acceptance rate; 0 if it was given. [0-1]
        error: Relative uncertainty of the speedup at that acceptance rate, from the residuals of the profile. [0-1]
    """

    target: StepTime
    draft: StepTime
    verify: StepTime
    round: Round
    memory: Memory
    fits_in_memory: BoolArray
    acceptance_rate: Array
    acceptance: AcceptanceEstimate | None
    acceptance_error: Array
    error: float

    @cached_property
    def speedup_low(self) -> Array:
        """Lower end of the speedup interval. [ratio]"""
        return self._speedup_at(-1) / (1 + self.error * (self.round.gamma > 0))

    @cached_property
    def speedup_high(self) -> Array:
        """Upper end of the speedup interval. [ratio]"""
        return self._speedup_at(1) * (1 + self.error * (self.round.gamma > 0))

    def _speedup_at(self, side: int) -> Array:
        """Speedup with the acceptance rate shifted by its uncertainty: down for -1, up for 1. [ratio]"""
        r = self.round
        shifted = np.clip(self.acceptance_rate + side * self.acceptance_error, 0.0, 1.0)
        decay = self.acceptance.curve.decay if self.acceptance else 1.0
        change = mean_acceptance_length(r.gamma, shifted, decay) / mean_acceptance_length(r.gamma, self.acceptance_rate, decay)
        length = np.minimum(r.mean_acceptance_length * np.where(np.isnan(change), 1.0, change), r.gamma + 1)
        return np.where(r.gamma > 0, length * r.target_step_s / r.round_s, 1.0)


def evaluate_grid(
    deployment: Deployment,
    draft: Draft,
    *,
    batch_size: ArrayLike,
    context_len: ArrayLike,
    gamma: ArrayLike = 0,
    kv_budget: ArrayLike = np.inf,
    acceptance_rate: ArrayLike | None = None,
    acceptance_by_position: Sequence[float] | None = None,
    mean_acceptance_length: ArrayLike | None = None,
    curves: tuple[AcceptanceCurve, ...] = (),
    max_context_len: ArrayLike | None = None,
    context_weights: ArrayLike | None = None,
    output_len: int | None = None,
) -> Evaluation:
    """Predict speculative decoding for a grid; array arguments broadcast against each other, scalars are 0-d arrays.

    If the acceptance is neither given nor known, everything that depends on it is NaN. Step times, memory and
    `Round.minimum_acceptance_rate` do not depend on it.

    Args:
        deployment: Model and hardware.
        draft: The draft.
        batch_size: Sequences over all replicas.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gamma: Draft tokens per round; 0 for no speculation. [tokens]
        kv_budget: KV entries the draft reads, per sequence; inf for all. [tokens]
        acceptance_rate: Acceptance rate of draft tokens; None to look it up in `curves`. [0-1]
        acceptance_by_position: Conditional acceptance rate of each draft position, instead of one rate. [0-1]
        mean_acceptance_length: Tokens per round, bonus token included, instead of a rate. [tokens]
        curves: Measured acceptance.
        max_context_len: Longest context that must fit in memory; `context_len` by default. [tokens]
        context_weights: Makes the batch a mix of contexts: `context_len` is then a list of lengths with these shares, not an
            axis of the grid. Costs are linear in context, so each pass is evaluated at its mean context. [0-1]
        output_len: Requests end after exactly so many tokens, within a round; None to leave that out of account. [tokens]

    Raises:
        InputError: A value is out of range, or the draft model has a different vocabulary.
    """
    axes = {"batch_size": batch_size, "context_len": context_len, "gamma": gamma, "kv_budget": kv_budget}
    b, s, g, k = (as_floats(name, value) for name, value in axes.items())
    check_grid({name: value for name, value in axes.items() if name != "context_len" or context_weights is None})
    _check_axes(b, s, g, k)
    if output_len is not None and (type(output_len) is not int or not 1 <= output_len <= MAX_TOKENS):
        raise bad("output_len", "", "a whole number of tokens, at least 1", repr(output_len))
    check_vocabularies(deployment.target, draft.model)
    b = np.ceil(b / deployment.replicas)  # the fullest replica determines the speed
    _check_weights(s, context_weights)
    mix = ContextMix(s, None if context_weights is None else as_floats("context_weights", context_weights))
    draft_read = mix.mean(np.minimum(s, mix.spread(k)))
    s = mix.mean(s)
    engine = deployment.hardware.calibration.engine
    target, verify = deployment.pass_time(b, 1, s), deployment.pass_time(b, verified_tokens(draft, g), s)
    network, gpus = draft.network(deployment.target), draft.gpus(deployment.tensor_parallel)
    drafting = drafting_time(deployment, draft, network, batch_size=b, context_len=s, gamma=g, kv_budget=draft_read)
    select_s = np.zeros(())
    if network is not None:
        select_s = deployment.select_s(draft, b, s, network, gpus)
    given = _given_acceptance(g, acceptance_rate, acceptance_by_position, mean_acceptance_length)
    rate, length, estimate = given or _look_up_acceptance(deployment, draft, mix, g, k, curves)
    if draft.tree is not None and mean_acceptance_length is None:
        length = tree_length(length, draft.tree)
    if draft.matches < 1.0:
        verify, length = rounds_without_drafts(target, verify, draft.matches, b, length)
    if output_len is not None:
        cut = cut_acceptance_length(g, rate, output_len) / uncut_length(g, rate)
        length = length * np.where(np.isnan(cut), 1.0, cut)
    first_s = np.zeros(())
    if network is not None:
        first_s = engine.verify_wait * verify.total_s + engine.cold_pass_s
    if network is not None and engine.draft_rereads_last:
        two_s = deployment.pass_time(b, 2, s, kv_budget=draft_read, model=network, gpus=gpus, cold=False).total_s
        known = implied_acceptance_rate(g, length) if mean_acceptance_length is not None else np.nan_to_num(rate, nan=1.0)
        all_accepted = 1 - whole_power(1 - whole_power(known, g), b)  # in at least one sequence of the batch
        first_s = first_s + all_accepted * (two_s - drafting.total_s)
    memory = memory_of(
        deployment.target,
        batch_size=b,
        max_context_len=s if max_context_len is None else max_context_len,
        gamma=g,
        kv_budget=k,
        tensor_parallel=deployment.tensor_parallel,
        draft=draft,
        head_sharded=engine.head_sharded,
    )
    return Evaluation(
        target=target,
        draft=drafting,
        verify=verify,
        round=Round(
            gamma=g,
            mean_acceptance_length=length,
            target_step_s=target.total_s,
            draft_step_s=drafting.total_s,
            verify_step_s=verify.total_s,
            select_step_s=select_s,
            first_draft_s=first_s,
            overhead_s=engine.round_overhead_s
            + np.minimum(b, HOST_SEQUENCES) * engine.round_sequence_s
            + (engine.tree_s if draft.tree else 0.0)
            + deployment.copy_s(copied_bytes(draft, network, b, draft_read, s, length, output_len)),
        ),
        memory=memory,
        fits_in_memory=memory.fits(deployment.hardware),
        acceptance_rate=rate,
        acceptance=estimate,
        acceptance_error=_acceptance_error(estimate, g, draft_read, s),
        error=deployment_error(deployment),
    )


def _check_axes(b: Array, s: Array, g: Array, k: Array) -> None:
    axes = (("batch_size", b, 1.0), ("context_len", s, 0.0), ("gamma", g, 0.0), ("kv_budget", k, 1.0))
    problems = [
        Problem(
            name, "", f"at least {least:.0f} everywhere" + ("" if name == "kv_budget" else ", whole numbers"), f"{values.min()}"
        )
        for name, values, least in axes
        if not np.all(values >= least) or (name in ("batch_size", "gamma") and np.any(values % 1))
    ]
    if g.max(initial=0) > MAX_GAMMA:
        problems.append(Problem("gamma", "", f"1 to {MAX_GAMMA} draft tokens per round", f"{g.max():.0f}"))
    if problems:
        raise InputError(*problems)


def _check_weights(s: Array, context_weights: ArrayLike | None) -> None:
    if context_weights is None:
        return
    weights = as_floats("context_weights", context_weights)
    if s.ndim != 1 or weights.shape != s.shape or not np.all(weights >= 0) or abs(weights.sum() - 1) > 1e-6:
        raise bad("context_weights", "", "one weight per entry of the list `context_len`, with a sum of 1", context_weights)


def check_vocabularies(target: TransformerConfig, draft: TransformerConfig | None) -> None:
    """Check that a draft model uses the target's tokens. Sizes may differ by 1 %, because of padding.

    Raises:
        InputError: The vocabularies differ.
    """
    if draft is not None and abs(draft.vocab_size - target.vocab_size) > 0.01 * target.vocab_size:
        expected = f"a model with the vocabulary of {target.name} ({target.vocab_size} tokens)"
        raise bad("draft", "", expected, f"{draft.name} ({draft.vocab_size} tokens)")


def _acceptance_error(estimate: AcceptanceEstimate | None, g: Array, draft_read: Array, s: Array) -> Array:
    """Uncertainty of the acceptance rate, larger for drafts longer than those measured; 0 if it was given. [0-1]"""
    if estimate is None:
        return np.zeros(())
    error = estimate.uncertainty(draft_read, s)
    return np.where(estimate.exceeded_by(g), np.maximum(error, ASSUMED_UNCERTAINTY), error)


def deployment_error(deployment: Deployment) -> float:
    """Relative uncertainty of a speedup at a known acceptance. [0-1]

    With an engine: the error of what was left out of its fit, and more for machines and models unlike its data. Otherwise that
    of a step time.
    """
    if deployment.engine is not None:
        return deployment.engine.speedup_error(deployment.hardware, deployment.target)
    return relative_error(deployment.hardware) + sum(deployment.unlike_calibration.values())


def step_error(deployment: Deployment) -> float:
    """Relative uncertainty of a step time of a deployment, as `deployment_error`. [0-1]"""
    if deployment.engine is not None:
        return deployment.engine.step_error(deployment.hardware, deployment.target)
    return deployment_error(deployment)


def relative_error(hardware: HardwareProfile) -> float:
    """Relative uncertainty of a step time: at least twice the mean residual of the profile's own fit. [0-1]"""
    engine = hardware.calibration.fit_of("engine")
    if not hardware.calibrated:
        return UNCALIBRATED_ERROR
    return KERNELS_ONLY_ERROR if engine is None else 2 * max(engine.mean_error, OTHER_MODEL_ERROR)


def _given_acceptance(
    g: Array, rate: ArrayLike | None, by_position: Sequence[float] | None, length: ArrayLike | None
) -> tuple[Array, Array, None] | None:
    """Rate and mean acceptance length from the caller's arguments; None if no acceptance was given."""
    if length is not None:
        lengths = as_floats("mean_acceptance_length", length)
        if not np.all((g == 0) | ((lengths >= 1) & (lengths <= g + 1))):
            raise bad("mean_acceptance_length", "", f"1 to gamma + 1 = {g[g > 0].min() + 1:.0f} tokens", length)
        return np.array(np.nan), np.where(g > 0, lengths, 1.0), None
    given = by_position if by_position is not None else rate
    if given is None:
        return None
    rates = as_floats("acceptance_rate", given)
    if not rates.size or not np.all((rates >= 0) & (rates <= 1)):
        raise bad("acceptance_rate", "", "a probability, 0 to 1", given)
    if by_position is None:
        return rates, mean_acceptance_length(g, rates), None
    lengths = mean_acceptance_length_by_position(g, rates.ravel().tolist())
    return implied_acceptance_rate(g, lengths), lengths, None


def _look_up_acceptance(
    deployment: Deployment, draft: Draft, mix: ContextMix, g: Array, k: Array, curves: tuple[AcceptanceCurve, ...]
) -> tuple[Array, Array, AcceptanceEstimate | None]:
    """Rate, mean acceptance length and the curve they come from; NaN if no curve matches the draft."""
    if not draft.drafts or not g.any():
        return np.array(np.nan), np.ones(()), None
    estimate = find_curve(curves, deployment.target.name, draft, deployment.task)
    if estimate is None:
        return np.array(np.nan), np.where(g > 0, np.nan, 1.0), None
    rate = estimate.curve.rate(np.minimum(mix.spread(k), mix.contexts), mix.contexts)
    length = mix.mean(mean_acceptance_length(mix.spread(g), rate, estimate.curve.decay))
    return np.where(g > 0, mix.mean(rate), np.nan), length, estimate
