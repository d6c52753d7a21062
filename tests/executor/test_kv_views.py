"""KV views: selections against plain Python loops, page bounds and copies against the exact cache."""

from __future__ import annotations

import pytest
import torch
from decoding import decode_all, requests_of, strategy_of
from tiny_models import TINY, random_prompts, tiny_model
from torch import Tensor

from magicdec.executor.drafting.draft_policy import FixedPolicy
from magicdec.executor.drafting.drafters import ModelDrafter
from magicdec.executor.drafting.factory import make_drafter
from magicdec.executor.drafting.kv_views import KvView, QuantisedKvView, SnapKvView
from magicdec.executor.drafting.query_aware_views import QuestView
from magicdec.executor.engine.batch import Batch
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.kv.gathered_attention import GatheredAttention
from magicdec.executor.kv.quantised_cache import LARGEST, QuantisedKv, dequantise, quantise
from magicdec.executor.kv.selection import OBSERVED_QUERIES, PAGE_SIZE, SelectionLimits, quest_slots, snapkv_slots, top_slots

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ints(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(("length", "kv_budget"), [(80, 60), (80, 36), (50, 10), (33, 32), (9, 4), (40, 1)])
def test_snapkv_keeps_its_window_and_what_the_window_attended_to_most(length: int, kv_budget: int) -> None:
    q_NWH, k_KSH = normal(4, OBSERVED_QUERIES, 8), normal(2, length, 8, seed=1)
    positions = list(range(length - OBSERVED_QUERIES, length))
    found = snapkv_slots(q_NWH, torch.tensor(positions), k_KSH, kv_budget).tolist()
    kept = min(OBSERVED_QUERIES, max(1, kv_budget // 2))
    for head in range(2):
        score = [0.0] * length
        for query in (2 * head, 2 * head + 1):
            for place, position in enumerate(positions):
                if position >= 0:
                    weights = (q_NWH[query, place] @ k_KSH[head, : position + 1].T / 8**0.5).softmax(-1).tolist()
                    score = [a + b for a, b in zip(score, weights + [0.0] * length, strict=False)]
        pooled = [sum(score[max(slot - 2, 0) : slot + 3]) for slot in range(length - kept)]
        best = sorted(range(length - kept), key=lambda slot: -pooled[slot])[: kv_budget - kept]
        assert found[head] == [*sorted(best), *range(length - kept, length)]


def test_snapkv_reads_everything_that_fits_and_nothing_outside_the_window() -> None:
    q_NWH, k_KSH = normal(4, OBSERVED_QUERIES, 8), normal(2, 50, 8)
    positions_W = torch.arange(50 - OBSERVED_QUERIES, 50)
    assert snapkv_slots(q_NWH, positions_W, k_KSH, 50).tolist() == [list(range(50))] * 2
    assert snapkv_slots(q_NWH, positions_W, k_KSH, 20, first=35).tolist() == [list(range(35, 50))] * 2
    assert int(snapkv_slots(q_NWH, positions_W, k_KSH, 20, first=25).min()) >= 25


def test_top_k_selects_the_largest_products_of_a_group_and_recent_entries() -> None:
    q_BKRH, k_BKSH = normal(2, 3, 2, 8), normal(2, 3, 30, 8, seed=1)
    known, budget, recent = (20, 27), (9, 40), (4, 4)
    slots_BKC = top_slots(
        q_BKRH,
        k_BKSH,
        SelectionLimits(
            first_B=ints(0, 5),
            recent_B=ints(*(k - r for k, r in zip(known, recent, strict=True))),
            last_B=ints(*known),
            count_B=ints(*(b + 1 for b in budget)),
            most=max(budget) + 1,
        ),
    )
    for row in range(2):
        for head in range(3):
            best = (q_BKRH[row, head] @ k_BKSH[row, head].T).amax(0).tolist()
            always = set(range(known[row] - recent[row], known[row] + 1))
            others = sorted(set(range((0, 5)[row], known[row] + 1)) - always, key=lambda slot: -best[slot])
            wanted = always | set(others[: budget[row] + 1 - len(always)])
            found = [slot for slot in slots_BKC[row, head].tolist() if slot < 30]
            assert set(found) == wanted
            assert len(found) == len(wanted)


def test_quest_bounds_the_products_of_a_page_and_selects_the_best_pages() -> None:
    k_BKSH, q_BKRH = normal(1, 2, 5 * PAGE_SIZE, 8), normal(1, 2, 3, 8, seed=1)
    paged = k_BKSH.unflatten(2, (5, PAGE_SIZE))
    low, high = paged.amin(3), paged.amax(3)
    slots_BKC = quest_slots(q_BKRH, low, high, SelectionLimits(ints(0), ints(4), ints(4), ints(3), most=3))
    products = (q_BKRH @ k_BKSH.transpose(2, 3)).amax(2).unflatten(2, (5, PAGE_SIZE)).amax(3)
    for head in range(2):
        pages = [slot // PAGE_SIZE for slot in slots_BKC[0, head, ::PAGE_SIZE].tolist()]
        assert slots_BKC[0, head].tolist() == [page * PAGE_SIZE + place for page in pages for place in range(PAGE_SIZE)]
        assert pages[0] == 4
        assert len(set(pages)) == 3
        bounds = torch.maximum(q_BKRH[0, head][:, None] * low[0, head], q_BKRH[0, head][:, None] * high[0, head]).sum(2).amax(0)
        assert bool((bounds >= products[0, head] - 1e-12).all()), "no product exceeds its page's bound"
        assert set(pages[1:]) == set(bounds[:4].argsort(descending=True)[:2].tolist())


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("window", [None, 6])
def test_gathered_attention_is_softmax_attention_over_the_selected_entries(length: int, window: int | None) -> None:
    cache = KvCache(TINY, 2, 20, CPU, torch.float64)
    cache.k_LBKSH.copy_(normal(*cache.k_LBKSH.shape))
    cache.v_LBKSH.copy_(normal(*cache.v_LBKSH.shape, seed=1))
    positions_BT = torch.tensor([[9], [15]]) + torch.arange(length)
    chosen = [[[3, 9, 10, 7], [9, 10, 0, 99]], [[15, 16, 2, 11], [12, 15, 16, 99]]]
    q_BNTH, k_BKTH, v_BKTH = normal(2, 4, length, 8, seed=2), normal(2, 2, length, 8, seed=3), normal(2, 2, length, 8, seed=4)
    attend = GatheredAttention(cache, positions_BT, window, lambda layer, q_BKRH: torch.tensor(chosen))
    found = attend(1, q_BNTH, k_BKTH, v_BKTH)
    for row in range(2):
        for head in range(4):
            for token, position in enumerate(positions_BT[row].tolist()):
                seen = [s for s in chosen[row][head // 2] if s <= position and (window is None or position - s < window)]
                k_CH, v_CH = cache.k_LBKSH[1, row, head // 2, seen], cache.v_LBKSH[1, row, head // 2, seen]
                wanted = (q_BNTH[row, head, token] @ k_CH.T / 8**0.5).softmax(-1) @ v_CH
                torch.testing.assert_close(found[row, head, token], wanted, atol=1e-12, rtol=0)
    assert torch.equal(cache.k_LBKSH[1, 1, :, 15 : 15 + length], k_BKTH[1]), "new entries are where verification will put its own"


def decoded(policy: str, kv_dtype: str = "int8", kv_budget: int = 24, gamma: int = 4) -> tuple[Batch, KvView]:
    """Decode three requests in two rows with a self draft; the batch and the draft's view."""
    batch = Batch(tiny_model(), requests_of(random_prompts((40, 70, 55))), GenerationSettings(90), gamma=gamma, rows=2)
    batch.prefill()
    drafter = make_drafter(strategy_of("self", policy, gamma, kv_budget, kv_dtype), batch, None)
    assert isinstance(drafter, ModelDrafter)
    decode_all(batch, FixedPolicy(drafter, gamma))
    return batch, drafter.view


@pytest.mark.parametrize(("kv_budget", "gamma"), [(24, 4), (500, 40)])  # the second commits more than two pages per round
def test_quest_bounds_are_those_of_the_exact_keys_after_any_number_of_rounds(kv_budget: int, gamma: int) -> None:
    batch, view = decoded("quest", kv_budget=kv_budget, gamma=gamma)
    assert isinstance(view, QuestView)
    for row, known in enumerate((batch.lengths_B - 1).tolist()):
        for page in range(-(-known // PAGE_SIZE)):
            k_LKCH = batch.cache.k_LBKSH[:, row, :, page * PAGE_SIZE : min(known, (page + 1) * PAGE_SIZE)]
            assert torch.equal(view.low_LBKPH[:, row, :, page], k_LKCH.amin(2))
            assert torch.equal(view.high_LBKPH[:, row, :, page], k_LKCH.amax(2))


def test_snapkv_keeps_the_queries_of_verification() -> None:
    """The ring buffer holds the queries of the last 32 committed positions, as a fresh pass over the text computes them."""
    batch, view = decoded("snapkv")
    assert isinstance(view, SnapKvView)
    for row, known in enumerate((batch.lengths_B - 1).tolist()):
        tokens_S = batch.tokens_BS[row, :known]
        wanted = {}

        def attend(layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
            wanted[layer] = q_BNTH[0]  # noqa: B023
            return torch.nn.functional.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=True)

        batch.model(tokens_S[None], torch.arange(known)[None], attend)
        ring = view.queries_LBNWH.shape[3]
        for position in range(known - OBSERVED_QUERIES, known):
            for layer, q_NTH in wanted.items():
                torch.testing.assert_close(view.queries_LBNWH[layer, row, :, position % ring], q_NTH[:, position])


@pytest.mark.parametrize("kv_dtype", ["int8", "int4", "fp8"])
def test_a_quantised_copy_holds_the_quantised_exact_entries(kv_dtype: str) -> None:
    batch, view = decoded("full", kv_dtype)
    assert isinstance(view, QuantisedKvView)
    for row, known in enumerate((batch.lengths_B - 1).tolist()):
        for layer in range(TINY.num_layers):
            for found, exact in zip(view.copy.read(layer, known), batch.cache.read(layer, known), strict=True):
                wanted = dequantise(*quantise(exact[row], kv_dtype), kv_dtype)
                assert torch.equal(found[row], wanted)


@pytest.mark.parametrize(("kv_dtype", "steps"), [("int8", 127), ("int4", 7), ("fp8", 14)])
def test_dequantised_entries_are_within_half_a_step(kv_dtype: str, steps: int) -> None:
    x = normal(3, 50, 8) * torch.logspace(-3, 3, 50, dtype=torch.float64)[:, None]
    x[0, 0] = 0.0
    stored, scale = quantise(x, kv_dtype)
    largest = x.abs().amax(-1, keepdim=True)
    assert bool(((dequantise(stored, scale, kv_dtype) - x).abs() <= largest / steps / 2 + 1e-12).all())
    assert float((x.abs() / scale).max()) <= LARGEST[kv_dtype] * (1 + 1e-9)
    bits = {"int8": 8, "int4": 4, "fp8": 8}[kv_dtype]
    cache = QuantisedKv(TINY, 2, 10, CPU, torch.float64, kv_dtype)
    exact = KvCache(TINY, 2, 10, CPU, torch.float64)
    assert cache.nbytes == exact.nbytes * bits // 64 + exact.nbytes // TINY.head_dim, "the numbers and a scale for each vector"
