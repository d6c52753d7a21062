from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from magicdec.costmodel.calibration.engine_fit import published_rows
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import KV_POLICIES
from magicdec.costmodel.speculation.drafts import NO_DRAFT, Draft
from magicdec.costmodel.speculation.memory import USABLE_FRACTION, memory_of

STREAMING = Draft("self", "streaming_llm")


def test_autoregressive_decoding_holds_weights_and_one_cache(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=32_000)
    assert memory.weights_bytes == llama.weight_bytes
    assert memory.kv_bytes == 16 * 32_000 * 131_072
    assert memory.draft_weights_bytes == memory.draft_kv_bytes == 0
    assert memory.total_bytes == memory.weights_bytes + memory.kv_bytes + memory.activations_bytes


def test_draft_tokens_need_slots_too(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=32_000, gamma=4, kv_budget=512, draft=STREAMING)
    assert memory.kv_bytes == 16 * 32_004 * 131_072


def test_a_sparse_self_draft_keeps_a_copy_of_what_it_reads(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=[100, 32_000], gamma=4, kv_budget=512, draft=STREAMING)
    assert memory.draft_kv_bytes.tolist() == [16 * 104 * 131_072, 16 * 516 * 131_072]
    assert memory.draft_weights_bytes == 0


def test_a_small_draft_brings_its_weights_and_its_own_cache(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    full, part = Draft("model", "full", small_llama), Draft("model", "streaming_llm", small_llama)
    whole = memory_of(llama, batch_size=2, max_context_len=8000, gamma=3, draft=full)
    sparse = memory_of(llama, batch_size=2, max_context_len=8000, gamma=3, kv_budget=512, draft=part)
    assert whole.draft_weights_bytes == sparse.draft_weights_bytes == small_llama.weight_bytes
    assert sparse.draft_kv_bytes == 2 * 515 * small_llama.kv_bytes_per_token
    assert 8000 <= whole.draft_kv_bytes / (2 * small_llama.kv_bytes_per_token) <= 8003
    assert whole.kv_bytes == sparse.kv_bytes


def test_gpus_share_weights_and_kv(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    small = Draft("model", "full", small_llama, tensor_parallel=4)
    one = memory_of(llama, batch_size=2, max_context_len=8000, draft=replace(small, tensor_parallel=1))
    eight = memory_of(llama, batch_size=2, max_context_len=8000, tensor_parallel=8, draft=small)
    norms = 65 * llama.d_model * 2, 33 * small_llama.d_model * 2
    assert eight.weights_bytes - norms[0] == (one.weights_bytes - norms[0]) / 8
    assert eight.kv_bytes == one.kv_bytes / 8
    assert eight.draft_weights_bytes - norms[1] == (one.draft_weights_bytes - norms[1]) / 4
    assert eight.draft_kv_bytes == one.draft_kv_bytes / 4


def test_an_engine_that_does_not_shard_the_head_holds_it_whole(llama: TransformerConfig) -> None:
    sharded, whole = (
        memory_of(llama, batch_size=1, max_context_len=100, tensor_parallel=8, head_sharded=sharded).weights_bytes
        for sharded in (True, False)
    )
    assert whole - sharded == pytest.approx(2 * llama.embedding_params * 2 * 7 / 8)


def test_an_engine_that_does_not_shard_the_head_holds_that_of_a_small_draft_whole_too(
    llama: TransformerConfig, small_llama: TransformerConfig
) -> None:
    small = Draft("model", "full", small_llama)
    sharded, whole = (
        memory_of(llama, batch_size=1, max_context_len=100, tensor_parallel=8, draft=small, head_sharded=s).draft_weights_bytes
        for s in (True, False)
    )
    assert whole - sharded == pytest.approx(small_llama.embedding_params * 2 * 7 / 8)


@pytest.mark.parametrize("policy", KV_POLICIES)
def test_no_draft_takes_the_memory_of_autoregressive_decoding(llama: TransformerConfig, policy: str) -> None:
    plain = memory_of(llama, batch_size=16, max_context_len=32_000)
    assert memory_of(llama, batch_size=16, max_context_len=32_000, draft=NO_DRAFT, kv_budget=512) == plain
    assert memory_of(llama, batch_size=16, max_context_len=32_000, draft=Draft("ngram")) == plain


def test_sliding_layers_keep_their_window_and_the_others_all(gemma: TransformerConfig) -> None:
    memory = memory_of(gemma, batch_size=3, max_context_len=[500, 100_000])
    per_layer = gemma.kv_bytes_per_token / 62
    assert memory.kv_bytes.tolist() == [3 * 62 * 500 * per_layer, 3 * (10 * 100_000 + 52 * 1024) * per_layer]


def test_a_latent_cache_is_held_whole_by_every_gpu(deepseek: TransformerConfig) -> None:
    for gpus in (1, 8):
        memory = memory_of(deepseek, batch_size=2, max_context_len=1000, tensor_parallel=gpus)
        assert memory.kv_bytes == 2 * 1000 * 61 * 576 * 2


def test_deepseek_fits_eight_h200_in_fp8_and_not_eight_h100(deepseek: TransformerConfig, h200: HardwareProfile) -> None:
    memory = memory_of(deepseek, batch_size=8, max_context_len=16_000, tensor_parallel=8)
    assert memory.fits(h200)
    assert not memory.fits(resolve_profile("h100-sxm"))
    assert not memory_of(deepseek.with_dtype("bfloat16"), batch_size=1, max_context_len=100, tensor_parallel=8).fits(h200)


def test_activations_hold_the_logits_of_every_verified_token(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=8, max_context_len=1000, gamma=[0, 4])
    assert (memory.activations_bytes > 8 * np.array([1, 5]) * llama.vocab_size * 4).all()
    assert memory.activations_bytes[1] == 5 * memory.activations_bytes[0]


def test_what_fits_is_the_usable_part_of_the_memory(llama: TransformerConfig, h200: HardwareProfile) -> None:
    memory = memory_of(llama, batch_size=[1, 8, 64], max_context_len=32_000)
    assert memory.fits(h200).tolist() == [True, True, False]
    needed = float(memory.total_bytes[0])
    exactly = replace(h200, peak=replace(h200.peak, memory_bytes=needed / USABLE_FRACTION * (1 + 1e-12)))
    less = replace(h200, peak=replace(h200.peak, memory_bytes=needed / USABLE_FRACTION * (1 - 1e-12)))
    assert memory.fits(exactly)[0]
    assert not memory.fits(less)[0]


@pytest.mark.parametrize("hardware", ["a100-sxm-80gb", "h100-sxm", "l40"])
def test_what_was_published_as_run_fits(hardware: str) -> None:
    """Each generated 96 tokens a sequence."""
    for row in published_rows("magicdec_timings"):
        if row["hardware"] != hardware:
            continue
        memory = memory_of(
            resolve_model(row["target"]),
            batch_size=int(row["batch_size"]),
            max_context_len=int(row["context_len"]) + 96,
            gamma=int(row["gamma"]),
            kv_budget=int(row["kv_budget"]),
            tensor_parallel=int(row["tensor_parallel"]),
            draft=Draft("model", "streaming_llm", resolve_model(row["draft_model"])) if row["draft_model"] else STREAMING,
            head_sharded=resolve_profile(hardware).calibration.engine.head_sharded,
        )
        assert memory.fits(resolve_profile(hardware)), row


def test_memory_broadcasts(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=[[1], [2]], max_context_len=[10, 20, 30], draft=STREAMING)
    assert memory.total_bytes.shape == (2, 3)
    for i, batch in enumerate((1, 2)):
        for j, context in enumerate((10, 20, 30)):
            alone = memory_of(llama, batch_size=batch, max_context_len=context, draft=STREAMING)
            for field in fields(memory):
                assert np.broadcast_to(getattr(memory, field.name), (2, 3))[i, j] == getattr(alone, field.name), field.name
