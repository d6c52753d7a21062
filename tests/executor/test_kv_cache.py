"""The KV cache stores each token at the slot of its position, and copies selected slots for sparse drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY

from magicdec.executor.kv.cache import KvCache

CPU = torch.device("cpu")


def filled(batch_size: int, capacity: int, seed: int = 0) -> KvCache:
    cache = KvCache(TINY, batch_size, capacity, CPU, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    cache.k_LBKSH.normal_(generator=generator)
    cache.v_LBKSH.normal_(generator=generator)
    return cache


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("batch_size", "capacity"), [(1, 1), (3, 17)])
def test_its_size_is_the_kv_bytes_per_token_times_the_slots(dtype: str, batch_size: int, capacity: int) -> None:
    config = replace(TINY, dtype=dtype)
    cache = KvCache(config, batch_size, capacity, CPU, getattr(torch, dtype))
    assert cache.nbytes == config.kv_bytes_per_token * batch_size * capacity
    assert cache.capacity == capacity
    assert cache.k_LBKSH.shape == cache.v_LBKSH.shape == (2, batch_size, 2, capacity, 8)


def test_new_tokens_go_to_each_rows_own_slots_of_one_layer() -> None:
    cache, before = filled(2, 9), filled(2, 9)
    k_BKTH, v_BKTH = torch.arange(2.0 * 2 * 2 * 3 * 8, dtype=torch.float64).view(2, 2, 2, 3, 8)
    slots = [[0, 1, 2], [6, 7, 8]]
    cache.write(1, torch.tensor(slots), k_BKTH, v_BKTH)
    assert torch.equal(cache.k_LBKSH[0], before.k_LBKSH[0])
    for row in range(2):
        for slot in range(9):
            if slot in slots[row]:
                token = slots[row].index(slot)
                assert torch.equal(cache.k_LBKSH[1, row, :, slot], k_BKTH[row, :, token])
                assert torch.equal(cache.v_LBKSH[1, row, :, slot], v_BKTH[row, :, token])
            else:
                assert torch.equal(cache.k_LBKSH[1, row, :, slot], before.k_LBKSH[1, row, :, slot])
                assert torch.equal(cache.v_LBKSH[1, row, :, slot], before.v_LBKSH[1, row, :, slot])


def test_writing_a_row_touches_no_other_row_layer_or_slot() -> None:
    cache, before = filled(3, 9), filled(3, 9)
    k_KTH, v_KTH = torch.randn(2, 2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    cache.write_row(0, 1, 3, k_KTH, v_KTH)
    assert torch.equal(cache.k_LBKSH[0, 1, :, 3:7], k_KTH)
    assert torch.equal(cache.v_LBKSH[0, 1, :, 3:7], v_KTH)
    before.k_LBKSH[0, 1, :, 3:7], before.v_LBKSH[0, 1, :, 3:7] = k_KTH, v_KTH
    assert torch.equal(cache.k_LBKSH, before.k_LBKSH)
    assert torch.equal(cache.v_LBKSH, before.v_LBKSH)


@pytest.mark.parametrize("slots", [[], [0], [0, 1, 5, 6], [8, 2]])
def test_copying_a_row_puts_the_selected_slots_first_in_their_order(slots: list[int]) -> None:
    cache, other, before = filled(3, 9), filled(3, 6, seed=1), filled(3, 6, seed=1)
    cache.copy_row_to(other, 2, torch.tensor(slots, dtype=torch.long))
    count = len(slots)
    assert torch.equal(other.k_LBKSH[:, 2, :, :count], cache.k_LBKSH[:, 2][:, :, slots])
    assert torch.equal(other.v_LBKSH[:, 2, :, :count], cache.v_LBKSH[:, 2][:, :, slots])
    assert torch.equal(other.k_LBKSH[:, 2, :, count:], before.k_LBKSH[:, 2, :, count:])
    assert torch.equal(other.v_LBKSH[:, :2], before.v_LBKSH[:, :2])


def test_copying_slots_of_every_row_keeps_rows_and_layers_apart() -> None:
    cache, other, before = filled(2, 9), filled(2, 6, seed=1), filled(2, 6, seed=1)
    cache.copy_to(other, torch.tensor([[1, 2], [7, 8]]), torch.tensor([[4, 5], [0, 1]]))
    for source, target, old in ((cache.k_LBKSH, other.k_LBKSH, before.k_LBKSH), (cache.v_LBKSH, other.v_LBKSH, before.v_LBKSH)):
        assert torch.equal(target[:, 0, :, 4:6], source[:, 0, :, 1:3])
        assert torch.equal(target[:, 1, :, 0:2], source[:, 1, :, 7:9])
        assert torch.equal(target[:, 0, :, :4], old[:, 0, :, :4])
        assert torch.equal(target[:, 1, :, 2:], old[:, 1, :, 2:])


def test_scratch_memory_is_kept_while_it_suffices_and_grows_when_it_does_not() -> None:
    cache = KvCache(TINY, 1, 4, CPU, torch.float64)
    first = cache.scratch(2, 3, 5)
    assert first.shape == (2, 3, 5)
    assert first.dtype == torch.float64
    assert cache.scratch(4, 2).data_ptr() == first.data_ptr()
    larger = cache.scratch(100, 100)
    assert larger.shape == (100, 100)
    assert larger.data_ptr() != first.data_ptr()
