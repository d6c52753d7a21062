from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from costmodel.calibrate import published_timings
from costmodel.hardware import HardwareProfile, resolve_profile
from costmodel.memory import USABLE_FRACTION, kv_bytes_per_token_per_gpu, memory_of
from costmodel.transformer import TransformerConfig, resolve_model


def test_plain_decoding_holds_weights_and_one_cache(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=32_000)
    assert memory.weights_bytes == llama.weight_bytes
    assert memory.kv_bytes == 16 * 32_000 * 131_072
    assert memory.draft_weights_bytes == memory.draft_kv_bytes == 0
    assert memory.total_bytes == memory.weights_bytes + memory.kv_bytes + memory.activations_bytes


def test_draft_tokens_need_slots_too(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=32_000, gamma=4, kv_budget=512, drafts=True)
    assert memory.kv_bytes == 16 * 32_004 * 131_072


def test_a_sparse_self_draft_keeps_a_copy_of_what_it_reads(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=16, max_context_len=[100, 32_000], gamma=4, kv_budget=512, drafts=True)
    assert memory.draft_kv_bytes.tolist() == [16 * 104 * 131_072, 16 * 516 * 131_072]
    assert memory.draft_weights_bytes.tolist() == [0, 0]


def test_a_small_draft_brings_its_weights_and_its_own_cache(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    whole = memory_of(llama, batch_size=2, max_context_len=8000, gamma=3, draft=small_llama, drafts=True)
    sparse = memory_of(llama, batch_size=2, max_context_len=8000, gamma=3, kv_budget=512, draft=small_llama, drafts=True)
    assert whole.draft_weights_bytes == sparse.draft_weights_bytes == small_llama.weight_bytes
    assert sparse.draft_kv_bytes == 2 * 515 * small_llama.kv_bytes_per_token
    assert 8000 <= whole.draft_kv_bytes / (2 * small_llama.kv_bytes_per_token) <= 8003
    assert whole.kv_bytes == sparse.kv_bytes


def test_gpus_share_weights_and_kv(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    one = memory_of(llama, batch_size=2, max_context_len=8000, draft=small_llama, drafts=True)
    eight = memory_of(
        llama, batch_size=2, max_context_len=8000, tensor_parallel=8, draft=small_llama, draft_tensor_parallel=4, drafts=True
    )
    assert eight.weights_bytes == one.weights_bytes / 8
    assert eight.kv_bytes == one.kv_bytes / 8
    assert eight.draft_weights_bytes == one.draft_weights_bytes / 4
    assert eight.draft_kv_bytes == one.draft_kv_bytes / 4


def test_kv_heads_that_cannot_be_split_are_held_by_each_gpu(tinyllama: TransformerConfig) -> None:
    shares = [kv_bytes_per_token_per_gpu(tinyllama, gpus) / tinyllama.kv_bytes_per_token for gpus in (1, 2, 4, 8, 32)]
    assert shares == [1, 0.5, 0.25, 0.25, 0.25]


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
    for row in published_timings():
        if row["hardware"] != hardware:
            continue
        memory = memory_of(
            resolve_model(row["target"]),
            batch_size=int(row["batch_size"]),
            max_context_len=int(row["context_len"]) + 96,
            gamma=int(row["gamma"]),
            kv_budget=int(row["kv_budget"]),
            tensor_parallel=int(row["tensor_parallel"]),
            draft=resolve_model(row["draft_model"]) if row["draft_model"] else None,
            draft_tensor_parallel=4,
            drafts=True,
        )
        assert memory.fits(resolve_profile(hardware)), row


def test_memory_broadcasts(llama: TransformerConfig) -> None:
    memory = memory_of(llama, batch_size=[[1], [2]], max_context_len=[10, 20, 30], drafts=True)
    assert {np.shape(getattr(memory, field.name)) for field in fields(memory)} == {(2, 3)}
