"""Sweeps over batch size and context: every cell compared with scalar evaluation, and the regret of simple policies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.planning import sweep as sweep_module
from magicdec.costmodel.planning.sweep import BestOfDraft, Sweep, policy_table, sweep
from magicdec.costmodel.plans.plan import Plan, PlannedHardware, PlannedModel, PredictedRound, parse_plan, render_plan
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import Workload
from magicdec.costmodel.speculation.acceptance import AcceptanceCurve, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

STREAMING, SNAPKV, NGRAM = Draft("self", "streaming_llm"), Draft("self", "snapkv"), Draft("ngram")
CURVES = published_curves()
GRID: dict[str, Any] = {"batch_sizes": [1, 7, 64, 200], "context_lens": [300, 4000, 33_000], "gammas": [1, 3, 6]}
BUDGETS = [64, 1000, 5000]


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


@pytest.fixture(scope="module")
def found(deployment: Deployment) -> Sweep:
    return swept(deployment, STREAMING, SNAPKV, Draft("model", "full", resolve_model("Llama-3.2-1B")))


def swept(deployment: Deployment, *drafts: Draft, **changes: Any) -> Sweep:
    return sweep(deployment, drafts, **{**GRID, "kv_budgets": BUDGETS, "curves": CURVES, **changes})


def alone(deployment: Deployment, draft: Draft, batch: int, context: int, gamma: int, budget: float, **given: Any) -> Evaluation:
    question = {"batch_size": batch, "context_len": context, "gamma": gamma, "kv_budget": budget}
    return evaluate_grid(deployment, draft, **question, **{"curves": CURVES, **given})  # type: ignore[arg-type]


def by_hand(
    deployment: Deployment, best: BestOfDraft, batch: int, context: int, limit: float = math.inf, **given: Any
) -> dict[tuple[int, float], Any]:
    """All gammas and budgets of a cell, evaluated one by one: (lower end, feasible, evaluation)."""
    budgets = BUDGETS if best.draft.sparse else [math.inf]
    points = {}
    for gamma in GRID["gammas"]:
        for budget in budgets:
            e = alone(deployment, best.draft, batch, context, gamma, budget, **given)
            holds = bool(e.fits_in_memory) and float(e.round.speculative_tpot_s) <= limit
            holds = holds and (budget < context or budget == min(budgets))
            points[gamma, budget] = (float(e.speedup_low), holds, e)
    return points


def check_against_scalars(deployment: Deployment, found: Sweep, limit: float = math.inf, **given: Any) -> None:
    for (i, batch), (j, context) in cells(found):
        lows = {}
        for index, best in enumerate(found.bests):
            points = by_hand(deployment, best, batch, context, limit, **given)
            qualified = {key: low for key, (low, holds, _) in points.items() if holds}
            assert bool(best.feasible[i, j]) == bool(qualified)
            if not qualified:
                continue
            chosen = (int(best.gamma[i, j]), float(best.kv_budget[i, j]))
            assert qualified[chosen] == pytest.approx(max(qualified.values()), rel=1e-12)
            e = points[chosen][2]
            assert best.speedup[i, j] == pytest.approx(float(e.round.speedup), rel=1e-12)
            assert best.speedup_low[i, j] == pytest.approx(float(e.speedup_low), rel=1e-12)
            assert best.speedup_high[i, j] == pytest.approx(float(e.speedup_high), rel=1e-12)
            assert best.tpot_s[i, j] == pytest.approx(float(e.round.speculative_tpot_s), rel=1e-12)
            lows[index] = qualified[chosen]
        plain = evaluate_grid(deployment, Draft(), batch_size=batch, context_len=context)
        assert found.autoregressive_tpot_s[i, j] == pytest.approx(float(plain.round.target_step_s), rel=1e-12)
        assert found.autoregressive_fits[i, j] == bool(plain.fits_in_memory)
        assert found.bound[i, j] == str(plain.target.bound)
        if plain.fits_in_memory and float(plain.round.target_step_s) <= limit:
            lows[-1] = 1.0
        expected = max(lows, key=lambda index: (lows[index], -index)) if lows else -2
        assert found.choice[i, j] == expected


def cells(found: Sweep) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    return [
        ((i, int(batch)), (j, int(context)))
        for i, batch in enumerate(found.batch_sizes)
        for j, context in enumerate(found.context_lens)
    ]


def test_every_cell_is_the_best_of_all_its_strategies_asked_one_by_one(deployment: Deployment, found: Sweep) -> None:
    check_against_scalars(deployment, found)
    assert {-2, -1} < set(found.choice.ravel().tolist()), "some cells do not fit, some do not speculate, some do"


def test_what_is_chosen_is_what_is_reported(found: Sweep) -> None:
    for (i, _), (j, _) in cells(found):
        index, strategy = found.choice[i, j], found.strategy(i, j)
        if index < 0:
            assert strategy == NO_SPECULATION
            assert found.speedup[i, j] == found.speedup_low[i, j] == 1
            continue
        best = found.bests[index]
        assert found.speedup[i, j] == best.speedup[i, j] > found.speedup_low[i, j] == best.speedup_low[i, j] > 1
        assert (strategy.draft_kind, strategy.kv_policy) == (best.draft.kind, best.draft.kv_policy)
        assert strategy.gamma == best.gamma[i, j]
        assert strategy.kv_budget == (best.kv_budget[i, j] if best.draft.sparse else None)


@settings(max_examples=12)
@given(
    st.sampled_from(["a100-sxm-80gb", "h100-sxm", "l4", "a100-sxm-40gb"]),
    st.sampled_from([1, 4, 8]),
    st.lists(st.integers(1, 300), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(1, 130_000), min_size=1, max_size=2, unique=True),
    st.one_of(st.none(), st.floats(0, 1)),
    st.sampled_from([math.inf, 0.03, 0.01]),
)
def test_any_map_is_the_best_of_all_its_strategies_asked_one_by_one(
    hardware: str, gpus: int, batches: list[int], contexts: list[int], rate: float | None, limit: float
) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware), gpus, gpus)
    given_rate = {} if rate is None else {"acceptance_rate": rate}
    found = swept(deployment, STREAMING, SNAPKV, batch_sizes=batches, context_lens=contexts, max_tpot_s=limit, **given_rate)
    check_against_scalars(deployment, found, limit, **given_rate)


@pytest.mark.parametrize("points", [1, 9, 10, 27, 28, 55])
def test_chunks_do_not_change_a_number(deployment: Deployment, found: Sweep, points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(*arguments: Any, **where: Any) -> Evaluation:
        if "gamma" in where:  # not the one autoregressive step of every cell
            axes = ("batch_size", "context_len", "gamma", "kv_budget")
            asked.append(np.broadcast(*(where[name] for name in axes)).size)
        return evaluate_grid(*arguments, **where)

    monkeypatch.setattr(sweep_module, "CHUNK_POINTS", points)
    monkeypatch.setattr(sweep_module, "evaluate_grid", counted)
    chunked = swept(deployment, *(best.draft for best in found.bests))
    assert max(asked) <= max(points, 9), "no more than asked for, unless a single cell has more"
    for name in ("autoregressive_tpot_s", "autoregressive_fits", "bound", "choice"):
        np.testing.assert_array_equal(getattr(chunked, name), getattr(found, name))
    for one, other in zip(chunked.bests, found.bests, strict=True):
        assert one.draft is other.draft
        for name in (
            "gamma",
            "kv_budget",
            "speedup",
            "speedup_low",
            "speedup_high",
            "tpot_s",
            "minimum_acceptance_rate",
            "feasible",
        ):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_axes_are_sorted_and_each_value_is_there_once(deployment: Deployment) -> None:
    found = swept(deployment, STREAMING, batch_sizes=[64, 1, 64], context_lens=[4000, 300])
    assert found.batch_sizes.tolist() == [1, 64]
    assert found.context_lens.tolist() == [300, 4000]
    assert found.choice.shape == found.speedup.shape == found.autoregressive_tpot_s.shape == (2, 2)


def test_a_map_of_one_cell(deployment: Deployment) -> None:
    found = swept(deployment, STREAMING, batch_sizes=[128], context_lens=[32_000])
    assert found.choice.tolist() == [[0]]
    assert found.strategy(0, 0).draft_kind == "self"


def test_without_drafts_no_cell_speculates(deployment: Deployment) -> None:
    found = swept(deployment)
    assert set(found.choice.ravel().tolist()) == {-2, -1}
    assert (found.speedup == 1).all()
    assert (found.forced_speedup == 1).all()


def test_a_cell_that_does_not_fit_is_marked_and_has_no_speedup(deployment: Deployment) -> None:
    found = swept(deployment, STREAMING, NGRAM, batch_sizes=[4, 100_000], context_lens=[32_000])
    assert found.choice.tolist()[1] == [-2]
    assert not found.autoregressive_fits[1, 0]
    assert found.strategy(1, 0) == NO_SPECULATION
    for best in found.bests:
        assert best.feasible.ravel().tolist() == [True, False]
        assert np.isnan(best.speedup[1, 0])
        assert np.isnan(best.tpot_s[1, 0])


def test_where_only_autoregressive_decoding_fits_it_is_chosen(
    llama: TransformerConfig, small_llama: TransformerConfig, a100: HardwareProfile
) -> None:
    whole = Draft("model", "full", small_llama)
    roomy = Deployment(llama, a100, 1, 1)
    needs = [evaluate_grid(roomy, d, batch_size=8, context_len=32_000, gamma=1).memory.total_bytes for d in (Draft(), whole)]
    tight = replace(a100, peak=replace(a100.peak, memory_bytes=float(sum(needs)) / 2 / 0.95))
    found = swept(Deployment(llama, tight, 1, 1), whole, batch_sizes=[8], context_lens=[32_000], acceptance_rate=0.99)
    assert not found.bests[0].feasible[0, 0]
    assert found.choice.tolist() == [[-1]]
    assert swept(roomy, whole, batch_sizes=[8], context_lens=[32_000], acceptance_rate=0.99).choice.tolist() == [[0]]


def test_nothing_over_the_latency_limit_is_chosen(deployment: Deployment, found: Sweep) -> None:
    limit = 0.016
    limited = swept(deployment, *(best.draft for best in found.bests), max_tpot_s=limit)
    for (i, _), (j, _) in cells(limited):
        if limited.choice[i, j] >= 0:
            assert limited.bests[limited.choice[i, j]].tpot_s[i, j] <= limit
        elif limited.choice[i, j] == -1:
            assert limited.autoregressive_tpot_s[i, j] <= limit
    assert (limited.choice == -2).sum() > (found.choice == -2).sum()


def test_where_only_an_unsure_draft_is_fast_enough_it_is_chosen(deployment: Deployment) -> None:
    """`plan` chooses so for one point: what is too slow is no choice."""
    cell: dict[str, Any] = {"batch_sizes": [12], "context_lens": [32_000], "kv_budgets": [4096]}
    free = swept(deployment, SNAPKV, **cell)
    best = free.bests[0]
    assert best.speedup_low[0, 0] < 1 < best.speedup[0, 0]
    assert free.choice.tolist() == [[-1]]
    between = float((free.autoregressive_tpot_s[0, 0] * best.tpot_s[0, 0]) ** 0.5)
    assert swept(deployment, SNAPKV, **cell, max_tpot_s=between).choice.tolist() == [[0]]


def test_an_unreachable_limit_leaves_nothing(deployment: Deployment) -> None:
    found = swept(deployment, STREAMING, max_tpot_s=1e-6)
    assert (found.choice == -2).all()
    assert not found.bests[0].feasible.any()


@pytest.mark.parametrize("draft", [NGRAM, Draft("self", "full", weight_dtype="int8"), Draft("self", "pq")])
def test_a_draft_of_unknown_acceptance_is_never_chosen_but_says_what_would_pay(deployment: Deployment, draft: Draft) -> None:
    found = swept(deployment, draft)
    (best,) = found.bests
    assert (found.choice < 0).all()
    assert np.isnan(best.speedup).all()
    assert np.isnan(best.speedup_low).all()
    assert np.isnan(best.tpot_s).all()
    budgets = BUDGETS if draft.sparse else [math.inf]
    for (i, batch), (j, context) in cells(found):
        if not best.feasible[i, j]:
            continue
        needed = [
            float(alone(deployment, draft, batch, context, gamma, budget).round.minimum_acceptance_rate())
            for gamma in GRID["gammas"]
            for budget in budgets
        ]
        least = best.minimum_acceptance_rate[i, j]
        if np.isnan(needed).all():
            assert np.isnan(least)
            continue
        assert least == pytest.approx(np.nanmin(needed), rel=1e-9)
        at = alone(
            deployment, draft, batch, context, int(best.gamma[i, j]), float(best.kv_budget[i, j]), acceptance_rate=float(least)
        )
        if not deployment.hardware.calibration.engine.draft_rereads_last:
            assert at.round.speedup == pytest.approx(1, rel=1e-6)
        assert at.round.speedup >= 1 - 1e-6


def test_unknown_and_known_drafts_compete_without_disturbing_each_other(deployment: Deployment, found: Sweep) -> None:
    mixed = swept(deployment, NGRAM, *(best.draft for best in found.bests), Draft("self", "pq"))
    np.testing.assert_array_equal(np.where(mixed.choice > 0, mixed.choice - 1, mixed.choice), found.choice)
    np.testing.assert_array_equal(mixed.speedup, found.speedup)
    np.testing.assert_array_equal(mixed.forced_speedup, found.forced_speedup)


def test_a_given_acceptance_is_used_for_every_draft(deployment: Deployment) -> None:
    found = swept(deployment, NGRAM, STREAMING, acceptance_rate=0.9)
    assert not np.isnan(found.bests[0].speedup).any() or (found.choice == -2).any()
    check_against_scalars(deployment, found, acceptance_rate=0.9)
    assert 0 in found.choice, "a free draft that is nearly always right wins somewhere"


def test_a_hopeless_acceptance_never_speculates(deployment: Deployment) -> None:
    assert (swept(deployment, STREAMING, SNAPKV, NGRAM, acceptance_rate=0.0).choice < 0).all()


def test_rates_by_position_are_used_for_the_map_too(deployment: Deployment) -> None:
    found = swept(deployment, STREAMING, acceptance_by_position=[0.9, 0.2])
    check_against_scalars(deployment, found, acceptance_by_position=[0.9, 0.2])


# What simple choices lose.


def simple_choices(deployment: Deployment, found: Sweep) -> dict[str, Sweep]:
    drafts = [best.draft for best in found.bests]
    return {
        **{f"gamma {gamma}": swept(deployment, *drafts, gammas=[gamma]) for gamma in GRID["gammas"]},
        **{f"budget {budget}": swept(deployment, *drafts, kv_budgets=[budget]) for budget in BUDGETS},
        **{f"{draft.kind} {draft.kv_policy}": swept(deployment, draft) for draft in drafts},
    }


def test_no_simple_choice_beats_the_map_by_the_measure_it_is_made_for(deployment: Deployment, found: Sweep) -> None:
    assert (found.speedup_low >= 1).all()
    for name, simple in simple_choices(deployment, found).items():
        assert (found.speedup_low >= simple.speedup_low).all(), name
        for best in simple.bests:
            here = best.feasible & (found.choice > -2)
            assert (found.speedup_low >= np.where(here, best.speedup_low, 1.0)).all(), name


def test_regret_is_the_mean_of_the_extra_time_per_token(found: Sweep) -> None:
    fits = found.choice > -2
    assert found.regret(found.speedup) == 0
    assert found.regret(1.0) == pytest.approx(found.speedup[fits].mean() - 1, rel=1e-12)
    assert found.regret(found.speedup / 2) == pytest.approx(1, rel=1e-12)
    assert found.regret(1.0) > 0


def test_cells_that_do_not_fit_have_no_regret(deployment: Deployment) -> None:
    small = swept(deployment, STREAMING, batch_sizes=[64], context_lens=[33_000])
    large = swept(deployment, STREAMING, batch_sizes=[64, 100_000], context_lens=[33_000])
    assert small.regret(1.0) == large.regret(1.0) > 0


def test_a_map_in_which_nothing_fits_has_no_regret(deployment: Deployment) -> None:
    assert swept(deployment, STREAMING, batch_sizes=[100_000], context_lens=[33_000]).regret(1.0) == 0


def test_being_forced_to_speculate_shows_losses_too(deployment: Deployment, found: Sweep) -> None:
    forced = found.forced_speedup
    assert forced.min() < 0.9, "at short contexts a draft costs"
    for (i, _), (j, _) in cells(found):
        lows = {best.speedup_low[i, j]: best.speedup[i, j] for best in found.bests if best.feasible[i, j]}
        assert forced[i, j] == (lows[max(lows)] if lows else 1)
        if found.choice[i, j] >= 0:
            assert forced[i, j] == found.speedup[i, j]


# The table that a plan carries.


def test_the_table_answers_as_the_map_does(found: Sweep) -> None:
    table = policy_table(found)
    for (i, batch), (j, context) in cells(found):
        assert table.at(batch, context) == found.strategy(i, j)
        assert table.predicted_speedup[i][j] == found.speedup[i, j]
        assert table.at(batch - 0.5, context - 0.5) == found.strategy(i, j), "a cell reaches down to its neighbour"
    assert table.strategies[0] == NO_SPECULATION
    assert len(set(table.strategies)) == len(table.strategies)
    assert len(table.strategies) > 1
    assert table.hysteresis == 0.05


def test_beyond_the_map_its_last_cells_hold(found: Sweep) -> None:
    table = policy_table(found)
    assert table.at(10_000, 1_000_000) == found.strategy(-1, -1)
    assert table.at(1, 1) == found.strategy(0, 0)


def test_between_its_axes_the_table_goes_by_the_next_larger_value(found: Sweep) -> None:
    table = policy_table(found)
    assert table.at(8, 4001) == table.at(64, 33_000) == found.strategy(2, 2)


def test_a_column_of_the_table_covers_every_batch_size_once(found: Sweep) -> None:
    table = policy_table(found)
    for j, context in enumerate(found.context_lens):
        rows = table.column(float(context))
        assert [low for low, _, _ in rows] == [1, *(high + 1 for _, high, _ in rows[:-1])]
        assert rows[-1][1] == found.batch_sizes[-1]
        for low, high, strategy in rows:
            for i, batch in enumerate(found.batch_sizes):
                if low <= batch <= high:
                    assert found.strategy(i, j) == strategy


def test_the_table_survives_a_plan_file(found: Sweep) -> None:
    table = policy_table(found, hysteresis=0.1)
    numbers = {name: 1.0 for name in PredictedRound.__dataclass_fields__ if name not in ("bound", "breakdown")}
    plan = Plan(
        workload=Workload(64, 32_000, 128),
        hardware=PlannedHardware(name="h", sha256="0", num_gpus=8, tensor_parallel=8),
        target=PlannedModel(name="m", fingerprint="0"),
        strategy=NO_SPECULATION,
        prediction=PredictedRound(**numbers, bound="kv", breakdown={}),  # type: ignore[arg-type]
        policy=table,
    )
    read = parse_plan(render_plan(plan), where="plan.yaml")
    assert read == plan
    assert read.policy == table
    assert read.policy is not None
    for (i, batch), (j, context) in cells(found):
        assert read.policy.at(batch, context) == found.strategy(i, j)


def test_a_map_without_speculation_is_a_table_that_never_speculates(deployment: Deployment) -> None:
    table = policy_table(swept(deployment, STREAMING, batch_sizes=[1, 2], context_lens=[500]))
    assert table.strategies == [NO_SPECULATION]
    assert table.strategies == [NO_SPECULATION]
    assert table.predicted_speedup == [[1.0], [1.0]]


def test_a_borrowed_acceptance_does_not_outrank_a_measured_one_lightly(deployment: Deployment) -> None:
    """Two drafts that cost the same and are accepted alike, one of them on another model: the map goes by the lower end."""
    borrowed = AcceptanceCurve("Llama-2-7B-32K", "t", "self", "streaming_llm", None, ((512, 32_000, 0.8),), "there")
    measured = AcceptanceCurve("Llama-3.1-8B", "t", "self", "snapkv", None, ((512, 32_000, 0.8),), "here")
    cell: dict[str, Any] = {"batch_sizes": [128], "context_lens": [32_000], "kv_budgets": [512], "gammas": [3]}
    found = swept(deployment, STREAMING, SNAPKV, **cell, curves=(borrowed, measured))
    one, other = found.bests
    assert one.speedup[0, 0] == other.speedup[0, 0]
    assert one.speedup_low[0, 0] < other.speedup_low[0, 0]
    assert found.choice.tolist() == [[1]]
