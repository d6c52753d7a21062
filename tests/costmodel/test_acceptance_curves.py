from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.speculation import acceptance
from magicdec.costmodel.speculation.acceptance import (
    AcceptanceCurve,
    AcceptanceEstimate,
    cut_acceptance_length,
    find_curve,
    implied_acceptance_rate,
    load_checkpoint_curves,
    mean_acceptance_length,
    mean_acceptance_length_by_position,
    parse_curves,
    published_curves,
)
from magicdec.costmodel.speculation.drafts import Draft

SELF = AcceptanceCurve(
    "A", "text", "self", "streaming_llm", None, ((512, 4000, 0.9), (512, 32_000, 0.8), (512, 64_000, 0.7)), "here"
)
FILE = """
schema_version: 1
curves:
  - target: A
    task: text
    draft_kind: self
    kv_policy: streaming_llm
    source: here
    points:
      - {kv_budget: 512, context_len: 4000, acceptance_rate: 0.9}
"""
every_published = pytest.mark.parametrize(
    "curve", published_curves(), ids=lambda c: f"{c.target} {c.draft_kind} {c.kv_policy} {c.kv_dtype}"
)


@st.composite
def self_curves(draw: st.DrawFn) -> AcceptanceCurve:
    """Any measured points, falling or not, of a self draft that read part of its cache."""
    budgets = st.sampled_from([64.0, 512.0, 2048.0])
    points = st.tuples(budgets, st.integers(2100, 100_000).map(float), st.floats(0, 1))
    rows = draw(st.lists(points, min_size=1, max_size=6, unique_by=lambda point: point[:2]))
    return AcceptanceCurve("any", "text", "self", "streaming_llm", None, tuple(rows), "here")


@pytest.mark.parametrize(
    ("gamma", "rate", "tokens"), [(0, 0.5, 1), (1, 0.5, 1.5), (4, 0.8, 3.3616), (2, 0.0, 1), (3, 0.7, 1 + 0.7 + 0.49 + 0.343)]
)
def test_mean_length_is_the_geometric_sum(gamma: int, rate: float, tokens: float) -> None:
    assert mean_acceptance_length(gamma, rate) == pytest.approx(tokens, rel=1e-14)


def test_certain_acceptance_yields_every_draft_token_and_one_more() -> None:
    assert mean_acceptance_length([0, 1, 5], 1.0).tolist() == [1, 2, 6]


@given(st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
def test_more_acceptance_yields_more_tokens_up_to_gamma_and_one(gamma: int, one: float, other: float) -> None:
    low, high = (float(mean_acceptance_length(gamma, rate)) for rate in sorted((one, other)))
    assert 1 <= low <= high * (1 + 1e-7)
    assert high <= gamma + 1


@given(st.integers(1, 12), st.floats(0.0, 0.999))
def test_the_implied_rate_inverts_the_mean_length(gamma: int, rate: float) -> None:
    assert implied_acceptance_rate(gamma, float(mean_acceptance_length(gamma, rate))) == pytest.approx(rate, abs=1e-6)


def rounds_needed(gamma: int, rate: float, tokens: int) -> float:
    """Expected rounds for the last `tokens` tokens, by the cases of the next round."""
    if tokens <= 0:
        return 0.0
    shares = [rate**k * (1 - rate) for k in range(gamma)] + [rate**gamma]
    return 1 + sum(share * rounds_needed(gamma, rate, tokens - k - 1) for k, share in enumerate(shares))


@pytest.mark.parametrize(
    ("gamma", "rate", "tokens"), [(3, 0.8, 10), (4, 0.95, 9), (2, 0.5, 1), (5, 1.0, 12), (0, 0.0, 7), (6, 0.0, 3)]
)
def test_what_the_last_round_cuts_off_is_not_among_the_tokens_per_round(gamma: int, rate: float, tokens: int) -> None:
    assert cut_acceptance_length(gamma, rate, tokens) == pytest.approx(tokens / rounds_needed(gamma, rate, tokens), rel=1e-12)


def test_the_last_round_matters_less_the_longer_the_output_is() -> None:
    gammas, rates = np.array([[1], [8]]), np.array([0.5, 0.95])
    uncut = mean_acceptance_length(gammas, rates)
    lengths = [cut_acceptance_length(gammas, rates, tokens) for tokens in (64, 512, 5000)]
    assert lengths[0].shape == (2, 2)
    assert (lengths[0] < lengths[1]).all()
    assert (lengths[1] < lengths[2]).all()
    assert (lengths[2] < uncut).all()
    assert lengths[2] == pytest.approx(uncut, rel=2e-3)
    assert 0.9 < lengths[0][1, 1] / uncut[1, 1] < 0.96


def test_no_rate_yields_more_tokens_than_there_are_and_one_token_needs_none() -> None:
    assert implied_acceptance_rate(3, [0.5, 1.0, 4.0]).tolist() == [0, 0, pytest.approx(1)]
    assert np.isnan(implied_acceptance_rate(3, 4.001))
    assert implied_acceptance_rate(0, 1.0) == 0


def test_implied_rates_broadcast() -> None:
    rates = implied_acceptance_rate([1, 4], [[1.5], [2.0]])
    assert rates.shape == (2, 2)
    for i, length in enumerate((1.5, 2.0)):
        for j, gamma in enumerate((1, 4)):
            assert rates[i, j] == pytest.approx(float(implied_acceptance_rate(gamma, length)), rel=1e-7)


def test_rates_by_position_yield_their_running_products() -> None:
    rates = [0.9, 0.5, 0.2]
    assert mean_acceptance_length_by_position([0, 1, 2, 3], rates) == pytest.approx([1, 1.9, 1.9 + 0.45, 1.9 + 0.45 + 0.09])
    assert mean_acceptance_length_by_position(5, rates) == pytest.approx(1.9 + 0.45 + 0.09 * (1 + 0.2 + 0.04)), (
        "the last rate holds on"
    )
    assert mean_acceptance_length_by_position([[2], [3]], rates).shape == (2, 1)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 0.99))
def test_equal_rates_by_position_are_the_independent_case(gamma: int, known: int, rate: float) -> None:
    expected = float(mean_acceptance_length(gamma, rate))
    assert float(mean_acceptance_length_by_position(gamma, [rate] * known)) == pytest.approx(expected, rel=1e-10)


@every_published
def test_a_published_curve_hits_its_data_points(curve: AcceptanceCurve) -> None:
    budgets, contexts, rates = zip(*curve.points, strict=True)
    assert curve.rate(budgets, contexts) == pytest.approx(rates, abs=1e-12)


def test_a_published_curve_holds_what_the_paper_prints() -> None:
    answer = find_curve(published_curves(), "Llama-3.1-8B", Draft("self", "streaming_llm"))
    assert answer is not None
    contexts = [4000, 8000, 16_000, 32_000, 64_000, 100_000]
    assert answer.curve.rate(512, contexts) == pytest.approx([0.84, 0.83, 0.82, 0.81, 0.79, 0.79], abs=1e-12)


@given(
    self_curves(),
    st.sampled_from([16, 64, 100, 512, 1000, 2048, 8192]),
    st.sampled_from([1, 2, 8, 32]),
    st.integers(16, 1_000_000),
    st.sampled_from([1, 2, 10, 100]),
)
def test_acceptance_rises_with_budget_and_falls_with_context(
    curve: AcceptanceCurve, budget: int, more: int, context: int, longer: int
) -> None:
    rate = curve.rate(budget, context)
    assert 0 <= rate <= 1
    assert curve.rate(budget * more, context) >= rate - 1e-12
    assert curve.rate(budget, context * longer) <= rate + 1e-12


@given(self_curves(), st.integers(1, 100_000), st.integers(0, 100_000))
def test_a_self_draft_that_reads_everything_is_always_accepted(curve: AcceptanceCurve, context: int, beyond: int) -> None:
    assert curve.rate(context + beyond, context) == 1


def test_a_small_draft_that_reads_everything_is_not_the_target() -> None:
    (curve,) = [curve for curve in published_curves() if curve.draft_kind == "model"]
    assert curve.rate(4000, 4000) == pytest.approx(0.70)


def test_only_the_share_that_is_read_matters() -> None:
    assert SELF.rate(1024, 64_000) == pytest.approx(0.8, abs=1e-12)


def test_a_situation_measured_twice_is_averaged() -> None:
    twice = AcceptanceCurve("A", "text", "self", "streaming_llm", None, ((512, 4000, 0.9), (512, 4000, 0.8)), "here")
    assert twice.rate(512, 4000) == pytest.approx(0.85)


def test_a_curve_of_several_budgets_hits_its_data_points() -> None:
    points = ((64, 4000, 0.7), (64, 8000, 0.65), (512, 4000, 0.9), (512, 8000, 0.85), (1024, 4000, 0.95))
    curve = AcceptanceCurve("A", "text", "self", "streaming_llm", None, points, "here")
    budgets, contexts, rates = zip(*points, strict=True)
    assert curve.rate(budgets, contexts) == pytest.approx(rates, abs=1e-12)
    assert 0.7 < curve.rate(128, 4000) < 0.9


def test_beyond_the_measured_contexts_rejection_keeps_growing() -> None:
    inside, beyond, far = SELF.rate(512, [64_000, 128_000, 1e9])
    assert 1 > inside > beyond > far > 0


def test_the_curve_says_where_it_is_extrapolated() -> None:
    assert SELF.covers(512, [4000, 64_000, 128_000, 129_000]).tolist() == [1, 1, 1, 0]
    assert SELF.covers([128, 256, 512, 1024, 1025], 32_000).tolist() == [0, 1, 1, 1, 0]
    assert SELF.covers(4000, 4000), "a budget that covers the context is the target itself"


def test_a_draft_that_reads_all_its_own_cache_depends_on_context_alone() -> None:
    full = AcceptanceCurve("A", "text", "model", "full", "B", ((1000, 1000, 0.8), (8000, 8000, 0.7)), "here")
    assert full.rate(1, [1000, 8000]) == pytest.approx(full.rate(np.inf, [1000, 8000]))
    assert full.rate(np.inf, [500, 1000, 8000, 100_000]) == pytest.approx([0.8, 0.8, 0.7, 0.7])


STREAMING = Draft("self", "streaming_llm")
NAMED = {name: replace(resolve_model("Llama-3.2-1B"), name=name) for name in "DEF"}


def curve_of(
    target: str, kind: str = "self", policy: str = "streaming_llm", draft: str | None = None, **types: str
) -> AcceptanceCurve:
    return AcceptanceCurve(target, "text", kind, policy, draft, ((512, 4000, 0.9),), "here", **types)


def ask(curves: list[AcceptanceCurve], draft: Draft = STREAMING) -> AcceptanceEstimate:
    answer = find_curve(curves, "A", draft)
    assert answer is not None
    return answer


def test_a_curve_of_the_own_target_is_preferred() -> None:
    own = curve_of("A")
    answer = ask([curve_of("B"), own, curve_of("C")])
    assert answer.curve is own
    assert answer.measured_here
    assert answer.note == "acceptance measured on A, text (here)"


def test_another_targets_curve_is_borrowed_and_said_so() -> None:
    answer = ask([curve_of("B")])
    assert not answer.measured_here
    assert answer.note == "acceptance assumed equal to that of B, text (here)"


def test_what_was_measured_here_is_surer_than_what_is_borrowed_or_extrapolated() -> None:
    own, borrowed = ask([curve_of("A")]), ask([curve_of("B")])
    assert own.uncertainty(512, [4000, 8000, 80_000]).tolist() == [0.02, 0.02, 0.1]
    assert own.uncertainty([512, 2048], 4000).tolist() == [0.02, 0.1]
    assert borrowed.uncertainty(512, 4000) == 0.1


def test_a_self_draft_is_not_answered_by_another_policy_or_kind() -> None:
    curves = [curve_of("A", policy="snapkv"), curve_of("A", kind="model", draft="D"), curve_of("A", kv_dtype="int4")]
    assert find_curve(curves, "A", STREAMING) is None
    assert find_curve([], "A", STREAMING) is None


def test_a_compressed_self_draft_is_answered_by_one_compressed_alike() -> None:
    plain, four = curve_of("A", policy="full"), curve_of("A", policy="full", kv_dtype="int4")
    both = curve_of("A", policy="full", kv_dtype="int4", weight_dtype="int4")
    assert ask([plain, four, both], Draft("self", kv_dtype="int4")).curve is four
    assert ask([plain, four, both], Draft("self", kv_dtype="int4", weight_dtype="int4")).curve is both
    assert find_curve([plain, four, both], "A", Draft("self", kv_dtype="int8")) is None


def test_a_small_draft_is_answered_by_its_own_curve_in_whichever_policy() -> None:
    own = curve_of("A", kind="model", draft="D", policy="full")
    curves = [curve_of("A", kind="model", draft="E"), own]
    answer = ask(curves, Draft("model", "streaming_llm", NAMED["D"]))
    assert answer.curve is own
    assert answer.measured_here
    assert not ask(curves, Draft("model", "streaming_llm", NAMED["F"])).measured_here


def test_the_policy_that_is_asked_for_is_preferred_among_a_small_drafts_own() -> None:
    full, sparse = (curve_of("A", kind="model", draft="D", policy=policy) for policy in ("full", "streaming_llm"))
    for policy, expected in (("full", full), ("streaming_llm", sparse)):
        assert ask([full, sparse], Draft("model", policy, NAMED["D"])).curve is expected  # type: ignore[arg-type]
        assert ask([sparse, full], Draft("model", policy, NAMED["D"])).curve is expected  # type: ignore[arg-type]


def test_trained_heads_and_repeated_text_have_curves_of_their_own() -> None:
    curves = [curve_of("A", kind=kind, policy="full") for kind in ("ngram", "eagle3", "mtp")]
    for curve, kind in zip(curves, ("ngram", "eagle3", "mtp"), strict=True):
        assert ask(curves, Draft(kind)).curve is curve  # type: ignore[arg-type]


def test_the_published_curves_pass_the_validation_of_users_files() -> None:
    """They are read without validation; `repr` also tells 1 from 1.0."""
    files = sorted((Path(acceptance.__file__).parents[1] / "acceptance_curves").glob("*.yaml"))
    validated = [curve for file in files for curve in parse_curves(file.read_text(encoding="utf-8"), where=str(file))]
    assert validated
    assert repr(tuple(validated)) == repr(published_curves())


def test_a_curve_file_is_read() -> None:
    (curve,) = parse_curves(FILE, where="mine.yaml")
    assert curve == AcceptanceCurve("A", "text", "self", "streaming_llm", None, ((512, 4000, 0.9),), "here")


def test_the_types_of_a_compressed_draft_are_read() -> None:
    text = FILE.replace("streaming_llm", "full\n    kv_dtype: int4").replace("kv_budget: 512, ", "")
    (curve,) = parse_curves(text, where="mine.yaml")
    assert (curve.kv_dtype, curve.weight_dtype) == ("int4", None)


def test_a_point_without_a_budget_read_everything() -> None:
    text = FILE.replace("kv_budget: 512, ", "").replace("self", "model\n    draft_model: D").replace("streaming_llm", "full")
    (curve,) = parse_curves(text, where="mine.yaml")
    assert curve.points == ((4000, 4000, 0.9),)


def test_a_sparse_point_needs_its_budget() -> None:
    with pytest.raises(InputError, match="kv_budget"):
        parse_curves(FILE.replace("kv_budget: 512, ", ""), where="mine.yaml")


def test_all_errors_of_a_curve_file_are_named_at_once() -> None:
    text = FILE.replace("schema_version: 1", "schema_version: 7").replace("0.9", "1.5").replace("source: here", "colour: red")
    with pytest.raises(InputError) as caught:
        parse_curves(text.replace("512", "'512'"), where="mine.yaml")
    assert {problem.where for problem in caught.value.problems} == {"mine.yaml"}
    assert {problem.key for problem in caught.value.problems} == {
        "schema_version",
        "curves.0.source",
        "curves.0.colour",
        "curves.0.points.0.kv_budget",
        "curves.0.points.0.acceptance_rate",
    }


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "schema_version: 1\ncurves: []\nmore: 1"])
def test_what_is_no_curve_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml"):
        parse_curves(text, where="mine.yaml")


def test_curves_are_found_beside_a_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint_curves(tmp_path) == ()
    (tmp_path / "acceptance.yaml").write_text(FILE, encoding="utf-8")
    assert load_checkpoint_curves(tmp_path) == parse_curves(FILE, where="mine.yaml")
