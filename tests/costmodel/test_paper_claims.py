"""What MagicDec (arXiv 2408.11049) says and measured, from the shipped profiles and curves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

from magicdec.costmodel.calibration.engine_fit import published_rows
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import Evaluation, evaluate_grid

GAMMAS = np.arange(1, 11)
BATCHES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])


def self_speculation(model: str, batch_size: object, context_len: object, gamma: object) -> Evaluation:
    """StreamingLLM self-speculation with 512 KV entries on 8 A100, as in most of the paper."""
    deployment = Deployment(resolve_model(model), resolve_profile("a100-sxm-80gb"), 8, 8)
    draft = Draft("self", "streaming_llm")
    curves = published_curves()
    return evaluate_grid(
        deployment, draft, batch_size=batch_size, context_len=context_len, gamma=gamma, kv_budget=512, curves=curves
    )  # type: ignore[arg-type]


def best_speedups(model: str, context_len: int) -> np.ndarray:
    """At the best gamma, by batch size."""
    return np.asarray(self_speculation(model, BATCHES[:, None], context_len, GAMMAS).round.speedup.max(axis=1))


def test_at_short_contexts_batching_does_not_make_speculation_pay() -> None:
    speedups = best_speedups("Llama-3.1-8B", 1000)
    assert (speedups < 1).all()
    assert speedups[-1] < speedups[0]


def test_at_long_contexts_speedup_grows_with_batch() -> None:
    """Below 4 sequences on eight GPUs overheads decide, and nothing changes much."""
    speedups = best_speedups("Llama-3.1-8B", 32_000)
    assert (np.diff(speedups)[2:] > 0).all()
    assert (np.abs(np.diff(speedups)[:2]) < 0.005).all()
    assert speedups[-1] > 1.7


def test_at_batch_one_speculation_loses_on_eight_gpus() -> None:
    for context_len in (1000, 8000, 32_000, 100_000):
        assert best_speedups("Llama-3.1-8B", context_len)[0] < 1


def test_the_critical_length_of_llama_3_is_a_few_thousand_tokens() -> None:
    """Section 3.2: about 4000 tokens; below it large batches lose, above it they gain."""
    rise = {s: best_speedups("Llama-3.1-8B", s)[-1] - best_speedups("Llama-3.1-8B", s)[4] for s in (1000, 8000)}
    assert rise[1000] < 0 < 0.15 < rise[8000]


@pytest.mark.parametrize("context_len", [1000, 2000, 4000, 8000, 16_000, 32_000])
def test_multi_head_attention_gains_at_shorter_contexts_than_grouped_queries(context_len: int) -> None:
    large = slice(5, None)
    assert (best_speedups("Llama-2-7B-32K", context_len)[large] > best_speedups("Llama-3.1-8B", context_len)[large]).all()


def test_at_long_contexts_verification_costs_little_more_than_decoding() -> None:
    contexts = np.array([1000, 4000, 16_000, 64_000, 100_000])
    for model, most in (("Llama-2-7B-32K", 1.06), ("Llama-3.1-8B", 1.2)):
        costs = self_speculation(model, BATCHES[5:, None], contexts, 4).round.verify_cost
        assert (costs[:, -1] < most).all()
        assert (np.diff(costs, axis=1) < 0).all()
        assert (costs > 1).all()


def test_at_long_contexts_large_batches_make_the_draft_relatively_cheaper() -> None:
    costs = self_speculation("Llama-3.1-8B", BATCHES, 32_000, 1).round.draft_cost
    assert (np.diff(costs)[1:] < 0).all()
    assert abs(costs[1] - costs[0]) < 0.001
    assert costs[-1] < 0.2 < 0.8 < costs[0]


def test_at_long_contexts_decoding_is_bound_by_the_kv_cache() -> None:
    bound = self_speculation("Llama-3.1-8B", np.array([1, 256]), 64_000, 1).target.bound
    assert bound[1] == "kv"
    assert bound[0] != "kv"


def draft_of(row: Mapping[str, str]) -> Draft:
    model = resolve_model(row["draft_model"]) if row["draft_kind"] == "model" else None
    return Draft(row["draft_kind"], row["kv_policy"], model)  # type: ignore[arg-type]


def deployment_of(row: Mapping[str, str]) -> Deployment:
    return Deployment(
        resolve_model(row["target"]), resolve_profile(row["hardware"]), int(row["num_gpus"]), int(row["tensor_parallel"])
    )


@cache
def timing_errors(hardware: str) -> dict[str, np.ndarray]:
    """Relative error of every published row of a GPU, by what was measured."""
    errors: dict[str, list[float]] = {"target": [], "verify": [], "draft": [], "speedup": []}
    for row in (row for row in published_rows("magicdec_timings") if row["hardware"] == hardware):
        r = evaluate_grid(
            deployment_of(row),
            draft_of(row),
            batch_size=int(row["batch_size"]),
            context_len=int(row["context_len"]),
            gamma=int(row["gamma"]),
            kv_budget=int(row["kv_budget"]),
            mean_acceptance_length=float(row["mean_acceptance_length"]),
        ).round
        errors["target"].append(r.target_step_s / float(row["measured_target_step_s"]) - 1)
        errors["verify"].append(r.verify_step_s / float(row["measured_verify_step_s"]) - 1)
        errors["draft"].append(r.gamma_draft_step_s / float(row["measured_gamma_draft_step_s"]) - 1)
        errors["speedup"].append(r.speedup / float(row["measured_speedup"]) - 1)
    return {name: np.array(values) for name, values in errors.items()}


@pytest.mark.parametrize(("hardware", "rows"), [("a100-sxm-80gb", 30), ("h100-sxm", 11), ("l40", 2)])
@pytest.mark.parametrize(("quantity", "most"), [("target", 0.03), ("verify", 0.03), ("draft", 0.05), ("speedup", 0.03)])
def test_published_measurements_are_met(hardware: str, rows: int, quantity: str, most: float) -> None:
    errors = timing_errors(hardware)[quantity]
    assert len(errors) == rows
    assert np.abs(errors).mean() <= most
    assert np.abs(errors).max() <= {"target": 0.05, "verify": 0.08, "draft": 0.14, "speedup": 0.09}[quantity]


@cache
def optimal_gammas() -> tuple[np.ndarray, np.ndarray]:
    """Of every published best gamma: how far off the predicted one is, and the error of its speedup."""
    off, errors = [], []
    for row in published_rows("magicdec_optimal_gamma"):
        speedups = evaluate_grid(
            deployment_of(row),
            draft_of(row),
            batch_size=int(row["batch_size"]),
            context_len=int(row["context_len"]),
            gamma=GAMMAS,
            kv_budget=int(row["kv_budget"]),
            curves=published_curves(),
        ).round.speedup
        off.append(GAMMAS[speedups.argmax()] - int(row["measured_optimal_gamma"]))
        errors.append(speedups.max() / float(row["measured_speedup"]) - 1)
    return np.array(off), np.array(errors)


def test_the_best_gamma_is_found_within_one_token() -> None:
    off, _ = optimal_gammas()
    assert len(off) == 38
    assert (np.abs(off) <= 1).mean() >= 0.9
    assert (off == 0).mean() > 0.5


def test_the_speedup_at_the_best_gamma_is_met() -> None:
    _, errors = optimal_gammas()
    assert np.abs(errors).mean() <= 0.05
