"""Whole requests under continuous batching: prefill and decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import active_params

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.speculation.acceptance import published_curves
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import Draft
from magicdec.costmodel.speculation.evaluate import evaluate_grid
from magicdec.costmodel.speculation.serving import Serving, serving


@pytest.fixture(scope="module")
def deployment(llama: TransformerConfig, a100: HardwareProfile) -> Deployment:
    return Deployment(llama, a100, 8, 8)


def plain(**changes: Any) -> Serving:
    """64 requests at 10 ms a token, whose prompts take half a second each."""
    values: dict[str, Any] = {"prefill_s": 0.5, "tpot_s": 0.01, "output_len": 100.0, "batch_size": 64.0}
    arrays = {name: np.asarray(value, np.float64) for name, value in {**values, **changes}.items() if name != "replicas"}
    return Serving(**arrays, replicas=changes.get("replicas", 1))


def test_a_cycle_serves_one_request_in_every_place_of_the_batch() -> None:
    s = plain()
    assert s.cycle_s == pytest.approx(64 * 0.5 + 100 * 0.01)
    assert s.throughput_tokens_per_s == pytest.approx(64 * 100 / s.cycle_s)
    assert s.prefill_share == pytest.approx(32 / 33)


def test_a_request_alone_takes_its_prompt_and_its_tokens() -> None:
    s = plain()
    assert s.request_s == pytest.approx(0.5 + 100 * 0.01, rel=0.011), "the first token comes with the prompt"
    assert s.ttft_s < s.request_s < s.cycle_s


def test_alone_in_the_batch_a_request_takes_a_whole_cycle() -> None:
    assert plain(batch_size=1).cycle_s == pytest.approx(float(plain(batch_size=1).request_s), rel=0.011)


def test_without_prompts_throughput_is_the_batch_over_the_time_per_token() -> None:
    s = plain(prefill_s=0.0)
    assert s.throughput_tokens_per_s == 64 / 0.01
    assert s.prefill_share == 0


def test_the_longer_the_output_the_nearer_throughput_comes_to_that_of_decoding() -> None:
    s = plain(output_len=10.0 ** np.arange(0, 9))
    assert (np.diff(s.throughput_tokens_per_s) > 0).all()
    assert (s.throughput_tokens_per_s < 64 / 0.01).all()
    assert s.throughput_tokens_per_s[-1] == pytest.approx(64 / 0.01, rel=1e-3)
    assert (np.diff(s.prefill_share) < 0).all()
    assert s.prefill_share[0] > 0.99
    assert s.prefill_share[-1] < 1e-3


def test_however_large_the_batch_throughput_stays_below_what_prompts_allow() -> None:
    s = plain(batch_size=4.0 ** np.arange(0, 12))
    assert (np.diff(s.throughput_tokens_per_s) > 0).all()
    assert (s.throughput_tokens_per_s < 100 / 0.5).all()
    assert s.throughput_tokens_per_s[-1] == pytest.approx(100 / 0.5, rel=1e-4)


def test_infinitely_fast_decoding_leaves_the_prompts() -> None:
    s = plain(tpot_s=0.0)
    assert s.prefill_share == 1
    assert s.throughput_tokens_per_s == pytest.approx(100 / 0.5)


def test_speculation_gains_less_on_whole_requests_than_on_decoding() -> None:
    slow, fast = plain(), plain(tpot_s=0.005)
    for gain in (slow.request_s / fast.request_s, fast.throughput_tokens_per_s / slow.throughput_tokens_per_s):
        assert 1 < gain < 2
    assert fast.prefill_share > slow.prefill_share
    assert fast.ttft_s == slow.ttft_s


def test_replicas_read_their_prompts_side_by_side() -> None:
    one, four = plain(batch_size=16), plain(batch_size=64, replicas=4)
    assert four.cycle_s == one.cycle_s
    assert four.throughput_tokens_per_s == 4 * one.throughput_tokens_per_s


@given(st.floats(0, 100), st.floats(1e-4, 1), st.integers(1, 10_000), st.integers(1, 1000), st.sampled_from([1, 2, 8]))
def test_shares_are_shares_and_throughput_has_its_limits(ttft: float, tpot: float, output: int, batch: int, replicas: int) -> None:
    s = plain(prefill_s=ttft, tpot_s=tpot, output_len=output, batch_size=batch * replicas, replicas=replicas)
    assert -1e-12 <= s.prefill_share < 1
    assert s.throughput_tokens_per_s <= batch * replicas / tpot * (1 + 1e-12)
    if ttft > 0:
        assert s.throughput_tokens_per_s <= replicas * output / ttft * (1 + 1e-12)
    assert s.throughput_tokens_per_s * s.cycle_s == pytest.approx(batch * replicas * output)


# From a model and a machine.


def test_the_first_token_is_that_of_one_prompt(deployment: Deployment) -> None:
    s = serving(deployment, prompt_lens=32_000, output_len=128, batch_size=64, tpot_s=0.01)
    assert s.ttft_s == float(deployment.ttft_s(32_000))
    assert s.replicas == 1
    assert s.ttft_s.shape == ()


def test_of_several_prompts_the_mean_time_counts(deployment: Deployment) -> None:
    mixed = serving(deployment, prompt_lens=[1000, 50_000, 100_000], output_len=128, batch_size=64, tpot_s=0.01)
    assert mixed.ttft_s == pytest.approx(np.mean([float(deployment.ttft_s(length)) for length in (1000, 50_000, 100_000)]))
    alike = serving(deployment, prompt_lens=50_333, output_len=128, batch_size=64, tpot_s=0.01)
    assert mixed.ttft_s > alike.ttft_s, "attention over a prompt grows faster than the prompt"


def test_a_trace_of_equal_prompts_is_one_prompt(deployment: Deployment) -> None:
    one, many = (serving(deployment, prompt_lens=p, output_len=64, batch_size=8, tpot_s=0.01) for p in (4000, [4000] * 5))
    assert one.ttft_s == many.ttft_s


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm", "l4"])
def test_the_first_token_comes_later_after_a_longer_prompt(hardware: str) -> None:
    deployment = Deployment(resolve_model("Llama-3.1-8B"), resolve_profile(hardware))
    prompts = np.unique(np.geomspace(1, 128_000, 80).astype(int))
    times = deployment.ttft_s(prompts)
    assert (np.diff(times) > -1e-9).all()
    assert times[-1] > 10 * times[len(times) // 2] > 0


def test_reading_a_prompt_takes_at_least_its_arithmetic_at_peak(deployment: Deployment) -> None:
    prompts = np.array([1000, 8192, 8193, 32_000, 100_000])
    body = active_params(deployment.target) - deployment.target.embedding_params
    least = 2 * prompts * (body - deployment.target.embedding_params) / (8 * deployment.hardware.peak.flop_per_s["bfloat16"])
    times = deployment.ttft_s(prompts)
    assert (times > least).all()
    assert (times < 6 * least + 0.05)[:3].all(), "and not many times that, where attention is a small part of it"


def test_the_prompts_of_a_batch_are_read_one_after_the_other(deployment: Deployment) -> None:
    assert deployment.ttft_s(4000, 10) == pytest.approx(10 * float(deployment.ttft_s(4000)))
    two = Deployment(deployment.target, deployment.hardware, 16, 8)
    assert two.ttft_s(4000, 10) == pytest.approx(5 * float(deployment.ttft_s(4000)))


def test_decoding_twice_as_fast_is_worth_less_with_prompts(deployment: Deployment) -> None:
    """The end to end gain of the strategy that wins at batch 128 and 32k, over requests of 256 new tokens."""
    e = evaluate_grid(
        deployment,
        Draft("self", "streaming_llm"),
        batch_size=128,
        context_len=32_000,
        gamma=3,
        kv_budget=512,
        curves=published_curves(),
    )
    slow, fast = (
        serving(deployment, prompt_lens=32_000, output_len=256, batch_size=128, tpot_s=tpot)
        for tpot in (e.round.target_step_s, e.round.speculative_tpot_s)
    )
    gain = fast.throughput_tokens_per_s / slow.throughput_tokens_per_s
    assert 1 < gain < 1.2 < e.round.speedup
    assert slow.prefill_share > 0.8, "reading 128 prompts of 32k tokens takes longer than 256 steps"


def test_a_cached_prefix_is_not_read_again_and_a_queue_delays_the_first_token(deployment: Deployment) -> None:
    asked = {"prompt_lens": 32_000, "output_len": 128, "batch_size": 64, "tpot_s": 0.01}
    whole, half = serving(deployment, **asked), serving(deployment, **asked, cached_share=0.5)  # type: ignore[arg-type]
    assert half.prefill_s == pytest.approx(float(deployment.ttft_s(32_000) - deployment.ttft_s(16_000)))
    assert half.throughput_tokens_per_s > whole.throughput_tokens_per_s
    all_but_one = serving(deployment, **asked, cached_share=1.0)  # type: ignore[arg-type]
    assert 0 < all_but_one.prefill_s < 0.05 * whole.prefill_s
    waiting = serving(deployment, **asked, queue_s=2.0)  # type: ignore[arg-type]
    assert waiting.ttft_s == pytest.approx(whole.ttft_s + 2)
    assert waiting.throughput_tokens_per_s == whole.throughput_tokens_per_s
