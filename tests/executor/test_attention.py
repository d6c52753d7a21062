"""Attention over cached keys and values equals softmax attention, computed here slot by slot in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY, logits_TV, random_prompts, tiny_model
from torch import Tensor

from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.executor.engine import prefill
from magicdec.executor.kv.attention import PrefillAttention, SlotAttention
from magicdec.executor.kv.cache import KvCache

CPU = torch.device("cpu")
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2, "float16": 3e-3}


def softmax_attention(q_TH: Tensor, k_SH: Tensor, v_SH: Tensor, positions: list[int], window: int | None) -> Tensor:
    """Softmax attention of one head of one row: each query over its visible slots only."""
    rows = []
    for query_H, position in zip(q_TH.double(), positions, strict=True):
        first = 0 if window is None else max(0, position - window + 1)
        scores_S = k_SH[first : position + 1].double() @ query_H / k_SH.shape[1] ** 0.5
        weights_S = torch.exp(scores_S - scores_S.max())
        rows.append(weights_S @ v_SH[first : position + 1].double() / weights_S.sum())
    return torch.stack(rows)


def reference(q_BNTH: Tensor, cache: KvCache, layer: int, slots_BT: list[list[int]], window: int | None) -> Tensor:
    """Float64 attention output of queries whose keys are already in the cache."""
    out = torch.empty(q_BNTH.shape, dtype=torch.float64)
    group = q_BNTH.shape[1] // cache.k_LBKSH.shape[2]
    for row in range(q_BNTH.shape[0]):
        for head in range(q_BNTH.shape[1]):
            k_SH, v_SH = cache.k_LBKSH[layer, row, head // group], cache.v_LBKSH[layer, row, head // group]
            out[row, head] = softmax_attention(q_BNTH[row, head], k_SH, v_SH, slots_BT[row], window)
    return out


def shaped(num_heads: int, num_kv_heads: int, head_dim: int, dtype: str) -> TransformerConfig:
    return replace(TINY, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)


def consecutive(starts: list[int], count: int) -> Tensor:
    """slots_BT of `count` new tokens per row."""
    return torch.tensor(starts)[:, None] + torch.arange(count)


def check_slots(config: TransformerConfig, starts: list[int], query_len: int, window: int | None, spare: int = 3) -> None:
    """Compare with the reference on a cache that is random everywhere, unused slots included."""
    dtype, batch_size = getattr(torch, config.dtype), len(starts)
    generator = torch.Generator().manual_seed(query_len)
    cache = KvCache(config, batch_size, max(starts) + query_len + spare, CPU, dtype)
    cache.k_LBKSH.copy_(torch.randn(cache.k_LBKSH.shape, generator=generator))
    cache.v_LBKSH.copy_(torch.randn(cache.v_LBKSH.shape, generator=generator))
    q_BNTH = 2 * torch.randn(batch_size, config.num_heads, query_len, config.head_dim, generator=generator).to(dtype)
    k_BKTH, v_BKTH = torch.randn(2, batch_size, config.num_kv_heads, query_len, config.head_dim, generator=generator).to(dtype)
    before = cache.k_LBKSH.clone()
    with torch.inference_mode():
        found = SlotAttention(cache, consecutive(starts, query_len), window)(1, q_BNTH, k_BKTH, v_BKTH)
    slots_BT = consecutive(starts, query_len).tolist()
    for row, start in enumerate(starts):
        assert torch.equal(cache.k_LBKSH[1, row, :, start : start + query_len], k_BKTH[row])
        assert torch.equal(cache.v_LBKSH[1, row, :, start : start + query_len], v_BKTH[row])
    assert torch.equal(cache.k_LBKSH[0], before[0])
    assert found.shape == q_BNTH.shape
    assert found.dtype == dtype
    wanted = reference(q_BNTH, cache, 1, slots_BT, window)
    tolerance = TOLERANCE[config.dtype]
    torch.testing.assert_close(found.double(), wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 4, 30, 1000])
@pytest.mark.parametrize("query_len", [1, 2, 5, 9])
def test_ragged_rows_see_their_own_slots_and_no_others(query_len: int, window: int | None, dtype: str) -> None:
    for starts in ([0], [0, 0], [5, 5, 5], [0, 3, 40], [63, 64, 1, 130]):
        check_slots(shaped(4, 2, 8, dtype), starts, query_len, window)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1), (5, 1)])
@pytest.mark.parametrize("head_dim", [4, 32, 64, 128])
def test_query_heads_share_the_keys_of_their_group(num_heads: int, num_kv_heads: int, head_dim: int, dtype: str) -> None:
    for query_len, window in ((1, None), (4, None), (4, 17), (9, None)):
        check_slots(shaped(num_heads, num_kv_heads, head_dim, dtype), [2, 70, 33], query_len, window)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_long_context_is_read_to_its_end(dtype: str) -> None:
    for window in (None, 700, 64):
        check_slots(shaped(4, 2, 64, dtype), [1500, 20, 1023], 3, window, spare=500)


@pytest.mark.parametrize("threads", [2, 3])
def test_work_split_over_threads_adds_up(threads: int) -> None:
    """A long context is split over the threads; for short rows some splits are empty."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for starts in ([300], [0], [5, 290], [700, 2, 64]):
            for query_len, window in ((1, None), (4, None), (4, 50)):
                check_slots(shaped(2, 1, 32, "float32"), starts, query_len, window)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    starts=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    query_len=st.integers(1, 10),
    window=st.none() | st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (4, 2), (4, 4), (6, 2), (7, 1)]),
    head_dim=st.sampled_from([8, 32, 64]),
    dtype=st.sampled_from(["float64", "float32"]),
    spare=st.integers(0, 40),
)
def test_any_mix_of_starts_lengths_windows_and_heads_matches_the_reference(
    starts: list[int], query_len: int, window: int | None, heads: tuple[int, int], head_dim: int, dtype: str, spare: int
) -> None:
    check_slots(shaped(*heads, head_dim, dtype), starts, query_len, window, spare)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_stale_slots_do_not_matter(dtype: str) -> None:
    config = shaped(4, 2, 32, dtype)
    outputs = []
    for filling in (0.0, 1e4):
        cache = KvCache(config, 2, 50, CPU, getattr(torch, dtype))
        generator = torch.Generator().manual_seed(0)
        for row, start in enumerate((3, 40)):
            past = torch.randn(2, 2, start, 32, generator=generator)
            cache.write_row(0, row, 0, *past.to(cache.k_LBKSH.dtype))
            cache.k_LBKSH[0, row, :, start:] = filling
            cache.v_LBKSH[0, row, :, start:] = filling
        q_BNTH = torch.randn(2, 4, 3, 32, generator=generator).to(cache.k_LBKSH.dtype)
        k_BKTH, v_BKTH = torch.randn(2, 2, 2, 3, 32, generator=generator).to(cache.k_LBKSH.dtype)
        outputs.append(SlotAttention(cache, consecutive([3, 40], 3))(0, q_BNTH, k_BKTH, v_BKTH))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_attention_serves_every_layer(dtype: str) -> None:
    config = shaped(4, 2, 32, dtype)
    cache = KvCache(config, 2, 20, CPU, getattr(torch, dtype))
    generator = torch.Generator().manual_seed(0)
    attend = SlotAttention(cache, consecutive([0, 7], 2))
    kept, wanted = [], []
    for layer in (0, 1):
        q_BNTH = torch.randn(2, 4, 2, 32, generator=generator).to(cache.k_LBKSH.dtype)
        k_BKTH, v_BKTH = torch.randn(2, 2, 2, 2, 32, generator=generator).to(cache.k_LBKSH.dtype)
        kept.append(attend(layer, q_BNTH, k_BKTH, v_BKTH))
        wanted.append(reference(q_BNTH, cache, layer, [[0, 1], [7, 8]], None))
    for found, expected in zip(kept, wanted, strict=True):  # the second call must not overwrite the first
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_a_second_cache_keeps_the_new_keys_at_their_positions() -> None:
    config = shaped(4, 2, 8, "float64")
    compact, whole = KvCache(config, 2, 8, CPU, torch.float64), KvCache(config, 2, 40, CPU, torch.float64)
    q_BNTH = torch.ones(2, 4, 2, 8, dtype=torch.float64)
    k_BKTH, v_BKTH = torch.randn(2, 2, 2, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions_BT = torch.tensor([[30, 31], [9, 10]])
    SlotAttention(compact, consecutive([4, 2], 2), None, whole, positions_BT)(1, q_BNTH, k_BKTH, v_BKTH)
    for row, (slot, position) in enumerate(((4, 30), (2, 9))):
        for cache, at in ((compact, slot), (whole, position)):
            assert torch.equal(cache.k_LBKSH[1, row, :, at : at + 2], k_BKTH[row])
            assert torch.equal(cache.v_LBKSH[1, row, :, at : at + 2], v_BKTH[row])
    assert int((whole.k_LBKSH != 0).any(-1).any(2).sum()) == 4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_reading_a_cache_in_steps_or_at_once_is_the_same(dtype: str) -> None:
    """Verifying several tokens at once gives the same as decoding them one by one."""
    config = shaped(4, 2, 32, dtype)
    generator = torch.Generator().manual_seed(0)
    q_BNTH = torch.randn(2, 4, 5, 32, generator=generator).to(getattr(torch, dtype))
    k_BKTH, v_BKTH = torch.randn(2, 2, 2, 5, 32, generator=generator).to(getattr(torch, dtype))
    past = torch.randn(2, 2, 2, 30, 32, generator=generator).to(getattr(torch, dtype))
    caches = [KvCache(config, 2, 40, CPU, getattr(torch, dtype)) for _ in range(2)]
    for cache in caches:
        for row in range(2):
            cache.write_row(0, row, 0, past[0, row], past[1, row])
    slots_BT = consecutive([30, 11], 5)
    at_once = SlotAttention(caches[0], slots_BT)(0, q_BNTH, k_BKTH, v_BKTH)
    steps = [
        SlotAttention(caches[1], slots_BT[:, one])(0, q_BNTH[:, :, one], k_BKTH[:, :, one], v_BKTH[:, :, one])
        for one in (slice(t, t + 1) for t in range(5))
    ]
    torch.testing.assert_close(torch.cat(steps, dim=2), at_once, atol=TOLERANCE[dtype], rtol=0)


# Prefill.


@pytest.mark.parametrize("window", [None, 1, 6, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2)])
def test_a_chunk_of_a_prompt_sees_what_came_before_and_itself(num_heads: int, num_kv_heads: int, window: int | None) -> None:
    config = shaped(num_heads, num_kv_heads, 8, "float64")
    cache = KvCache(config, 2, 30, CPU, torch.float64)
    generator = torch.Generator().manual_seed(0)
    for start, length in ((0, 9), (9, 1), (10, 14)):
        q_BNTH = torch.randn(1, num_heads, length, 8, generator=generator, dtype=torch.float64)
        k_BKTH, v_BKTH = torch.randn(2, 1, num_kv_heads, length, 8, generator=generator, dtype=torch.float64)
        found = PrefillAttention(cache, 1, start, window)(0, q_BNTH, k_BKTH, v_BKTH)
        group = num_heads // num_kv_heads
        for head in range(num_heads):
            k_SH, v_SH = cache.k_LBKSH[0, 1, head // group], cache.v_LBKSH[0, 1, head // group]
            wanted = softmax_attention(q_BNTH[0, head], k_SH, v_SH, list(range(start, start + length)), window)
            torch.testing.assert_close(found[0, head], wanted, atol=1e-12, rtol=0)
    assert bool((cache.k_LBKSH[0, 0] == 0).all()), "the other row was left alone"


@pytest.mark.parametrize("window", [None, 5, 20])
@pytest.mark.parametrize("chunk", [1, 3, 8, 49, 50, 51])
def test_a_prompt_read_in_chunks_is_as_one_read_at_once(chunk: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family="mistral", sliding_window=window)
    tokens_S = torch.tensor(random_prompts((50,))[0])
    whole, parts = (KvCache(model.config, 2, 60, CPU, torch.float64) for _ in range(2))
    wanted_V = model.logits(prefill.prefill(model, whole, 1, tokens_S))
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", chunk)
    found_V = model.logits(prefill.prefill(model, parts, 1, tokens_S))
    torch.testing.assert_close(found_V, wanted_V, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.k_LBKSH, whole.k_LBKSH, atol=1e-10, rtol=0)
    torch.testing.assert_close(parts.v_LBKSH, whole.v_LBKSH, atol=1e-10, rtol=0)
    assert bool((whole.k_LBKSH[:, 1, :, :50] != 0).all())
    assert bool((whole.k_LBKSH[:, 0] == 0).all())


def test_prefill_gives_the_logits_after_the_last_token() -> None:
    model = tiny_model()
    prompt = random_prompts((33,))[0]
    cache = KvCache(model.config, 1, 40, CPU, torch.float64)
    torch.testing.assert_close(model.logits(prefill.prefill(model, cache, 0, torch.tensor(prompt))), logits_TV(model, prompt)[-1])
