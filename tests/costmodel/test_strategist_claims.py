"""Claims about the planner: grid equals scalar evaluation, sound costs of every draft, results of the paper, a field report."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.hardware.catalog import profile_files, resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.roofline import VerifyKernel
from magicdec.costmodel.planning.search import GAMMAS, KV_BUDGETS
from magicdec.costmodel.planning.sweep import Sweep, sweep
from magicdec.costmodel.plans.strategy import KV_POLICIES
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

CURVES = published_curves()
SMALL = resolve_model("Llama-3.2-1B")
STREAMING, SNAPKV = Draft("self", "streaming_llm"), Draft("self", "snapkv")
SPARSE = tuple(policy for policy in KV_POLICIES if policy != "full")
DRAFTS = {
    "none": Draft(),
    "ngram": Draft("ngram"),
    "eagle3": Draft("eagle3"),
    "mtp": Draft("mtp"),
    **{f"self {policy}": Draft("self", policy) for policy in SPARSE},
    **{f"model {policy}": Draft("model", policy, SMALL) for policy in KV_POLICIES},
    "model on one GPU": Draft("model", "full", SMALL, tensor_parallel=1),
    "self in int4": Draft("self", "full", kv_dtype="int4"),
    "self with weights in int8": Draft("self", "full", weight_dtype="int8"),
    "self snapkv in fp8, weights in int4": Draft("self", "snapkv", kv_dtype="fp8", weight_dtype="int4"),
}
GIVEN: dict[str, dict[str, Any]] = {
    "looked up": {},
    "a rate": {"acceptance_rate": 0.77},
    "by position": {"acceptance_by_position": [0.9, 0.8, 0.6]},
    "a length": {"mean_acceptance_length": 1.9},
}


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


def eight(model: str, hardware: str) -> Deployment:
    return Deployment(resolve_model(model), resolve_profile(hardware), 8, 8)


def evaluated(deployment: Deployment, draft: Draft = STREAMING, **changes: Any) -> Evaluation:
    question: dict[str, Any] = {"batch_size": 64, "context_len": 32_000, "gamma": 3, "kv_budget": 512, "curves": CURVES}
    return evaluate_grid(deployment, draft, **{**question, **changes})


def costs(e: Evaluation) -> dict[str, Any]:
    """Times and memory."""
    found = {f"{name} {part}": value for name in ("target", "draft", "verify") for part, value in getattr(e, name).parts.items()}
    found |= {f"memory {field.name}": getattr(e.memory, field.name) for field in fields(e.memory)}
    times = ("target_step_s", "draft_step_s", "verify_step_s", "select_step_s", "first_draft_s", "overhead_s")
    return {**found, **{name: getattr(e.round, name) for name in (*times, "gamma_draft_step_s", "round_s")}}


def numbers(e: Evaluation) -> dict[str, Any]:
    """Everything that is predicted."""
    found = {**costs(e), "length": e.round.mean_acceptance_length}
    derived = ("speculative_tpot_s", "speedup", "draft_cost", "verify_cost")
    found |= {name: getattr(e.round, name) for name in derived}
    found |= {name: getattr(e, name) for name in ("speedup_low", "speedup_high", "acceptance_rate", "acceptance_error")}
    return {**found, "fits": e.fits_in_memory, "minimum acceptance": e.round.minimum_acceptance_rate()}


# The grid equals the scalar path, to the last bit.


def check_grid(deployment: Deployment, draft: Draft, given: dict[str, Any], points: int = 6) -> None:
    """Compare some points of a grid with scalar evaluations."""
    random = np.random.default_rng(2408)
    gammas = np.array([1, 2, 5])[:, None] if draft.drafts else np.zeros((1, 1))
    budgets = np.array([64, 700, np.inf]) if draft.sparse else np.array([np.inf])
    batches, contexts = random.integers(1, 300, 4)[:, None, None, None], random.integers(1, 200_000, 4)[:, None, None]
    batches[0] = 2  # a power of it is a square, which NumPy computes in another way than other powers
    shape = (4, 4, gammas.size, budgets.size)
    grid = evaluated(deployment, draft, batch_size=batches, context_len=contexts, gamma=gammas, kv_budget=budgets, **given)
    whole = {name: np.broadcast_to(value, shape) for name, value in numbers(grid).items()}
    for place in random.choice(np.prod(shape), min(points, int(np.prod(shape))), replace=False):
        index = np.unravel_index(place, shape)
        b, s, g, k = (np.broadcast_to(axis, shape)[index] for axis in (batches, contexts, gammas, budgets))
        alone = evaluated(deployment, draft, batch_size=int(b), context_len=int(s), gamma=int(g), kv_budget=float(k), **given)
        for name, value in numbers(alone).items():
            np.testing.assert_array_equal(whole[name][index], value, err_msg=f"{name} at {b} x {s}, gamma {g}, budget {k}")


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_grid_equals_the_scalar_path_to_the_last_bit(deployment: Deployment, draft: str) -> None:
    check_grid(deployment, DRAFTS[draft], {}, points=12)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("draft", ["ngram", "self snapkv", "model full", "mtp"])
def test_so_it_does_with_another_engine_and_a_given_acceptance(draft: str, given: str) -> None:
    check_grid(eight("Llama-3.1-8B", "h100-sxm"), DRAFTS[draft], GIVEN[given])


@pytest.mark.parametrize("model", ["DeepSeek-V3", "gpt-oss-20b", "Gemma-3-27B", "Qwen3-30B-A3B", "Mixtral-8x7B"])
@pytest.mark.parametrize("draft", ["mtp", "eagle3", "self quest", "self in int4"])
def test_so_it_does_for_experts_latent_and_windowed_attention(model: str, draft: str) -> None:
    check_grid(Deployment(resolve_model(model), resolve_profile("l40s"), 4, 4), DRAFTS[draft], {"acceptance_rate": 0.8})


@pytest.mark.parametrize("kernel", get_args(VerifyKernel))
def test_so_it_does_for_every_verification_kernel(deployment: Deployment, kernel: Any) -> None:
    check_grid(replace(deployment, verify_kernel=kernel), STREAMING, {})


def test_axes_broadcast_in_any_arrangement(deployment: Deployment) -> None:
    axes: dict[str, Any] = {"batch_size": [1, 64], "context_len": [1000, 9000, 32_000], "gamma": [1, 4], "kv_budget": [64, 512]}
    straight = evaluated(deployment, **dict(zip(axes, np.ix_(*axes.values()), strict=True)))
    turned = evaluated(deployment, **dict(zip(axes, (a.T for a in np.ix_(*axes.values())), strict=True)))
    assert straight.round.speedup.shape == (2, 3, 2, 2)
    assert turned.round.speedup.shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(turned.round.speedup, straight.round.speedup.T)
    np.testing.assert_array_equal(turned.speedup_low, straight.speedup_low.T)


def test_an_axis_may_have_a_single_value_or_none(deployment: Deployment) -> None:
    assert evaluated(deployment, batch_size=[64], context_len=[[32_000]]).round.speedup.shape == (1, 1)
    assert evaluated(deployment, batch_size=[], gamma=[[1], [2]]).round.speedup.shape == (2, 0)


# Acceptance: looked up, given, certain.


@pytest.mark.parametrize("policy", SPARSE)
@pytest.mark.parametrize("given", [{}, {"acceptance_rate": 0.5}])
def test_a_self_draft_that_reads_everything_is_always_accepted_unless_told_otherwise(
    deployment: Deployment, policy: Any, given: dict[str, Any]
) -> None:
    e = evaluated(deployment, Draft("self", policy), context_len=[64, 4000], kv_budget=[4000, 1e9], gamma=3, **given)
    if policy == "pq" and not given:
        assert np.isnan(e.acceptance_rate).all(), "no one measured it, and what nobody measured is not guessed"
        return
    assert (e.acceptance_rate == given.get("acceptance_rate", 1.0)).all()
    assert (e.round.mean_acceptance_length == (1.875 if given else 4)).all()


def test_a_compressed_or_smaller_draft_that_reads_everything_is_not_the_target(deployment: Deployment) -> None:
    for draft in (DRAFTS["self in int4"], DRAFTS["model full"], DRAFTS["model streaming_llm"], DRAFTS["mtp"]):
        assert evaluated(deployment, draft, context_len=4000, kv_budget=np.inf).acceptance_rate < 1


@given(st.floats(0, 1), st.integers(1, 12), st.integers(1, 15))
def test_one_rate_at_every_position_is_that_rate(rate: float, gamma: int, positions: int) -> None:
    deployment = eight("Llama-3.1-8B", "h100-sxm")
    one, many = (
        evaluated(deployment, gamma=gamma, **given)
        for given in ({"acceptance_rate": rate}, {"acceptance_by_position": [rate] * positions})
    )
    assert many.round.mean_acceptance_length == pytest.approx(float(one.round.mean_acceptance_length), rel=1e-9)
    assert many.round.speedup == pytest.approx(float(one.round.speedup), rel=1e-9)
    assert many.speedup_low == pytest.approx(float(one.speedup_low), rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 10))
def test_rates_by_position_yield_their_running_products(rates: list[float], gamma: int) -> None:
    deployment = eight("Llama-3.1-8B", "h100-sxm")
    every = [*rates, *[rates[-1]] * gamma][:gamma]
    expected = 1 + sum(np.prod(every[: i + 1]) for i in range(gamma))
    e = evaluated(deployment, gamma=gamma, acceptance_by_position=rates)
    assert e.round.mean_acceptance_length == pytest.approx(expected, rel=1e-12)
    assert e.speedup_low <= e.round.speedup <= e.speedup_high
    assert min(rates) - 1e-6 <= e.acceptance_rate <= max(rates) + 1e-6
    rising = evaluated(deployment, gamma=np.arange(1, 11), acceptance_by_position=rates).round.mean_acceptance_length
    assert (np.diff(rising) >= -1e-12).all()


def test_only_positions_that_are_drafted_count(deployment: Deployment) -> None:
    for more in ([0.9], [0.9, 0.0], [0.9, 1.0, 1.0]):
        assert evaluated(deployment, gamma=1, acceptance_by_position=more).round.mean_acceptance_length == pytest.approx(1.9)


@given(st.integers(1, 10), st.floats(0, 1), st.integers(1, 256), st.integers(100, 100_000))
def test_a_given_length_is_what_its_rate_yields(gamma: int, rate: float, batch: int, context: int) -> None:
    deployment = eight("Llama-3.1-8B", "a100-sxm-80gb")
    where = {"batch_size": batch, "context_len": context, "gamma": gamma}
    by_rate = evaluated(deployment, **where, acceptance_rate=rate)
    by_length = evaluated(deployment, **where, mean_acceptance_length=float(by_rate.round.mean_acceptance_length))
    assert by_length.round.mean_acceptance_length == by_rate.round.mean_acceptance_length
    assert by_length.round.speedup == pytest.approx(float(by_rate.round.speedup), rel=1e-3)
    assert by_length.speedup_low == pytest.approx(float(by_rate.speedup_low), rel=1e-3)
    assert by_length.speedup_high == pytest.approx(float(by_rate.speedup_high), rel=1e-3)


@given(st.integers(1, 300), st.integers(1, 200_000), st.integers(1, 12), st.sampled_from(sorted(DRAFTS)), st.booleans())
def test_the_interval_holds_the_prediction(batch: int, context: int, gamma: int, draft: str, given: bool) -> None:
    deployment = eight("Llama-3.1-8B", "a100-sxm-80gb")
    drafts = DRAFTS[draft].drafts
    rate = {"acceptance_rate": 0.6} if given and drafts else {}
    e = evaluated(deployment, DRAFTS[draft], batch_size=batch, context_len=context, gamma=gamma if drafts else 0, **rate)
    if np.isnan(e.round.speedup):
        assert np.isnan(e.speedup_low)
        assert np.isnan(e.speedup_high)
        return
    spread = 1 + e.error * drafts
    assert e.speedup_low * spread <= e.round.speedup * (1 + 1e-12)
    assert e.speedup_high >= e.round.speedup * spread * (1 - 1e-12)


# Every draft of every model is priced soundly.


@cache
def sizes() -> dict[str, tuple[int, int]]:
    """Parameters and vocabulary of every built-in model."""
    return {name: (model.params, model.vocab_size) for name, model in ((name, resolve_model(name)) for name in builtin_configs())}


def drafts_for(model: TransformerConfig) -> list[Draft]:
    found = [draft for draft in DRAFTS.values() if draft.kind not in ("none", "model")]
    for name, (params, vocabulary) in sizes().items():
        if params < model.params and abs(vocabulary - model.vocab_size) <= 0.01 * model.vocab_size:
            return found + [Draft("model", policy, resolve_model(name)) for policy in KV_POLICIES]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", builtin_configs())
def test_no_draft_of_any_model_takes_less_than_nothing(name: str) -> None:
    model = resolve_model(name)
    gpus = next(gpus for gpus in (8, 4, 2, 1) if model.num_heads % gpus == 0 and (model.num_kv_heads % gpus == 0 or model.latent))
    deployment = Deployment(model, resolve_profile("h100-sxm"), gpus, gpus)
    shape: dict[str, Any] = {"batch_size": np.array([1, 64])[:, None, None], "context_len": np.array([1, 900, 100_000])[:, None]}
    plain = evaluated(deployment, Draft(), **shape, gamma=0)
    for draft in drafts_for(model):
        e = evaluated(deployment, draft, **shape, gamma=[1, 5], kv_budget=256, acceptance_rate=0.8)
        for quantity, values in costs(e).items():
            assert (np.asarray(values) >= 0).all(), f"{quantity} of {draft}"
        np.testing.assert_array_equal(e.target.total_s, plain.target.total_s)
        assert (e.verify.total_s >= e.target.total_s * (1 - 1e-12)).all(), draft
        assert (e.memory.kv_bytes >= plain.memory.kv_bytes).all(), "draft tokens need room too"


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b", "Gemma-3-27B", "Mistral-7B-v0.1", "DeepSeek-V3"])
def test_a_prediction_head_is_one_layer_with_a_cache_of_its_own(name: str) -> None:
    target = resolve_model(name)
    for kind in ("mtp", "eagle3"):
        head = Draft(kind).network(target)  # type: ignore[arg-type]
        assert head is not None
        assert [layers for layers, _ in head.attention_windows] == [1]


def test_a_sparse_self_draft_reads_less_the_less_it_may(deployment: Deployment) -> None:
    for policy in SPARSE:
        e = evaluated(deployment, Draft("self", policy), kv_budget=[64, 512, 4096, 31_999])
        assert (np.diff(e.round.draft_step_s) > 0).all()
        assert (e.round.draft_step_s < e.round.target_step_s).all()


def test_what_chooses_at_every_step_pays_for_it(deployment: Deployment) -> None:
    costs = {policy: evaluated(deployment, Draft("self", policy), acceptance_rate=0.8).round.select_step_s for policy in SPARSE}
    assert costs["streaming_llm"] == costs["snapkv"] == 0
    assert 0 < costs["quest"] < costs["topk"]
    assert 0 < costs["pq"] < costs["topk"]


# What MagicDec (arXiv 2408.11049) claims, on the map.


def paper_map(hardware: str) -> Sweep:
    """Llama-2-7B-32K with TinyLlama-1.1B (0) and with itself (1), both with 512 StreamingLLM entries."""
    drafts = [Draft("model", "streaming_llm", resolve_model("TinyLlama-1.1B")), STREAMING]
    return sweep(
        eight("Llama-2-7B-32K", hardware),
        drafts,
        batch_sizes=[1, 4, 8, 16, 32, 64, 128],
        context_lens=[1000, 4000, 8000, 16_000, 32_000],
        gammas=GAMMAS,
        kv_budgets=[512],
        curves=CURVES,
    )


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_plain_then_a_small_draft_then_self_speculation_as_batch_grows_at_32k(hardware: str) -> None:
    column = paper_map(hardware).choice[:, -1].tolist()
    assert column[0] == -1
    assert 0 in column
    assert column[4] == 1
    rising = [choice for choice in column if choice != -2]
    assert rising == sorted(rising), "it does not change back"


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm"])
def test_the_map_gains_with_batch_and_with_context(hardware: str) -> None:
    found = paper_map(hardware)
    speedup = np.where(found.choice == -2, np.nan, found.speedup)
    down, right = np.diff(speedup, axis=0), np.diff(speedup, axis=1)
    assert (down[~np.isnan(down)] >= -0.01).all()
    assert (right[~np.isnan(right)] >= -0.01).all()
    assert np.nanmax(speedup) > 1.8


def test_on_8_a100_the_speedup_falls_with_batch_at_short_context_and_rises_at_long() -> None:
    batches = 2 ** np.arange(4, 9)[:, None]
    short, long = (
        evaluated(eight("Llama-3.1-8B", "a100-sxm-80gb"), batch_size=batches, context_len=s, gamma=GAMMAS).round.speedup.max(axis=1)
        for s in (1000, 32_000)
    )
    assert short[-1] < short[0] < 1
    assert (np.diff(long) > 0).all()
    assert long[-1] > 1.6


def best_at_batch_one(hardware: str, gpus: int, contexts: list[int]) -> Sweep:
    return sweep(
        Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware), gpus, gpus),
        [STREAMING, SNAPKV],
        batch_sizes=[1],
        context_lens=contexts,
        gammas=GAMMAS,
        kv_budgets=KV_BUDGETS,
        curves=CURVES,
    )


@pytest.mark.parametrize("hardware", profile_files())
def test_at_batch_one_an_8b_model_does_not_speculate_or_gains_next_to_nothing(hardware: str) -> None:
    one = best_at_batch_one(hardware, 1, [1000, 4000, 8000, 16_000, 32_000, 64_000])
    assert (one.speedup < 1.1).all(), "one GPU"
    assert (one.speedup[:, :5] == 1).all(), "up to 32k"
    eight_gpus = best_at_batch_one(hardware, 8, [1000, 8000, 32_000, 128_000])
    assert (eight_gpus.speedup < 1.1).all()
    assert (eight_gpus.choice == -1).all()


# A report from the field: Llama-3.1-8B, self-speculation with 257 SnapKV entries and gamma 2 on 8 A100 of 40 GB, 32k context:
# no speedup at any batch size from 1 to 48.


@dataclass(frozen=True)
class Row:
    """What is said for one batch size: memory of a GPU [GB], the autoregressive step [ms], the reported strategy's speedup and its
    interval, and the draft that is chosen instead, with its speedup."""

    batch: int
    memory: float
    plain: float
    speedup: float
    low: float
    high: float
    chosen: str
    gain: float

    def __str__(self) -> str:
        return f"batch {self.batch}"


#         batch  GB    ms    reported (low to high)  chosen     gain
FIELD = [
    Row(1, 2.5, 4.6, 0.88, 0.64, 1.22, "none", 1.00),
    Row(2, 3.1, 5.0, 0.92, 0.66, 1.27, "none", 1.00),
    Row(4, 4.1, 5.8, 0.99, 0.71, 1.37, "none", 1.00),
    Row(8, 6.2, 7.4, 1.12, 0.81, 1.56, "none", 1.00),
    Row(16, 10.5, 10.7, 1.33, 0.96, 1.85, "snapkv", 1.36),
    Row(24, 14.7, 14.0, 1.48, 1.06, 2.05, "snapkv", 1.51),
    Row(32, 19.0, 17.3, 1.59, 1.14, 2.20, "snapkv", 1.63),
    Row(48, 27.5, 23.7, 1.74, 1.25, 2.41, "snapkv", 1.85),
]
BATCHES = [row.batch for row in FIELD]


def field(hardware: str = "a100-sxm-40gb", kernel: Any = "shared_kv_splitkv", batch: Any = BATCHES) -> Evaluation:
    deployment = replace(eight("Llama-3.1-8B", hardware), verify_kernel=kernel)
    return evaluated(deployment, SNAPKV, batch_size=batch, gamma=2, kv_budget=257)


@pytest.mark.parametrize("row", FIELD, ids=str)
def test_what_is_said_of_the_field_report(row: Row) -> None:
    e = field(batch=row.batch)
    assert e.fits_in_memory
    assert e.memory.total_bytes / 1e9 == pytest.approx(row.memory, rel=0.03)
    assert e.round.target_step_s * 1e3 == pytest.approx(row.plain, rel=0.05)
    assert e.round.speedup == pytest.approx(row.speedup, rel=0.05)
    assert e.speedup_low == pytest.approx(row.low, rel=0.05)
    assert e.speedup_high == pytest.approx(row.high, rel=0.05)
    chosen = sweep(
        eight("Llama-3.1-8B", "a100-sxm-40gb"),
        [STREAMING, SNAPKV],
        batch_sizes=[row.batch],
        context_lens=[32_000],
        gammas=GAMMAS,
        kv_budgets=KV_BUDGETS,
        curves=CURVES,
    )
    strategy = chosen.strategy(0, 0)
    assert (strategy.kv_policy if strategy.draft_kind == "self" else strategy.draft_kind) == row.chosen
    assert chosen.speedup[0, 0] == pytest.approx(row.gain, rel=0.05)
    if row.chosen == "snapkv":
        assert (strategy.kv_budget or 0) > 4 * 257, "more entries than were tried"
        assert strategy.gamma > 2
        assert chosen.speedup_low[0, 0] > e.speedup_low


def test_the_report_fits_in_memory_and_twice_its_batch_does_not() -> None:
    assert field().fits_in_memory.all()
    assert not field(batch=96).fits_in_memory


def test_the_budget_that_was_tried_is_beyond_what_was_measured() -> None:
    e = field()
    assert e.acceptance is not None
    assert not e.acceptance.curve.covers(257, 32_000)
    assert e.acceptance_error == pytest.approx(0.1), "so the acceptance is an assumption"
    assert 0.8 < e.acceptance_rate < 0.894, "less than the 0.894 of eight times the entries"


@pytest.mark.parametrize("hardware", ["a100-sxm-40gb", "a100-sxm-80gb"])
def test_up_to_batch_8_no_gain_is_sure_and_at_48_one_is(hardware: str) -> None:
    e = field(hardware)
    assert (e.speedup_low[:4] < 1).all()
    assert (e.round.speedup[:3] < 1).all()
    assert e.speedup_low[-1] > 1


@pytest.mark.parametrize("hardware", ["a100-sxm-40gb", "a100-sxm-80gb"])
def test_a_kernel_that_reads_the_cache_once_per_token_gives_what_was_reported(hardware: str) -> None:
    """No speedup at any batch size: verification costs nearly gamma + 1 steps, which no acceptance rate can recover."""
    e = field(hardware, "per_token")
    assert (e.round.speedup < 0.95).all()
    assert (e.round.verify_cost[3:] > 1.5).all()
    assert e.round.verify_cost[-1] > 2.3
    assert np.isnan(e.round.minimum_acceptance_rate()[3:]).all()
    assert (field(hardware).round.verify_cost < 1.2).all()


@pytest.mark.parametrize("hardware", ["a100-sxm-40gb", "a100-sxm-80gb"])
def test_a_kernel_that_does_not_split_the_cache_loses_more_the_smaller_the_batch(hardware: str) -> None:
    e = field(hardware, "shared_kv_no_split")
    assert (np.diff(e.round.verify_cost) < 0).all()
    assert (e.round.speedup < field(hardware).round.speedup).all()
    assert (e.round.speedup[:3] < 0.85).all()
