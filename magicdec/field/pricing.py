"""Predict what the rows of a file of measurements measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.plans.strategy import DraftKind
from magicdec.costmodel.speculation.acceptance import find_curve, implied_acceptance_rate, mean_acceptance_length, published_curves
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, deployment_error, evaluate_grid, step_error

from .columns import (
    FORWARD,
    KERNEL,
    NAMES,
    PLAIN_RATES,
    RATES,
    SPECULATIVE_RATES,
    STEPS,
    TASK_COLUMNS,
    Cells,
    cell,
    first,
    is_plain,
    model_of,
    number,
    said_by_name,
    tokens_per_round,
    whole,
)
from .kernels import kernel_time
from .served import LOAD_ERROR, is_under_load, loaded_tpot_s
from .settings import Setting, draft_of, setting_of, task_of

RATIOS = (
    "speedup",
    "measured_speedup",
    "speedup_pct",
    "round_cost_in_decode_steps",
    "speedup_per_token_over_one",
    "ratio_to_one_token_step",
)
MEASURED_COLUMNS = {*RATES, *PLAIN_RATES, *SPECULATIVE_RATES, *STEPS, *FORWARD, *KERNEL, *TASK_COLUMNS, *RATIOS}
Change = Callable[[Setting], Setting]
BEST_GAMMAS = tuple(range(1, 13))


@dataclass(frozen=True)
class Compared:
    """One measured quantity of a row beside its prediction.

    Attributes:
        quantity: What it is: `plain rate`, `speedup`, `step`, ...
        measured, predicted: Values. [tokens/s, s or ratio]
        spread: Half width of its interval. [ratio]
    """

    quantity: str
    measured: float
    predicted: float
    spread: float

    @property
    def error(self) -> float:
        """Relative error; of the best gamma the difference. [ratio or tokens]"""
        return self.predicted - self.measured if self.quantity == "best gamma" else self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the measurement lies in the interval of the prediction."""
        if self.quantity == "best gamma":
            return abs(self.error) <= 1
        return self.predicted / (1 + self.spread) <= self.measured <= self.predicted * (1 + self.spread)


@dataclass
class PricedRow:
    """A row with what is predicted for it.

    Attributes:
        cells: The row.
        columns: Predictions by column name.
        compared: Measured quantities beside them.
        error: Why nothing is predicted; empty if something is.
        engine: The engine that it was priced for.
    """

    cells: Cells
    columns: dict[str, str] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    error: str = ""
    engine: str = ""
    rounds: dict[int, tuple[float, float]] = field(default_factory=dict)


def unchanged(setting: Setting) -> Setting:
    """The setting as it is."""
    return setting


def price_rows(path: str, rows: Sequence[Cells], change: Change = unchanged) -> list[PricedRow]:
    """Predict every row of a file of measurements.

    Args:
        path: The file; its name counts where rows leave machine or engine out.
        rows: Its rows, by column.
        change: What fits and comparisons change of the setting of every row: another engine, other numbers of it.
    """
    said, columns = said_by_name(path), set(rows[0]) if rows else set()
    window = any(name in columns for name in TASK_COLUMNS) or "p_min" in columns
    plain: dict[tuple[str, ...], float] = {}
    for row in rows:
        rate = _rate(row)
        if rate is not None and is_plain(row):
            plain.setdefault(_group(row), rate)
    rates = _rates_of_groups(rows)
    found = [
        _priced(row, said, window, plain.get(_group(row)), rates.get((*_group(row), cell(row, "draft"))), change) for row in rows
    ]
    _best_gammas(found)
    return found


def _group(row: Cells) -> tuple[str, ...]:
    kinds = ("model", "hardware", "num_gpus", "split", "engine", "quant", "batch", "context")
    return (*(cell(row, kind) for kind in kinds), row.get("task", ""))


def _rate(row: Cells) -> float | None:
    try:
        return first(row, RATES)
    except InputError:
        return None


def _rates_of_groups(rows: Sequence[Cells]) -> dict[tuple[str, ...], float]:
    """The acceptance rate of each setting, from its longest draft: for rows of the same setting that do not give theirs."""
    longest: dict[tuple[str, ...], tuple[int, float]] = {}
    for row in rows:
        try:
            gamma = whole(row, "gamma") or 0
            length = tokens_per_round(row, gamma)[0] if gamma and not is_plain(row) else None
        except InputError:
            continue
        key = (*_group(row), cell(row, "draft"))
        if length is not None and gamma > longest.get(key, (0, 0.0))[0]:
            longest[key] = gamma, float(implied_acceptance_rate(gamma, min(length, gamma + 1)))
    return {group: rate for group, (_, rate) in longest.items()}


def _priced(
    row: Cells, said: Mapping[str, str], window: bool, plain_rate: float | None, group_rate: float | None, change: Change
) -> PricedRow:
    found = PricedRow(row)
    try:
        _price(found, row, said, window, plain_rate, group_rate, change)
    except InputError as error:
        found.error = "; ".join(str(problem) for problem in error.problems)
    return found


def _price(
    found: PricedRow,
    row: Cells,
    said: Mapping[str, str],
    window: bool,
    plain_rate: float | None,
    group_rate: float | None,
    change: Change,
) -> None:
    if not set(row) & MEASURED_COLUMNS:
        _price_acceptance(found, row)
        return
    setting = change(setting_of(row, said, window=window))
    deployment = setting.scenario.deployment
    found.engine = deployment.engine.name if deployment.engine else ""
    measured_kernel = first(row, KERNEL)
    if measured_kernel is not None:
        predicted = kernel_time(row, deployment)
        found.columns["predicted_step_s"] = written(predicted)
        found.compared.append(Compared("kernel", measured_kernel, predicted, step_error(deployment)))
        return
    queries = whole(row, "query_len")
    round_cost = number(row, "round_cost_in_decode_steps")
    if round_cost is None and (queries is not None or number(row, "speedup_per_token_over_one") is not None):
        _price_pass(found, row, setting, queries)
        return
    plain = is_plain(row)
    draft, budget = (Draft(), math.inf) if plain else draft_of(row, setting.scenario, setting.context_len)
    gamma = 0 if plain else whole(row, "gamma")
    if gamma is None:
        raise bad("gamma", "", "the draft tokens of a round in this column", "nothing")
    length, rate = (None, None) if plain else tokens_per_round(row, gamma)
    speedup = first(row, ("speedup", "measured_speedup"))
    percent = number(row, "speedup_pct")
    if percent is not None:
        speedup = 1 + percent / 100
    if length is None and rate is None and round_cost is not None and speedup is not None:
        length = speedup * round_cost
    if length is None and rate is None and not plain:
        rate = group_rate
    evaluation = evaluate_grid(
        deployment,
        draft,
        batch_size=setting.batch_size,
        context_len=setting.context_len,
        gamma=gamma,
        kv_budget=budget,
        mean_acceptance_length=length,
        acceptance_rate=rate,
        curves=setting.scenario.model.curves,
    )
    _add_round(found, row, setting, evaluation, plain, plain_rate, speedup, round_cost)
    best = Draft("mtp") if plain and deployment.target.mtp else draft
    if best.drafts:
        found.columns["predicted_optimal_gamma"] = str(_best_gamma(setting, best, budget))


def _price_acceptance(found: PricedRow, row: Cells) -> None:
    """Tokens per round alone, by what the library knows of such drafts and tasks."""
    gamma, length = whole(row, "gamma"), first(row, NAMES["tokens_per_round"])
    position, survival = whole({"gamma": row.get("position", "")}, "gamma"), number(row, "survival_over_all_positions")
    if position is not None and survival:
        gamma, length = position, survival
    if gamma is None or length is None:
        raise bad("tokens per round", "", "tokens per round beside gamma: nothing else here is predicted", "nothing")
    name, text = model_of(row), cell(row, "draft").lower()
    kind: DraftKind = "mtp" if "mtp" in text else "ngram" if "ngram" in text else "eagle3"
    estimate = find_curve(published_curves(), name, Draft(kind), task_of(row))
    if estimate is None:
        raise bad("draft", "", "a draft with known acceptance", repr(text))
    rate, wide = float(estimate.curve.rate(1.0, 2000.0)), float(np.asarray(estimate.uncertainty(1.0, 2000.0)))
    predicted = float(mean_acceptance_length(gamma, rate, estimate.curve.decay))
    upper = float(mean_acceptance_length(gamma, min(1.0, rate + wide), estimate.curve.decay))
    if position is not None:  # the share of rounds that accept so many tokens: what the last position adds to the mean
        before = [float(mean_acceptance_length(gamma - 1, x, estimate.curve.decay)) for x in (rate, min(1.0, rate + wide))]
        predicted, upper = predicted - before[0], upper - before[1]
        found.columns["predicted_ratio"] = written(predicted)
        found.compared.append(Compared("accepted so far", length, predicted, upper / predicted - 1))
        return
    found.columns["predicted_mean_acceptance_length"] = written(predicted)
    found.compared.append(Compared("tokens per round", length, predicted, upper / predicted - 1))


def _add_round(
    found: PricedRow,
    row: Cells,
    setting: Setting,
    evaluation: Evaluation,
    plain: bool,
    plain_rate: float | None,
    speedup: float | None,
    round_cost: float | None,
) -> None:
    r, batch, deployment = evaluation.round, setting.batch_size, setting.scenario.deployment
    step_s, round_s, length = float(r.target_step_s), float(r.round_s), float(r.mean_acceptance_length)
    steps, ratios = step_error(deployment), deployment_error(deployment)
    speedup_here = float(r.speedup)
    if not math.isnan(speedup_here):  # acceptance that the row does not give has an uncertainty of its own
        ratios = max(ratios, float(evaluation.speedup_high) / speedup_here - 1, speedup_here / float(evaluation.speedup_low) - 1)
    if row.get("concurrency", "").strip() and deployment.engine is not None:
        server = deployment.hardware.calibration.engine
        step_s += server.server_step_s + batch * server.server_token_s
        round_s += server.server_step_s + batch * server.server_token_s * length
        speedup_here = step_s * length / round_s
    low, high = speedup_here / float(r.speedup) * np.array([float(evaluation.speedup_low), float(evaluation.speedup_high)])
    found.columns |= {
        "predicted_target_step_s": written(step_s),
        "predicted_verify_step_s": written(float(r.verify_step_s)),
        "predicted_gamma_draft_step_s": written(float(r.gamma_draft_step_s)),
        "predicted_mean_acceptance_length": written(length),
        "predicted_speculative_tpot_s": written(round_s / length),
        "predicted_tok_s": written(batch * length / round_s),
        "predicted_speedup": written(speedup_here),
        "predicted_speedup_low": written(float(low)),
        "predicted_speedup_high": written(float(high)),
        "bound": str(evaluation.target.bound),
        "fits_in_memory": str(bool(evaluation.fits_in_memory)).lower(),
    }
    served = "ttft" in " ".join(row)  # rates of whole requests, prompts included
    here, unspeculated = first(row, RATES), first(row, PLAIN_RATES)
    speculative = first(row, SPECULATIVE_RATES)
    if plain:
        unspeculated = here if here is not None else unspeculated
    elif here is not None:
        speculative = here
    plain_rate = unspeculated if unspeculated is not None else plain_rate
    if unspeculated is not None and not ("isl" in row and served):
        found.compared.append(Compared("plain rate", unspeculated, batch / step_s, steps))
    measured_step = first(row, STEPS)
    if measured_step is not None and plain and is_under_load(row):
        tpot_s = loaded_tpot_s(row, deployment)
        found.compared.append(Compared("TPOT under load", measured_step, tpot_s, max(steps, LOAD_ERROR)))
    elif measured_step is not None:
        found.compared.append(Compared("step", measured_step, step_s, steps))
    if (said := re.search(r"TPOT ([0-9.]+) ms", row.get("acceptance_note", ""))) is not None:
        found.compared.append(Compared("step", float(said[1]) * 1e-3, step_s, steps))
    step_beside = number(row, "decode_step_ms")
    if step_beside is not None:
        found.compared.append(Compared("step", step_beside * 1e-3, step_s, steps))
    if plain or math.isnan(length):
        if math.isnan(length):
            found.error = "acceptance is neither given nor known"
        return
    if round_cost is not None:
        found.compared.append(Compared("round cost", round_cost, round_s / step_s, ratios))
    if speculative is not None:
        spread = math.hypot(steps, ratios)
        found.compared.append(Compared("speculative rate", speculative, batch * length / round_s, spread))
    if speculative is not None and plain_rate is not None and speedup is None:
        speedup = speculative / plain_rate
    if speedup is not None:
        found.compared.append(Compared("speedup", speedup, speedup_here, ratios))
        found.rounds[int(r.gamma)] = (speedup, speedup_here)


def _price_pass(found: PricedRow, row: Cells, setting: Setting, queries: int | None) -> None:
    """A pass of several tokens, timed by itself or beside that of one token."""
    deployment, batch, context = setting.scenario.deployment, setting.batch_size, setting.context_len
    forward = first(row, FORWARD)
    amortised = number(row, "speedup_per_token_over_one")
    if amortised is not None:
        queries, context = whole({"query_len": row.get("tokens", "")}, "query_len"), 0 if not cell(row, "context") else context
    tokens = queries or 1

    def pass_s(query_len: int) -> float:
        return float(deployment.pass_time(batch, query_len, context, layers_only=forward is not None).total_s)

    found.columns |= {
        "predicted_step_s": written(pass_s(tokens)),
        "predicted_target_step_s": written(pass_s(1)),
        "predicted_verify_step_s": written(pass_s(tokens)),
        "predicted_ratio": written(pass_s(tokens) / pass_s(1)),
        "predicted_tok_s": written(batch * tokens / pass_s(tokens)),
    }
    if amortised is not None:
        found.columns["predicted_speedup"] = written(tokens * pass_s(1) / pass_s(tokens))
        found.compared.append(
            Compared("tokens at once", amortised, tokens * pass_s(1) / pass_s(tokens), deployment_error(deployment))
        )
    ratio = number(row, "ratio_to_one_token_step")
    if ratio is not None:
        found.compared.append(Compared("verification ratio", ratio, pass_s(tokens) / pass_s(1), deployment_error(deployment)))
    if forward is not None:
        found.compared.append(Compared("forward pass", forward, pass_s(tokens), step_error(deployment)))
    step = first(row, STEPS)
    if step is not None:
        found.compared.append(Compared("step", step, pass_s(tokens), step_error(deployment)))


def _best_gamma(setting: Setting, draft: Draft, budget: float) -> int:
    """The best draft length by the acceptance that the library knows of such drafts."""
    from magicdec.costmodel.planning.best_gamma import evaluate_best_gamma

    found = evaluate_best_gamma(
        setting.scenario.deployment,
        draft,
        batch_size=setting.batch_size,
        context_len=setting.context_len,
        kv_budget=budget,
        curves=setting.scenario.model.curves,
        gammas=BEST_GAMMAS,
    )
    return int(np.asarray(found.round.gamma))


def _best_gammas(found: Sequence[PricedRow]) -> None:
    """Where a file has several draft lengths of one setting: the best of them, measured and predicted."""
    groups: dict[tuple[str, ...], list[PricedRow]] = {}
    for one in found:
        key = (*_group(one.cells), one.cells.get("draft", ""), one.cells.get("topk", ""))
        groups.setdefault(key, []).append(one)
    for group in groups.values():
        rounds = {gamma: pair for one in group for gamma, pair in one.rounds.items()}
        if len(rounds) < 3:
            continue
        measured, predicted = (max(rounds, key=lambda gamma: rounds[gamma][side]) for side in (0, 1))
        next(one for one in group if one.rounds).compared.append(Compared("best gamma", measured, predicted, 0.0))
        for one in group:
            one.columns["predicted_optimal_gamma"] = str(predicted)


def written(value: float) -> str:
    """Six significant digits; empty where unknown."""
    return "" if math.isnan(value) else f"{value:.6g}"
