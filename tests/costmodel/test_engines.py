"""Engines as profiles of their own: laws, verify kernels, intervals, and calibrations that cannot be inherited."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.engines.catalog import NAMED, builtin_engine, engine_files, engine_named, find_engine, parse_engine
from magicdec.costmodel.engines.machines import machine_class
from magicdec.costmodel.hardware.catalog import builtin_profiles, resolve_profile
from magicdec.costmodel.hardware.profile_file import parse_profile
from magicdec.costmodel.kernels.quantised import QuantisedLaw, quantised_s
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.speculation.acceptance import find_curve, mean_acceptance_length, measured_gammas, published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafting import verified_tokens
from magicdec.costmodel.speculation.drafts import Draft, Tree
from magicdec.costmodel.speculation.evaluate import deployment_error, evaluate_grid, relative_error, step_error


def deployed(model: str, hardware: str, engine: str, **changes: object) -> Deployment:
    profile = find_engine(engine)
    machine = resolve_profile(hardware)
    found = Deployment(
        resolve_model(model), profile.on(machine), verify_kernel=profile.terms(machine).verify_kernel, engine=profile
    )
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", engine_files())
def test_every_shipped_engine_is_valid_and_states_what_its_numbers_rest_on(name: str) -> None:
    engine = builtin_engine(name)
    assert parse_engine(engine_files()[name].read_text(encoding="utf-8"), where=name) == engine
    assert engine.name == name
    assert engine.evidence or min(terms.speedup_error for terms in engine.machines) >= 0.3, "without data intervals are wide"
    for machine in {machine_class(resolve_profile(profile)): profile for profile in builtin_profiles()}.values():
        used = engine.on(resolve_profile(machine))
        assert used.peak == resolve_profile(machine).peak


def test_an_unknown_engine_names_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"engine: expected .*llama\.cpp.*vllm"):
        find_engine("ollama")
    assert engine_named("vegas fork of vLLM, FA2, later kernels") == "vllm-vegas"
    assert engine_named("llama.cpp b6918 (2f68ce7cf), CUDA, fa 1") == "llama.cpp"


def rows_s(rows: int, law: QuantisedLaw | None = None) -> float:
    """A product with 100 MB of weights of four bits, on a machine like an RTX 3090."""
    parts = quantised_s(
        law or QuantisedLaw(),
        rows=rows,
        flop=2 * 2e8 * rows,
        moved_bytes=1e8,
        vector_flop_per_s=35e12,
        matrix_flop_per_s=284e12,
        bytes_per_s=936e9,
    )
    return float(sum(np.asarray(part) for part in parts))


def test_a_few_rows_of_quantised_weights_cost_more_each_until_the_batched_kernel_takes_over() -> None:
    one, two, eight, nine = (rows_s(rows) for rows in (1, 2, 8, 9))
    assert one < two < eight
    assert eight > 1.5 * one
    assert nine < eight, "nine tokens cost less than eight, as on an RTX 3090"
    assert rows_s(8, QuantisedLaw(vector_efficiency=4.0)) < eight


def test_verification_at_long_context_depends_on_the_kernel_of_the_engine_and_card() -> None:
    cards = {"rtx-4090": 2.0, "h100-sxm": 0.0}
    for hardware, least in cards.items():
        where = deployed("llama-3.1-8b", hardware, "vllm")
        one, five = (float(where.pass_time(1, tokens, 64_000).total_s) for tokens in (1, 5))
        assert five / one > least
        assert hardware != "h100-sxm" or five / one < 1.1


def test_an_engine_changes_overheads_and_not_the_machine() -> None:
    bare, used = resolve_profile("h100-sxm"), find_engine("vllm").on(resolve_profile("h100-sxm"))
    assert used.peak == bare.peak
    assert used.calibration.engine.layer_overhead_s < bare.calibration.engine.layer_overhead_s / 3
    assert used.sha256 == bare.sha256


def test_a_forward_pass_leaves_out_head_and_host() -> None:
    where = deployed("qwen3-8b", "h100-sxm", "sglang")
    whole, layers = (float(where.pass_time(1, 1, 1000, layers_only=only).total_s) for only in (False, True))
    head_bytes = where.target.matrices()[-1].bytes
    assert whole - layers > head_bytes / where.hardware.peak.memory_bandwidth_bytes_per_s


def test_intervals_widen_where_an_engine_has_no_data_of_the_kind() -> None:
    vllm = find_engine("vllm")
    dense, mixture = resolve_model("qwen3-8b"), resolve_model("Qwen3.6-35B-A3B-NVFP4")
    known, unknown = resolve_profile("h100-sxm"), resolve_profile("mi300x")
    assert vllm.step_error(known, dense) < vllm.step_error(unknown, dense)
    assert "no data of AMD" in vllm.provenance(unknown, dense)
    llama = find_engine("llama.cpp")
    assert llama.differences(resolve_profile("rtx-3090"), mixture) == ()
    assert deployment_error(deployed("qwen3-8b", "h100-sxm", "vllm")) == vllm.speedup_error(known, dense)
    assert step_error(deployed("qwen3-8b", "h100-sxm", "vllm")) == vllm.step_error(known, dense)


def test_a_tree_verifies_its_tokens_and_drafts_a_level_at_a_time() -> None:
    where = deployed("llama-3.1-8b", "h200-sxm", "sglang")
    chain, tree = Draft("eagle3"), Draft("eagle3", tree=Tree(width=4, tokens=8))
    assert verified_tokens(chain, np.asarray(7.0)) == verified_tokens(tree, np.asarray(7.0)) == 8
    a, b = (
        evaluate_grid(where, draft, batch_size=8, context_len=1000, gamma=7, mean_acceptance_length=3.0).round
        for draft in (chain, tree)
    )
    assert b.draft_step_s > a.draft_step_s
    assert b.overhead_s > a.overhead_s
    assert b.speedup < a.speedup


def test_a_block_is_drafted_in_one_pass() -> None:
    where = deployed("llama-3.1-8b", "h200-sxm", "sglang")
    chain, block = (
        evaluate_grid(
            where, Draft("eagle3", one_pass=one), batch_size=1, context_len=1000, gamma=6, mean_acceptance_length=3.0
        ).round
        for one in (False, True)
    )
    assert block.gamma_draft_step_s < chain.gamma_draft_step_s / 3


def test_an_n_gram_that_seldom_matches_gains_and_costs_less() -> None:
    where = deployed("llama-3.1-8b", "h100-sxm", "vllm")
    shape = {"batch_size": 1, "context_len": 8000, "gamma": 3, "acceptance_rate": 0.7}
    always, third, never = (evaluate_grid(where, Draft("ngram", matches=m), **shape).round for m in (1.0, 1 / 3, 0.0))  # type: ignore[arg-type]
    assert never.mean_acceptance_length == 1
    assert never.verify_step_s == pytest.approx(float(never.target_step_s))
    assert third.mean_acceptance_length == pytest.approx(1 + (float(always.mean_acceptance_length) - 1) / 3)
    assert never.verify_step_s < third.verify_step_s < always.verify_step_s


def test_acceptance_by_task_and_position_is_that_of_the_published_rounds() -> None:
    mtp = Draft("mtp")
    found = {task: find_curve(published_curves(), "qwen3.8-27b-Q4_K_M", mtp, task) for task in ("code", "prose", None)}
    lengths = {}
    for task, estimate in found.items():
        assert estimate is not None
        assert estimate.measured_here
        lengths[task] = float(mean_acceptance_length(3, float(estimate.curve.rate(1, 2000)), estimate.curve.decay))
    assert lengths["prose"] < lengths[None] < lengths["code"]
    assert lengths["code"] == pytest.approx(3.70, rel=0.02)
    assert lengths["prose"] == pytest.approx(2.23, rel=0.03)
    borrowed = find_curve(published_curves(), "llama-3.1-8b", Draft("eagle3"), "code")
    assert borrowed is not None
    assert not borrowed.measured_here


def test_no_draft_longer_than_those_measured_wins_unless_it_is_asked_for() -> None:
    curves, mtp = published_curves(), Draft("mtp")
    assert measured_gammas(curves, "Qwen3.8-27B", mtp, "code", range(1, 11)) == (1, 2, 3, 4, 5, 6)
    assert measured_gammas(curves, "Qwen3.8-27B", mtp, "code", (8, 9)) == (8, 9)
    estimate = find_curve(curves, "Qwen3.8-27B", mtp, "code")
    assert estimate is not None
    assert estimate.exceeded_by([6, 7]).tolist() == [False, True]


def test_on_a_class_without_data_speedups_are_less_certain_than_steps() -> None:
    llama, model = find_engine("llama.cpp"), resolve_model("qwen3-8b")
    card, unknown = resolve_profile("rtx-3090"), resolve_profile("arc-pro-b60")
    assert llama.speedup_error(card, model) < llama.step_error(card, model) < llama.step_error(unknown, model)
    assert llama.speedup_error(unknown, model) > 1.5, "the same terms price speedups of Apple chips 2.6 times too high"
    assert "(steps, left out)" in llama.provenance(card, model)
    assert "(steps, estimated)" in find_engine("tensorrt-llm").provenance(resolve_profile("h100-sxm"), model)


def test_a_copied_profile_does_not_inherit_a_calibration() -> None:
    shipped = resolve_profile("h100-sxm")
    text = shipped.text.replace("memory_bandwidth_bytes_per_s: 3.35e+12", "memory_bandwidth_bytes_per_s: 4.8e+12")
    copied = parse_profile(text, where="mine.yaml")
    assert shipped.calibrated
    assert not copied.calibrated
    assert "other peaks" in copied.provenance
    assert relative_error(copied) > 3 * relative_error(shipped)


def test_outside_its_data_a_calibration_says_what_differs_and_widens() -> None:
    h100 = resolve_profile("h100-sxm")
    inside = Deployment(resolve_model("llama-3.1-8b"), h100, 8, 8)
    outside = Deployment(resolve_model("Qwen3-30B-A3B-FP8"), h100, 1, 1)
    assert inside.unlike_calibration == {}
    assert set(outside.unlike_calibration) == {"mixtures of experts", "weights in fp8", "1 GPU a replica"}
    assert deployment_error(outside) > deployment_error(inside) + 0.1
    assert "none of it is of mixtures of experts" in outside.provenance


def test_a_tree_accepts_fewer_of_as_many_verified_tokens_than_a_chain() -> None:
    where = deployed("llama-3.1-8b", "h200-sxm", "sglang")
    shape = {"batch_size": 1, "context_len": 1000, "gamma": 7, "acceptance_rate": 0.75}
    drafts = (Draft("eagle3"), Draft("eagle3", tree=Tree(width=4, tokens=8)))
    chain, tree = (float(evaluate_grid(where, draft, **shape).round.mean_acceptance_length) for draft in drafts)  # type: ignore[arg-type]
    assert (tree - 1) / (chain - 1) == pytest.approx(0.8, abs=0.02)


def test_every_engine_that_a_text_can_name_has_a_profile() -> None:
    assert {name for _, name in NAMED} <= set(engine_files())
    assert engine_named("the engine of the paper") is None
