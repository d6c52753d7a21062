"""Predictions compared with published measurements: in-sample, with a model held out of the fit, and not fitted at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..hardware.catalog import resolve_profile
from ..hardware.profile import HardwareProfile
from ..models.catalog import resolve_model
from ..passes.forward import Array
from ..planning.best_gamma import evaluate_best_gamma
from ..plans.strategy import KV_POLICIES
from ..speculation.acceptance import published_curves
from ..speculation.deployment import Deployment
from ..speculation.drafts import Draft
from ..speculation.evaluate import Evaluation
from .engine_fit import Observation, fit_published, observations_of, predicted_s, published_rows

IN_SAMPLE, LEFT_OUT, NOT_FITTED = "in sample", "model left out", "not fitted"


@dataclass(frozen=True)
class Comparison:
    """One predicted quantity and its measurement.

    Attributes:
        hardware, model: Names of profile and model.
        quantity: `target step`, `verify step`, `draft steps`, `speedup`, `speedup at the best gamma` or `best gamma`.
        split: How the row relates to the fit: `in sample`, `model left out` or `not fitted`.
        row: Batch size, context and draft, as text.
        measured, predicted: Values. [s, ratio or tokens]
    """

    hardware: str
    model: str
    quantity: str
    split: str
    row: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error; for the best gamma the difference. [ratio or tokens]"""
        return self.predicted - self.measured if self.quantity == "best gamma" else self.predicted / self.measured - 1


@dataclass(frozen=True)
class Accuracy:
    """Errors of one quantity over the rows of one GPU and model.

    Attributes:
        hardware, model, quantity, split: As in `Comparison`.
        rows: Number of rows.
        median, mean, worst: Absolute relative errors; for the best gamma absolute differences. [ratio or tokens]
        worst_row: Row with the worst error.
    """

    hardware: str
    model: str
    quantity: str
    split: str
    rows: int
    median: float
    mean: float
    worst: float
    worst_row: str


def published_comparisons() -> list[Comparison]:
    """Compare every published quantity with its prediction."""
    return [*step_comparisons(), *left_out_comparisons(), *best_gamma_comparisons()]


def step_comparisons() -> list[Comparison]:
    """Compare in-sample step times, and the speedups that follow from them with the published tokens per round."""
    found = []
    for row in published_rows("magicdec_timings"):
        profile = resolve_profile(row["hardware"])
        seen = observations_of(row, profile)
        found += [_step(profile, row, name, one, IN_SAMPLE) for name, one in seen.items()]
        target_s, verify_s, drafting_s = (predicted_s(profile, one) for one in seen.values())
        round_s = drafting_s + verify_s + profile.calibration.engine.round_overhead_s
        speedup = target_s * float(row["mean_acceptance_length"]) / round_s
        measured = float(row["measured_speedup"])
        found.append(Comparison(profile.name, row["target"], "speedup", IN_SAMPLE, _label(row), measured, speedup))
    return list(dict.fromkeys(found))  # several rows share one target step


def left_out_comparisons() -> list[Comparison]:
    """Compare step times of each model with a profile fitted to the other models, on GPUs with rows of several models."""
    found = []
    for name, rows in _by_gpu(published_rows("magicdec_timings")):
        profile = resolve_profile(name)
        models = {_of(one) for row in rows for one in observations_of(row, profile).values()}
        for model in sorted(models) if len(models) > 1 else ():
            fitted = fit_published(profile, without=model)
            for row in rows:
                seen = observations_of(row, fitted).items()
                found += [_step(fitted, row, quantity, one, LEFT_OUT) for quantity, one in seen if _of(one) == model]
    return list(dict.fromkeys(found))


def best_gamma_comparisons() -> list[Comparison]:
    """Compare best gamma and speedup, with acceptance from the shipped curves; nothing here was fitted."""
    found = []
    for row in published_rows("magicdec_optimal_gamma"):
        found_round = _evaluated(row).round
        about = (row["hardware"], row["target"]), (NOT_FITTED, _label(row))
        speedup, gamma = float(row["measured_speedup"]), float(row["measured_optimal_gamma"])
        found.append(Comparison(*about[0], "speedup at the best gamma", *about[1], speedup, float(found_round.speedup)))
        found.append(Comparison(*about[0], "best gamma", *about[1], gamma, float(found_round.gamma)))
    return found


def _evaluated(row: Mapping[str, str]) -> Evaluation:
    small = resolve_model(row["draft_model"]) if row["draft_model"] else None
    (policy,) = (known for known in KV_POLICIES if known == row["kv_policy"])
    deployment = Deployment(
        resolve_model(row["target"]), resolve_profile(row["hardware"]), int(row["num_gpus"]), int(row["tensor_parallel"])
    )
    return evaluate_best_gamma(
        deployment,
        Draft("model" if small else "self", policy, small),
        batch_size=int(row["batch_size"]),
        context_len=int(row["context_len"]),
        kv_budget=int(row["kv_budget"]),
        curves=published_curves(),
    )


def _step(profile: HardwareProfile, row: Mapping[str, str], quantity: str, one: Observation, split: str) -> Comparison:
    label = _label(row) if quantity == "draft steps" else _label(row).partition(",")[0]
    return Comparison(profile.name, _of(one), quantity, split, label, one.measured_s, predicted_s(profile, one))


def _of(one: Observation) -> str:
    return one.passes[0].model.name


def _label(row: Mapping[str, str]) -> str:
    draft = row["draft_model"] or f"self {row['kv_policy']} {row['kv_budget']}"
    return f"{row['batch_size']} x {row['context_len']}, {draft}"


def _by_gpu(rows: Sequence[dict[str, str]]) -> Iterable[tuple[str, list[dict[str, str]]]]:
    return ((name, list(group)) for name, group in groupby(sorted(rows, key=lambda r: r["hardware"]), lambda r: r["hardware"]))


def accuracy(comparisons: Iterable[Comparison]) -> list[Accuracy]:
    """Summarise comparisons by GPU, model, quantity and split."""
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault((one.hardware, one.split, one.model, one.quantity), []).append(one)
    return [_summed(group) for _, group in sorted(groups.items(), key=lambda item: item[0][:2])]


def _summed(group: list[Comparison]) -> Accuracy:
    errors: Array = np.abs([one.error for one in group])
    first, worst = group[0], group[int(errors.argmax())]
    sizes = (float(np.median(errors)), float(errors.mean()), float(errors.max()))
    return Accuracy(first.hardware, first.model, first.quantity, first.split, len(group), *sizes, worst.row)
