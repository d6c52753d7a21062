"""From a model, a machine and a draft to step times, memory and speedup: the whole grid in one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from costmodel.acceptance import AcceptanceCurve, Answer, find_curve, mean_acceptance_length
from costmodel.errors import InputError, Problem
from costmodel.forward import Array, forward_cost
from costmodel.hardware import HardwareProfile
from costmodel.memory import Memory, memory_of
from costmodel.roofline import StepTime, VerifyKernel, step_time
from costmodel.speculation import Round
from costmodel.strategy import DraftKind, KvPolicy
from costmodel.transformer import TransformerConfig

UNCALIBRATED_ERROR = 0.25  # of a step time priced at default efficiencies; peers' datasheet rooflines do worse


@dataclass(frozen=True)
class Setup:
    """Who runs where.

    Attributes:
        target: The model that is served.
        hardware: One of its GPUs.
        num_gpus: GPUs in all; the batch is split over `num_gpus / tensor_parallel` replicas.
        tensor_parallel: GPUs that share one replica of the target.
        verify_kernel: How verification attention reads the KV cache.
    """

    target: TransformerConfig
    hardware: HardwareProfile
    num_gpus: int = 1
    tensor_parallel: int = 1
    verify_kernel: VerifyKernel = "shared_kv_splitkv"

    def __post_init__(self) -> None:
        problems = []
        if self.num_gpus < 1 or self.tensor_parallel < 1 or self.num_gpus % self.tensor_parallel:
            expected = f"a divisor of the number of GPUs ({self.num_gpus})"
            problems.append(Problem("--tensor-parallel", "", expected, str(self.tensor_parallel)))
        elif self.target.num_heads % self.tensor_parallel:
            expected = f"a divisor of the {self.target.num_heads} query heads of {self.target.name}"
            problems.append(Problem("--tensor-parallel", "", expected, str(self.tensor_parallel)))
        elif self.target.num_kv_heads % self.tensor_parallel and self.tensor_parallel % self.target.num_kv_heads:
            expected = f"a divisor or a multiple of the {self.target.num_kv_heads} KV heads of {self.target.name}"
            problems.append(Problem("--tensor-parallel", "", expected, str(self.tensor_parallel)))
        if problems:
            raise InputError(*problems)

    @property
    def replicas(self) -> int:
        """Copies of the target that share the batch."""
        return self.num_gpus // self.tensor_parallel


@dataclass(frozen=True)
class Draft:
    """What drafts, apart from gamma and budget, which are axes of the grid.

    Attributes:
        kind: `none`, `self` or `model`.
        kv_policy: Which KV entries it reads.
        model: The smaller model for `model`.
        tensor_parallel: GPUs that share the smaller model; None for as many as it has KV heads, up to the target's.
    """

    kind: DraftKind = "none"
    kv_policy: KvPolicy = "full"
    model: TransformerConfig | None = None
    tensor_parallel: int | None = None

    def gpus(self, setup: Setup) -> int:
        """GPUs that share the draft."""
        if self.model is None:
            return setup.tensor_parallel
        return self.tensor_parallel or min(setup.tensor_parallel, self.model.num_kv_heads)


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

    @property
    def speedup_low(self) -> Array:
        """Lower end of the interval on the speedup. [ratio]"""
        return self._speedup_at(-1) / (1 + self.error * (self.round.gamma > 0))

    @property
    def speedup_high(self) -> Array:
        """Upper end of the interval on the speedup. [ratio]"""
        return self._speedup_at(1) * (1 + self.error * (self.round.gamma > 0))

    def _speedup_at(self, side: int) -> Array:
        """The speedup if acceptance is off by its uncertainty, to one side. [ratio]"""
        r = self.round
        rate = np.clip(self.acceptance_rate + side * self.acceptance_error, 0.0, 1.0)
        length = np.where(np.isnan(rate), r.mean_acceptance_length, mean_acceptance_length(r.gamma, np.nan_to_num(rate)))
        return np.where(r.gamma > 0, length * r.target_step_s / r.round_s, 1.0)


def evaluate_grid(
    setup: Setup,
    draft: Draft,
    *,
    batch_size: ArrayLike,
    context_len: ArrayLike,
    gamma: ArrayLike = 0,
    kv_budget: ArrayLike = np.inf,
    acceptance_rate: ArrayLike | None = None,
    acceptance_length: ArrayLike | None = None,
    curves: tuple[AcceptanceCurve, ...] = (),
    max_context_len: ArrayLike | None = None,
) -> Evaluation:
    """Predict a grid of situations; all array arguments broadcast against one another, a scalar is the 0-d case.

    Args:
        setup: Model and machine.
        draft: What drafts.
        batch_size: Sequences over all replicas.
        context_len: Tokens in the KV cache, per sequence. [tokens]
        gamma: Draft tokens per round; 0 for none. [tokens]
        kv_budget: Entries the draft reads, per sequence; inf for all. [tokens]
        acceptance_rate: Of draft tokens; None to ask the curves. [0-1]
        acceptance_length: Tokens per round, bonus included, instead of a rate. [tokens]
        curves: Where acceptance is looked up.
        max_context_len: Longest context that memory must hold; `context_len` by default. [tokens]

    Raises:
        InputError: Acceptance is neither given nor known.
    """
    b, s, g, k = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (batch_size, context_len, gamma, kv_budget)))
    _check_axes(b, s, g, k)
    check_vocabularies(setup.target, draft.model)
    b = np.ceil(b / setup.replicas)  # the fullest replica sets the pace
    drafter, drafter_gpus = draft.model or setup.target, draft.gpus(setup)

    def priced(model: TransformerConfig, gpus: int, query_len: ArrayLike, budget: ArrayLike = np.inf) -> StepTime:
        cost = forward_cost(
            model,
            batch_size=b,
            query_len=query_len,
            context_len=s,
            kv_budget=budget,
            tensor_parallel=gpus,
            head_sharded=setup.hardware.calibration.head_sharded,
        )
        return step_time(cost, setup.hardware, model.dtype, tensor_parallel=gpus, verify_kernel=setup.verify_kernel)

    target, verify = priced(setup.target, setup.tensor_parallel, 1), priced(setup.target, setup.tensor_parallel, g + 1)
    drafting = priced(drafter, drafter_gpus, 1, k)
    rate, length, answer = _acceptance(setup, draft, s, g, k, acceptance_rate, acceptance_length, curves)
    memory = memory_of(
        setup.target,
        batch_size=b,
        max_context_len=s if max_context_len is None else max_context_len,
        gamma=g,
        kv_budget=k,
        tensor_parallel=setup.tensor_parallel,
        draft=draft.model,
        draft_tensor_parallel=drafter_gpus,
        drafts=draft.kind != "none",
        head_sharded=setup.hardware.calibration.head_sharded,
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
            select_step_s=0 * s,
            overhead_s=setup.hardware.calibration.round_overhead_s + 0 * s,
        ),
        memory=memory,
        fits_in_memory=memory.fits(setup.hardware),
        acceptance_rate=rate,
        answer=answer,
        acceptance_error=answer.uncertainty(np.minimum(k, s), s) if answer else np.zeros_like(s),
        error=relative_error(setup.hardware),
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
    if problems:
        raise InputError(*problems)


def check_vocabularies(target: TransformerConfig, draft: TransformerConfig | None) -> None:
    """Raise `InputError` unless a draft model speaks the target's tokens; padding of up to a hundredth is no difference."""
    if draft is not None and abs(draft.vocab_size - target.vocab_size) > 0.01 * target.vocab_size:
        expected = f"a model with the vocabulary of {target.name} ({target.vocab_size} tokens)"
        raise InputError(Problem("--draft", "", expected, f"{draft.name} ({draft.vocab_size} tokens)"))


def relative_error(hardware: HardwareProfile) -> float:
    """Uncertainty of a ratio of predicted times: twice the mean residual of the profile's fit. [0-1]"""
    fit = hardware.calibration.fit
    return UNCALIBRATED_ERROR if fit is None else 2 * fit.mean_error


def _acceptance(
    setup: Setup,
    draft: Draft,
    s: Array,
    g: Array,
    k: Array,
    acceptance_rate: ArrayLike | None,
    acceptance_length: ArrayLike | None,
    curves: tuple[AcceptanceCurve, ...],
) -> tuple[Array, Array, Answer | None]:
    """Rate, tokens per round and the curve that answered."""
    if acceptance_length is not None:
        length = np.asarray(acceptance_length, np.float64) + 0 * s
        if not np.all((g == 0) | ((length >= 1) & (length <= g + 1))):
            raise InputError(Problem("--mean-acceptance-length", "", "1 to gamma + 1 tokens", str(acceptance_length)))
        return np.full_like(s, np.nan), np.where(g > 0, length, 1.0), None
    if acceptance_rate is not None:
        rate = np.asarray(acceptance_rate, np.float64) + 0 * s
        if not np.all((rate >= 0) & (rate <= 1)):
            raise InputError(Problem("--acceptance-rate", "", "a probability, 0 to 1", str(acceptance_rate)))
        return rate, mean_acceptance_length(g, rate), None
    if draft.kind == "none" or not g.any():
        return np.full_like(s, np.nan), np.ones_like(s), None
    answer = find_curve(
        curves,
        target=setup.target.name,
        draft_kind=draft.kind,
        kv_policy=draft.kv_policy,
        draft_model=draft.model.name if draft.model else None,
    )
    if answer is None:
        expected = f"a value: no acceptance is known for draft {draft.kind} with kv policy {draft.kv_policy}"
        raise InputError(Problem("--acceptance-rate", "", expected, "nothing"))
    rate = answer.curve.rate(np.minimum(k, s), s)
    return np.where(g > 0, rate, np.nan), mean_acceptance_length(g, rate), answer
