"""Counts for experts, latent attention and sliding windows, compared with simulation, einsums and masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import active_params, gpus_for, models, pass_shapes
from torch.utils.flop_counter import FlopCounterMode

from magicdec.costmodel.kernels.gemm import padded_rows
from magicdec.costmodel.models.architecture import Experts, LatentAttention
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import BYTES_PER_ELEMENT, TransformerConfig
from magicdec.costmodel.passes.forward import ROUTING_EXPONENT, SAME_SEQUENCE, Cost, experts_touched, forward_cost
from magicdec.executor.kv.attention import visible

DENSE = TransformerConfig("dense", "llama", 4, 48, 6, 2, 16, 80, 101, 4096, dtype="bfloat16")
MIXED = replace(DENSE, experts=Experts(8, 2, 20, d_ff_shared=40, num_dense_layers=1), expert_dtype="fp8")
LATENT = replace(DENSE, num_kv_heads=6, head_dim=20, latent=LatentAttention(24, 8, 12, 10, 28))
SLIDING = replace(DENSE, sliding_window=8, num_window_layers=3)


def by_name(cost: Cost) -> dict[str, Any]:
    return {products.matrix.name: products for products in cost.products}


# Experts


@pytest.mark.parametrize(("num_experts", "per_token"), [(8, 2), (128, 8), (256, 8), (4, 4), (32, 4)])
@pytest.mark.parametrize("tokens", [1, 7, 150])
def test_as_many_experts_are_touched_as_when_tokens_choose_at_random(num_experts: int, per_token: int, tokens: int) -> None:
    random, trials = np.random.default_rng(0), 400
    hit = np.zeros((trials, num_experts), dtype=bool)
    for _ in range(tokens):
        chosen = random.random((trials, num_experts)).argpartition(per_token - 1, axis=1)[:, :per_token]
        np.put_along_axis(hit, chosen, True, axis=1)
    touched = hit.sum(axis=1)
    sampling_error = touched.std() / np.sqrt(trials)
    assert float(experts_touched(tokens, num_experts, per_token)) == pytest.approx(touched.mean(), abs=4 * sampling_error + 0.01)


def test_a_further_token_of_a_sequence_meets_fewer_new_experts_than_one_of_another() -> None:
    model = resolve_model("Qwen3-30B-A3B")

    def touched(batch_size: int, query_len: int) -> float:
        cost = forward_cost(model, batch_size=batch_size, query_len=query_len, context_len=100)
        return float(by_name(cost)["expert_down"].copies)

    assert touched(1, 1) < touched(1, 4) < touched(4, 1)
    assert touched(1, 4096) == pytest.approx(128, rel=0.01)


@given(st.integers(1, 256), st.integers(1, 8), st.integers(0, 100_000))
def test_experts_touched_lie_between_those_of_one_token_and_all(num_experts: int, per_token: int, tokens: int) -> None:
    per_token = min(num_experts, per_token)
    touched = float(experts_touched(tokens, num_experts, per_token))
    assert float(experts_touched(0, num_experts, per_token)) == 0
    assert float(experts_touched(1, num_experts, per_token)) == pytest.approx(per_token, rel=1e-12)
    assert float(experts_touched(1e9, num_experts, per_token)) == num_experts
    assert touched <= min(num_experts, tokens * per_token) * (1 + 1e-12)
    assert touched <= float(experts_touched(tokens + 1, num_experts, per_token)) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["Mixtral-8x7B", "Qwen3-30B-A3B", "Qwen3-235B-A22B", "DeepSeek-V3", "gpt-oss-20b", "gpt-oss-120b"])
def test_a_token_alone_is_one_row_of_each_of_its_experts(name: str) -> None:
    products = by_name(forward_cost(resolve_model(name), batch_size=1, query_len=1, context_len=10))["expert_down"]
    assert products.rows == 1
    assert products.copies == products.matrix.used


def test_a_token_alone_fills_one_row_whatever_the_number_of_experts() -> None:
    rows = []
    for num_experts, per_token in ((160, 6), (384, 8), (60, 4), (48, 5), (72, 7)):
        model = replace(MIXED, experts=Experts(num_experts, per_token, 20))
        products = by_name(forward_cost(model, batch_size=1, query_len=1, context_len=10))["expert_down"]
        rows.append(float(padded_rows(products.rows, 64)))
    assert rows == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(("batch", "query_len"), [(1, 1), (3, 5), (200, 1)])
def test_a_mixture_multiplies_each_token_with_its_experts_and_reads_those_that_are_touched(batch: int, query_len: int) -> None:
    cost = by_name(forward_cost(MIXED, batch_size=batch, query_len=query_len, context_len=10))
    tokens = batch * query_len
    touched = 8 * (1 - (6 / 8) ** ((batch * (1 + SAME_SEQUENCE * (query_len - 1))) ** ROUTING_EXPONENT))
    down, gate_up = cost["expert_down"], cost["expert_gate_up"]
    assert down.flop == pytest.approx(3 * 2 * tokens * 2 * 20 * 48)
    assert gate_up.flop == 2 * down.flop
    assert down.bytes == pytest.approx(3 * (touched * 20 * 48 * 1 + tokens * 2 * (20 + 48) * 2))
    assert cost["router"].flop == 3 * 2 * tokens * 8 * 48
    assert cost["router"].bytes == 3 * 2 * (8 * 48 + tokens * (8 + 48))
    assert cost["shared_down"].flop == 3 * 2 * tokens * 40 * 48
    assert cost["down"].flop == 1 * 2 * tokens * 80 * 48


def test_one_token_reads_the_weights_that_are_active(deepseek: TransformerConfig) -> None:
    """Except norms and the embedding, of which one row is read."""
    model = deepseek.with_dtype("bfloat16")
    cost = forward_cost(model, batch_size=1, query_len=1, context_len=0)
    activations = sum(p.matrix.layers * p.copies * p.rows * (p.matrix.outputs + p.matrix.inputs) * 2 for p in cost.products)
    read = sum(products.bytes for products in cost.products) - activations
    norms = model.num_layers * (2 * model.d_model + 512 + 1536) + model.d_model
    assert float(read) == pytest.approx(2 * (active_params(model) - model.embedding_params - norms), rel=1e-12)


def test_a_large_batch_reads_every_expert_once(deepseek: TransformerConfig) -> None:
    cost = by_name(forward_cost(deepseek, batch_size=100_000, query_len=1, context_len=0))
    assert cost["expert_down"].copies == 256
    assert cost["expert_down"].rows == pytest.approx(100_000 * 8 / 256)


def test_gpus_share_every_expert_but_not_the_router() -> None:
    whole, part = (by_name(forward_cost(MIXED, batch_size=3, query_len=2, context_len=10, tensor_parallel=gpus)) for gpus in (1, 2))
    for name in ("expert_gate_up", "expert_down", "shared_gate_up", "shared_down", "gate_up", "down"):
        assert part[name].flop == whole[name].flop / 2, name
        assert part[name].copies == whole[name].copies
    assert part["router"].flop == whole["router"].flop


def test_layers_that_route_tokens_are_counted() -> None:
    shape = {"batch_size": 1, "query_len": 1, "context_len": 0}
    assert (forward_cost(MIXED, **shape).num_layers, forward_cost(MIXED, **shape).num_expert_layers) == (4, 3)
    assert forward_cost(DENSE, **shape).num_expert_layers == 0


@given(models(("experts",)), pass_shapes())
def test_more_experts_of_the_same_width_are_more_traffic_and_not_more_arithmetic(
    model: TransformerConfig, shape: dict[str, Any]
) -> None:
    assert model.experts is not None
    few = replace(model.experts, num_experts=model.experts.num_experts)
    many = replace(model, experts=replace(few, num_experts=2 * few.num_experts))
    one, other = by_name(forward_cost(model, **shape)), by_name(forward_cost(many, **shape))
    for name in ("expert_gate_up", "expert_down"):
        assert float(other[name].flop) == pytest.approx(float(one[name].flop), rel=1e-9)
        assert float(other[name].bytes) >= float(one[name].bytes) * (1 - 1e-9)


# Latent attention


def einsum_flop(model: TransformerConfig, batch: int, query_len: int, cached: int, *, absorbed: bool) -> int:
    """FLOP of one layer of latent attention counted by torch: in the latent space, or with every entry expanded.

    Shapes: B batch, T new tokens, S all entries, D model, N heads, R rank, P rope, A nope, V value width.
    """
    latent = model.latent
    assert latent is not None
    new, entries, heads = query_len, cached + query_len, model.num_heads
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x_BTD = torch.empty(batch, new, model.d_model)
        q_width = heads * (latent.nope_dim + latent.rope_dim)
        query_inputs = x_BTD
        if latent.q_rank is not None:
            query_inputs = x_BTD @ torch.empty(model.d_model, latent.q_rank)
        q_BTNH = (query_inputs @ torch.empty(query_inputs.shape[-1], q_width)).view(batch, new, heads, -1)
        q_BTNA, q_BTNP = q_BTNH.split([latent.nope_dim, latent.rope_dim], dim=-1)
        x_BTD @ torch.empty(model.d_model, latent.cached_width)
        c_BSR, k_BSP = torch.empty(batch, entries, latent.kv_rank), torch.empty(batch, entries, latent.rope_dim)
        up_NAR, up_NVR = (torch.empty(heads, width, latent.kv_rank) for width in (latent.nope_dim, latent.value_dim))
        if absorbed:
            q_BTNR = torch.einsum("btna,nar->btnr", q_BTNA, up_NAR)
            scores_BNTS = torch.einsum("btnr,bsr->bnts", q_BTNR, c_BSR) + torch.einsum("btnp,bsp->bnts", q_BTNP, k_BSP)
            o_BTNR = torch.einsum("bnts,bsr->btnr", scores_BNTS, c_BSR)
            o_BTNV = torch.einsum("btnr,nvr->btnv", o_BTNR, up_NVR)
        else:
            k_BSNA, v_BSNV = (torch.einsum("bsr,nar->bsna", c_BSR, up) for up in (up_NAR, up_NVR))
            k_BSNH = torch.cat([k_BSNA, k_BSP[:, :, None].expand(-1, -1, heads, -1)], dim=-1)
            scores_BNTS = torch.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH)
            o_BTNV = torch.einsum("bnts,bsnv->btnv", scores_BNTS, v_BSNV)
        o_BTNV.flatten(2) @ torch.empty(heads * latent.value_dim, model.d_model)
    pair = 2 * heads * (2 * latent.kv_rank + latent.rope_dim if absorbed else model.head_dim + latent.value_dim)
    return counter.get_total_flops() - batch * new * (new - 1) // 2 * pair


@pytest.mark.parametrize("q_rank", [28, None])
@pytest.mark.parametrize(
    ("batch", "query_len", "cached"),
    [(3, 1, 50), (3, 5, 50), (2, 1, 1), (2, 2, 0), (2, 9, 3), (1, 60, 0), (2, 40, 40), (1, 200, 3000)],
)
def test_latent_attention_counts_the_cheaper_of_two_ways(q_rank: int | None, batch: int, query_len: int, cached: int) -> None:
    assert LATENT.latent is not None
    model = replace(LATENT, latent=replace(LATENT.latent, q_rank=q_rank))
    cost = forward_cost(model, batch_size=batch, query_len=query_len, context_len=cached)
    ways = [einsum_flop(model, batch, query_len, cached, absorbed=absorbed) for absorbed in (True, False)]
    assert cost.operator("projections").flop + cost.attention.flop == model.num_layers * min(ways)


def test_decoding_deepseek_is_absorbed_and_reading_a_prompt_is_expanded(deepseek: TransformerConfig) -> None:
    for query_len, cached, absorbed in ((1, 32_000, True), (4, 32_000, True), (4096, 0, False), (4096, 32_000, False)):
        cost = forward_cost(deepseek, batch_size=1, query_len=query_len, context_len=cached)
        reference = einsum_flop(deepseek, 1, query_len, cached, absorbed=absorbed)
        assert cost.operator("projections").flop + cost.attention.flop == 61 * reference


def test_a_latent_cache_is_read_once_for_all_heads_by_every_gpu(deepseek: TransformerConfig) -> None:
    for gpus in (1, 8):
        cost = forward_cost(deepseek, batch_size=3, query_len=2, context_len=1000, tensor_parallel=gpus)
        assert cost.attention.bytes == 61 * 3 * 1002 * 576 * 2
        (work,) = cost.attentions
        assert work.kv_heads == 1
        assert work.query_rows == 2 * 128 / gpus


@given(models(("latent",)), pass_shapes())
def test_no_way_of_latent_attention_beats_the_counted_one(model: TransformerConfig, shape: dict[str, Any]) -> None:
    """Nor does a GPU's share: both ways divide alike."""
    for gpus in gpus_for(model):
        cost = forward_cost(model, **shape, tensor_parallel=gpus)
        one = forward_cost(model, **shape)
        assert float(cost.attention.flop) == pytest.approx(float(one.attention.flop) / gpus, rel=1e-12)
        assert float(by_name(cost)["kv_up"].flop) == pytest.approx(float(by_name(one)["kv_up"].flop) / gpus, rel=1e-12)


# Sliding layers


@pytest.mark.parametrize(
    ("query_len", "context_len"), [(1, 0), (1, 4), (1, 7), (1, 8), (1, 100), (5, 0), (5, 5), (5, 100), (20, 3)]
)
@pytest.mark.parametrize("windowed", [1, 3, 4])
def test_each_reach_counts_the_pairs_and_entries_of_its_mask(windowed: int, query_len: int, context_len: int) -> None:
    model = replace(DENSE, sliding_window=8, num_window_layers=windowed)
    cost = forward_cost(model, batch_size=3, query_len=query_len, context_len=context_len)
    new, slots = torch.arange(context_len, context_len + query_len), torch.arange(context_len + query_len)
    assert len(cost.attentions) == len(model.attention_windows) == (1 if windowed == 4 else 2)
    for work, (layers, window) in zip(cost.attentions, model.attention_windows, strict=True):
        seen = visible(new, slots, window)
        assert work.layers == layers
        assert work.flop == layers * 3 * int(seen.sum()) * 4 * model.d_attention
        assert work.read_len == int(seen.any(0).sum())
        assert work.bytes == layers * 3 * int(seen.any(0).sum()) * 2 * model.d_kv * 2
    assert cost.attention.flop == sum(work.flop for work in cost.attentions)


def test_a_window_wider_than_the_context_is_none() -> None:
    shape = {"batch_size": 2, "query_len": 3, "context_len": 50}
    wide, none = forward_cost(replace(SLIDING, sliding_window=53), **shape), forward_cost(DENSE, **shape)
    assert wide.flop == none.flop
    assert wide.bytes == none.bytes


def test_a_budget_below_the_window_caps_sliding_layers_too() -> None:
    cost = forward_cost(SLIDING, batch_size=2, query_len=1, context_len=1000, kv_budget=[4, 100])
    assert [work.read_len.tolist() for work in cost.attentions] == [[5, 101], [5, 8]]


def test_published_sliding_models_read_little_at_long_contexts(gemma: TransformerConfig, gpt_oss: TransformerConfig) -> None:
    for model, full, window in ((gemma, 10, 1024), (gpt_oss, 12, 128)):
        cost = forward_cost(model, batch_size=1, query_len=1, context_len=100_000)
        entries = full * 100_001 + (model.num_layers - full) * window
        assert cost.attention.bytes == entries * 2 * model.d_kv * 2


# All of them


@given(models(), pass_shapes())
def test_one_more_sequence_token_or_entry_never_counts_less(model: TransformerConfig, shape: dict[str, Any]) -> None:
    before = forward_cost(model, **shape)
    for key in ("batch_size", "query_len", "context_len"):
        after = forward_cost(model, **{**shape, key: shape[key] + 1})
        assert float(after.flop) >= float(before.flop) * (1 - 1e-12), key
        if model.latent is None:  # which may begin to expand
            assert float(after.bytes) >= float(before.bytes) * (1 - 1e-12), key


@given(models(), pass_shapes())
def test_a_budget_beyond_the_context_reads_everything_in_any_model(model: TransformerConfig, shape: dict[str, Any]) -> None:
    shape["kv_budget"] = shape["context_len"] + 1
    capped, whole = forward_cost(model, **shape), forward_cost(model, **{**shape, "kv_budget": np.inf})
    assert (capped.flop, capped.bytes) == (whole.flop, whole.bytes)


@given(models(), pass_shapes())
def test_every_weight_is_read_at_most_once(model: TransformerConfig, shape: dict[str, Any]) -> None:
    for products in forward_cost(model, **shape).products:
        m = products.matrix
        activations = m.layers * products.copies * products.rows * (m.outputs + m.inputs) * model.bytes_per_element
        read = float(products.bytes - activations)
        assert read <= m.bytes * (1 + 1e-9)
        assert read >= m.used / m.experts * m.layers * m.experts * m.outputs * m.inputs * BYTES_PER_ELEMENT[m.dtype] * (1 - 1e-6)
