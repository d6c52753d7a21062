"""From a model, a machine and a draft to step times, memory and speedup: the whole grid in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from ..base.errors import InputError, Problem
from ..hardware.profile import HardwareProfile
from ..models.transformer import TransformerConfig
from ..passes.forward import Array, whole_power
from ..passes.roofline import NO_TIME, StepTime
from ..plans.strategy import MAX_GAMMA
from .acceptance import (
    AcceptanceCurve,
    Answer,
    find_curve,
    implied_acceptance_rate,
    length_by_position,
    mean_acceptance_length,
)
from .deployment import Deployment
from .drafts import Draft
from .memory import Memory, memory_of
from .rounds import Round

UNCALIBRATED_ERROR = 0.25  # of a step time priced at default efficiencies; peers' datasheet rooflines do worse
OTHER_MODEL_ERROR = 0.03  # mean error of step times of a model that was left out of a fit (docs/accuracy.md)
KERNELS_ONLY_ERROR = 0.12  # of one whose kernels were measured and whose engine is assumed


@dataclass(frozen=True)
class Mix:
    """The contexts of a batch: an axis of the grid, or lengths that are met in given shares.

    Attributes:
        contexts: Lengths; with `weights` a list of them. [tokens]
        weights: Their shares; None where every point of the grid has one length. [0-1]
    """

    contexts: Array
    weights: Array | None

    def spread(self, axis: Array) -> Array:
        """An axis of the grid, ready to meet every length."""
        return axis if self.weights is None else axis[..., None]

    def mean(self, values: Array) -> Array:
        """The mean over the lengths of a batch."""
        return values if self.weights is None else np.asarray((values * self.weights).sum(axis=-1))


@dataclass(frozen=True)
class Evaluation:
    """What is predicted; every array broadcasts over batch, context, gamma and budget.

    Attributes:
        target, draft, verify: The three passes by what they spend their time on; `draft` is one step.
        round: Their sum and yield.
        memory: Of one GPU.
        fits_in_memory: Whether it does.
        acceptance_rate: Used, or implied; nan when only tokens per round were given.
        answer: The curve behind it; None when the caller gave acceptance.
        acceptance_error: Uncertainty of the acceptance rate; 0 where it was given. [0-1]
        error: Relative uncertainty of the speedup at that acceptance, from the residuals of the profile. [0-1]
    """

    target: StepTime
    draft: StepTime
    verify: StepTime
    round: Round
    memory: Memory
    fits_in_memory: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    acceptance_rate: Array
    answer: Answer | None
    acceptance_error: Array
    error: float

    @cached_property
    def speedup_low(self) -> Array:
        """Lower end of the interval on the speedup. [ratio]"""
        return self._speedup_at(-1) / (1 + self.error * (self.round.gamma > 0))

    @cached_property
    def speedup_high(self) -> Array:
        """Upper end of the interval on the speedup. [ratio]"""
        return self._speedup_at(1) * (1 + self.error * (self.round.gamma > 0))

    def _speedup_at(self, side: int) -> Array:
        """The speedup if acceptance is off by its uncertainty, to one side. [ratio]"""
        r = self.round
        off = np.clip(self.acceptance_rate + side * self.acceptance_error, 0.0, 1.0)
        change = mean_acceptance_length(r.gamma, off) / mean_acceptance_length(r.gamma, self.acceptance_rate)
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
    acceptance_length: ArrayLike | None = None,
    curves: tuple[AcceptanceCurve, ...] = (),
    max_context_len: ArrayLike | None = None,
    context_weights: ArrayLike | None = None,
) -> Evaluation:
    """Predict a grid of situations; all array arguments broadcast against one another, a scalar is the 0-d case.

    Args:
        deployment: Model and machine.
        draft: What drafts.
        batch_size: Sequences over all replicas.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gamma: Draft tokens per round; 0 for none. [tokens]
        kv_budget: Entries the draft reads, per sequence; inf for all. [tokens]
        acceptance_rate: Of draft tokens; None to ask the curves. [0-1]
        acceptance_by_position: A rate for each draft position, given those before it were accepted, instead of one rate. [0-1]
        acceptance_length: Tokens per round, bonus included, instead of a rate. [tokens]
        curves: Where acceptance is looked up.
        max_context_len: Longest context that memory must hold; `context_len` by default. [tokens]
        context_weights: The batch mixes contexts: `context_len` is a list of lengths, met in these shares, and no axis of the
            grid. Costs are linear in context, so passes are priced at the mean of what they read. [0-1]

    Where acceptance is neither given nor known, what depends on it is nan; step times, memory and the acceptance that would
    pay (`Round.minimum_acceptance_rate`) are not.

    Raises:
        InputError: Values out of their range, or a draft with another vocabulary.
    """
    b, s, g, k = (np.asarray(x, np.float64) for x in (batch_size, context_len, gamma, kv_budget))
    _check_axes(b, s, g, k)
    check_vocabularies(deployment.target, draft.model)
    b = np.ceil(b / deployment.replicas)  # the fullest replica sets the pace
    _check_shares(s, context_weights)
    mix = Mix(s, None if context_weights is None else np.asarray(context_weights, np.float64))
    read = mix.mean(np.minimum(s, mix.spread(k)))  # by the draft
    s = mix.mean(s)
    target, verify = deployment.pass_time(b, 1, s), deployment.pass_time(b, g + 1, s)
    network, gpus = draft.network(deployment.target), draft.gpus(deployment.tensor_parallel)
    drafting, select_s = NO_TIME, np.zeros(())
    if network is not None:
        drafting = deployment.pass_time(b, 1, s, kv_budget=read, model=network, gpus=gpus)
        select_s = deployment.select_s(draft, b, s, network, gpus)
    given = _given_acceptance(g, acceptance_rate, acceptance_by_position, acceptance_length)
    rate, length, answer = given or _looked_up(deployment, draft, mix, g, k, curves)
    engine = deployment.hardware.calibration.engine
    first_s = engine.verify_wait * verify.total_s if network is not None else np.zeros(())
    if network is not None and engine.draft_rereads_last:
        two_s = deployment.pass_time(b, 2, s, kv_budget=read, model=network, gpus=gpus).total_s
        known = implied_acceptance_rate(g, length) if acceptance_length is not None else np.nan_to_num(rate, nan=1.0)
        all_accepted = 1 - whole_power(1 - whole_power(known, g), b)  # in some sequence of the batch
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
            overhead_s=np.asarray(engine.round_overhead_s),
        ),
        memory=memory,
        fits_in_memory=memory.fits(deployment.hardware),
        acceptance_rate=rate,
        answer=answer,
        acceptance_error=answer.uncertainty(read, s) if answer else np.zeros(()),
        error=relative_error(deployment.hardware),
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


def _check_shares(s: Array, weights: ArrayLike | None) -> None:
    """Raise `InputError` unless the contexts of a mixture are a list, each with a share, that make up the whole."""
    if weights is None:
        return
    shares = np.asarray(weights, np.float64)
    if s.ndim != 1 or shares.shape != s.shape or not np.all(shares >= 0) or abs(shares.sum() - 1) > 1e-6:
        expected = "a share of each of the contexts, which is a list, adding up to 1"
        raise InputError(Problem("context_weights", "", expected, str(weights)))


def check_vocabularies(target: TransformerConfig, draft: TransformerConfig | None) -> None:
    """Raise `InputError` unless a draft model speaks the target's tokens; padding of up to a hundredth is no difference."""
    if draft is not None and abs(draft.vocab_size - target.vocab_size) > 0.01 * target.vocab_size:
        expected = f"a model with the vocabulary of {target.name} ({target.vocab_size} tokens)"
        raise InputError(Problem("--draft", "", expected, f"{draft.name} ({draft.vocab_size} tokens)"))


def relative_error(hardware: HardwareProfile) -> float:
    """Uncertainty of a step time, and of a ratio of them: twice the mean residual of the profile's own fit, at least. [0-1]"""
    whole = hardware.calibration.fit_of("engine")
    if whole is not None:
        return 2 * max(whole.mean_error, OTHER_MODEL_ERROR)
    return KERNELS_ONLY_ERROR if hardware.calibrated else UNCALIBRATED_ERROR


def _given_acceptance(
    g: Array, rate: ArrayLike | None, by_position: Sequence[float] | None, length: ArrayLike | None
) -> tuple[Array, Array, None] | None:
    """Rate and tokens per round as the caller gave them; None if the caller did not."""
    if length is not None:
        lengths = np.asarray(length, np.float64)
        if not np.all((g == 0) | ((lengths >= 1) & (lengths <= g + 1))):
            most = f"gamma + 1 = {float(g) + 1:.0f}" if g.ndim == 0 else "gamma + 1"
            raise InputError(Problem("--mean-acceptance-length", "", f"1 to {most} tokens", str(length)))
        return np.array(np.nan), np.where(g > 0, lengths, 1.0), None
    asked = by_position if by_position is not None else rate
    if asked is None:
        return None
    rates = np.asarray(asked, np.float64)
    if not rates.size or not np.all((rates >= 0) & (rates <= 1)):
        raise InputError(Problem("--acceptance-rate", "", "a probability, 0 to 1", str(asked)))
    if by_position is None:
        return rates, mean_acceptance_length(g, rates), None
    lengths = length_by_position(g, by_position)
    return implied_acceptance_rate(g, lengths), lengths, None


def _looked_up(
    deployment: Deployment, draft: Draft, mix: Mix, g: Array, k: Array, curves: tuple[AcceptanceCurve, ...]
) -> tuple[Array, Array, Answer | None]:
    """Rate, tokens per round and the curve that answered; nan where none does."""
    if not draft.drafts or not g.any():
        return np.array(np.nan), np.ones(()), None
    answer = find_curve(curves, deployment.target.name, draft)
    if answer is None:
        return np.array(np.nan), np.where(g > 0, np.nan, 1.0), None
    rate = answer.curve.rate(np.minimum(mix.spread(k), mix.contexts), mix.contexts)
    length = mix.mean(mean_acceptance_length(mix.spread(g), rate))
    return np.where(g > 0, mix.mean(rate), np.nan), length, answer
