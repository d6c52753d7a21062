"""Reading prompts: chunks, their sum, and the first token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.passes.prefill import PREFILL_CHUNK, ttft_s
from magicdec.costmodel.speculation.deployment import Deployment


def linear(query_len: Any, context_len: Any) -> np.ndarray:
    """A pass whose cost is linear in what was read before: so much to launch, a token, and a pair."""
    q, s = np.asarray(query_len, np.float64), np.asarray(context_len, np.float64)
    return 1e-3 + 2e-6 * q + 1e-11 * q * (s + q / 2)


def chunk_by_chunk(pass_s: Any, prompt: int, chunk: int) -> float:
    total, done = 0.0, 0
    while done < prompt:
        new = min(chunk, prompt - done)
        total += float(pass_s(new, done))
        done += new
    return total


@given(st.integers(1, 200_000), st.sampled_from([1000, 8192]), st.integers(1, 64))
def test_prompts_are_read_chunk_by_chunk_one_after_the_other(prompt: int, chunk: int, batch: int) -> None:
    expected = batch * chunk_by_chunk(linear, prompt, chunk)
    assert float(ttft_s(linear, prompt, batch, chunk)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("prompt", "passes"), [(1, 1), (PREFILL_CHUNK, 1), (PREFILL_CHUNK + 1, 2), (3 * PREFILL_CHUNK, 3)])
def test_a_prompt_takes_as_many_passes_as_it_fills_chunks(prompt: int, passes: int) -> None:
    def one(query_len: Any, context_len: Any) -> np.ndarray:
        assert np.all(np.asarray(query_len) >= 1)
        return np.ones(np.broadcast(query_len, context_len).shape)

    assert float(ttft_s(one, prompt, 1)) == passes


def test_prompts_broadcast_against_batches() -> None:
    times = ttft_s(linear, np.array([100, 20_000]), np.array([[1], [2], [5]]))
    assert times.shape == (3, 2)
    assert times[2, 1] == pytest.approx(5 * float(ttft_s(linear, 20_000, 1)))


MODELS = ("Llama-3.1-8B", "Llama-2-7B-32K", "Mixtral-8x7B", "DeepSeek-V3", "gpt-oss-20b", "Gemma-3-27B", "Mistral-7B-v0.1")


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm", "b200-sxm"])
@pytest.mark.parametrize("name", MODELS)
def test_the_first_token_comes_after_all_chunks_whatever_the_model(hardware: str, name: str) -> None:
    """Costs are not quite linear where kernels overlap, nor where windows end within the first chunk."""
    deployment = Deployment(resolve_model(name), resolve_profile(hardware), 8, 8)

    def pass_s(query_len: int, context_len: int) -> float:
        return float(deployment.pass_time(1, query_len, context_len, logits_len=1).total_s)

    for prompt in (1, 100, PREFILL_CHUNK, PREFILL_CHUNK + 1):
        assert float(deployment.ttft_s(prompt)) == pytest.approx(chunk_by_chunk(pass_s, prompt, PREFILL_CHUNK), rel=1e-12)
    for prompt in (20_000, 65_536, 100_000):
        assert float(deployment.ttft_s(prompt)) == pytest.approx(chunk_by_chunk(pass_s, prompt, PREFILL_CHUNK), rel=0.035)


def test_replicas_read_their_share_of_the_prompts(llama: TransformerConfig, a100: HardwareProfile) -> None:
    one, two = Deployment(llama, a100, 4, 4), Deployment(llama, a100, 8, 4)
    assert two.ttft_s(10_000, 6) == one.ttft_s(10_000, 3)
    assert two.ttft_s(10_000, 5) == one.ttft_s(10_000, 3)
    assert one.ttft_s(10_000, 3) == 3 * one.ttft_s(10_000)


def test_reading_a_prompt_is_bound_by_arithmetic_and_longer_ones_take_longer(
    llama: TransformerConfig, h200: HardwareProfile
) -> None:
    deployment = Deployment(llama, h200)
    prompts = np.array([1, 10, 100, 1000, 8192, 8193, 30_000, 100_000])
    times = deployment.ttft_s(prompts)
    assert (np.diff(times) > 0).all()
    flop = 2 * llama.params * 30_000
    assert times[6] > flop / h200.flop_per_s("bfloat16")
    assert str(deployment.pass_time(1, 8192, 0, logits_len=1).bound) == "compute"
