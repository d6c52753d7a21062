"""Counts compared with three oracles: the FLOP counter of torch, sizes of real tensors, and the mask of the executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from magicdec.costmodel.models.transformer import Operator, TransformerConfig
from magicdec.costmodel.passes.forward import Cost, forward_cost
from magicdec.executor.kv.attention import visible
from magicdec.executor.kv.cache import KvCache
from magicdec.executor.model.transformer import Transformer, attend_causal

MULTI_HEAD = TransformerConfig("multi-head", "llama", 2, 64, 4, 4, 16, 96, 100, 128, dtype="float32")
MODELS = {
    "multi-head": MULTI_HEAD,
    "grouped": replace(MULTI_HEAD, num_kv_heads=2),
    "qwen2 with bias": replace(MULTI_HEAD, family="qwen2", num_kv_heads=1, qkv_bias=True),
    "qwen3 with norms and a wide head": replace(MULTI_HEAD, family="qwen3", num_kv_heads=2, head_dim=32, qk_norm=True),
    "tied": replace(MULTI_HEAD, num_kv_heads=2, tied_embeddings=True, dtype="bfloat16"),
}
OPERATORS: tuple[Operator, ...] = ("projections", "mlp", "head")
ONE_TOKEN = {"batch_size": 1, "query_len": 1, "context_len": 100}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@st.composite
def random_models(draw: st.DrawFn) -> TransformerConfig:
    kv_heads, group, half_head = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 8))
    return TransformerConfig(
        "random",
        "llama",
        num_layers=draw(st.integers(1, 3)),
        d_model=draw(st.integers(1, 40)),
        num_heads=kv_heads * group,
        num_kv_heads=kv_heads,
        head_dim=2 * half_head,
        d_ff=draw(st.integers(1, 50)),
        vocab_size=draw(st.integers(1, 60)),
        max_context_len=64,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        dtype="float32",
    )


def blocks(cost: Cost) -> float:
    """(sequence, KV head) pairs of a model with equal layers."""
    (work,) = cost.attentions
    return float(work.sequences * work.kv_heads)


def on_meta(model: TransformerConfig) -> Transformer:
    with torch.device("meta"):
        decoder = Transformer(model)
        decoder.fill_rope_tables()
    return decoder


def attend_over(cached: int) -> Callable[..., torch.Tensor]:
    """Attention without a mask, because the counter ignores masks."""

    def attend(layer: int, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
        batch, heads, length, width = k_BKTH.shape
        slots_BKSH = torch.empty(batch, heads, cached + length, width, device="meta")
        return F.scaled_dot_product_attention(q_BNTH, slots_BKSH, slots_BKSH, enable_gqa=q_BNTH.shape[1] != heads)

    return attend


def counted_flop(model: TransformerConfig, batch: int, query_len: int, cached: int) -> int:
    """FLOP that torch counts for one pass, logits included."""
    decoder = on_meta(model.with_dtype("float32"))
    tokens_BT = torch.zeros(batch, query_len, dtype=torch.long, device="meta")
    attend = attend_over(cached) if cached else attend_causal
    with FlopCounterMode(display=False) as counter:
        decoder.logits(decoder(tokens_BT, torch.arange(query_len, device="meta")[None], attend))
    return counter.get_total_flops()


def forbidden_flop(model: TransformerConfig, batch: int, query_len: int) -> int:
    """FLOP that torch counts for non-causal pairs."""
    return model.num_layers * batch * query_len * (query_len - 1) // 2 * 4 * model.d_attention


def assert_flop_as_counted(model: TransformerConfig, batch: int, query_len: int, cached: int) -> None:
    counted = counted_flop(model, batch, query_len, cached)
    cost = forward_cost(model, batch_size=batch, query_len=query_len, context_len=cached)
    assert cost.flop == counted - forbidden_flop(model, batch, query_len)
    assert counted > 0


@every_model
def test_prefill_counts_the_flop_that_torch_counts(model: TransformerConfig) -> None:
    assert_flop_as_counted(model, batch=3, query_len=20, cached=0)


@every_model
def test_decoding_counts_the_flop_that_torch_counts(model: TransformerConfig) -> None:
    assert_flop_as_counted(model, batch=3, query_len=1, cached=50)


@every_model
def test_verification_counts_the_flop_that_torch_counts(model: TransformerConfig) -> None:
    assert_flop_as_counted(model, batch=3, query_len=5, cached=50)


@settings(max_examples=15)
@given(random_models(), st.integers(1, 4), st.integers(1, 6), st.integers(0, 40))
def test_any_pass_of_any_model_counts_the_flop_that_torch_counts(
    model: TransformerConfig, batch: int, query_len: int, cached: int
) -> None:
    assert_flop_as_counted(model, batch, query_len, cached)


def test_a_sparse_draft_counts_the_flop_of_the_slots_it_reads() -> None:
    model = MODELS["grouped"]
    cost = forward_cost(model, batch_size=3, query_len=1, context_len=1000, kv_budget=30)
    assert cost.flop == counted_flop(model, 3, 1, 30)


@every_model
def test_weight_bytes_are_those_of_the_tensors(model: TransformerConfig) -> None:
    parameters = list(on_meta(model).parameters())  # a tied head is listed once
    assert model.weight_bytes == sum(p.numel() * p.element_size() for p in parameters)
    assert model.params == sum(p.numel() for p in parameters)


@settings(max_examples=15)
@given(random_models())
def test_any_models_weight_bytes_are_those_of_its_tensors(model: TransformerConfig) -> None:
    assert model.weight_bytes == sum(p.numel() * p.element_size() for p in on_meta(model).parameters())


@every_model
def test_kv_bytes_are_those_of_the_cache(model: TransformerConfig) -> None:
    cache = KvCache(model, 3, 40, torch.device("meta"), getattr(torch, model.dtype))
    assert model.kv_bytes_per_token * 3 * 40 == cache.nbytes


def test_decoding_reads_the_weights_once_and_every_cached_token_once(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=4, query_len=1, context_len=1000)
    without_activations = forward_cost(llama, batch_size=0, query_len=1, context_len=1000)
    read = [without_activations.operator(name).bytes for name in OPERATORS]
    norms = (2 * llama.num_layers + 1) * llama.d_model
    assert sum(read) == llama.weight_bytes - 2 * (llama.embedding_params + norms)
    assert cost.attention.bytes == 4 * 1001 * llama.kv_bytes_per_token


def test_verification_reads_the_cache_once_for_all_its_queries(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=4, query_len=6, context_len=1000)
    assert cost.attention.bytes == 4 * 1006 * llama.kv_bytes_per_token
    assert cost.attentions[0].query_rows == 6 * 4


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(("query_len", "context_len"), [(1, 4), (1, 100), (5, 0), (5, 5), (5, 100), (20, 0), (20, 3)])
def test_attention_counts_the_pairs_that_the_executor_lets_queries_see(
    window: int | None, query_len: int, context_len: int
) -> None:
    model = replace(MODELS["grouped"], sliding_window=window)
    seen = visible(torch.arange(context_len, context_len + query_len), torch.arange(context_len + query_len), window)
    pairs, slots = int(seen.sum()), int(seen.any(0).sum())
    cost = forward_cost(model, batch_size=1, query_len=query_len, context_len=context_len)
    assert cost.attention.flop == pairs * 4 * model.d_attention * model.num_layers
    assert cost.attentions[0].read_len == slots


def test_a_sliding_window_caps_what_is_read() -> None:
    model = replace(MODELS["grouped"], sliding_window=64)
    short, long, longer = (forward_cost(model, batch_size=2, query_len=1, context_len=s) for s in (10, 1000, 100_000))
    assert short.attentions[0].read_len == 11
    assert 64 <= long.attentions[0].read_len <= 65
    assert longer.attentions[0].read_len == long.attentions[0].read_len
    assert longer.attention.bytes == long.attention.bytes


def same(one: Cost, other: Cost) -> bool:
    return bool(one.flop == other.flop and one.bytes == other.bytes and one.attentions[0].read_len == other.attentions[0].read_len)


@given(st.integers(1, 100), st.integers(1, 10), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_budget_beyond_the_context_reads_everything(batch: int, query_len: int, context: int, beyond: int) -> None:
    shape = {"batch_size": batch, "query_len": query_len, "context_len": context}
    assert same(forward_cost(MULTI_HEAD, **shape, kv_budget=context + beyond), forward_cost(MULTI_HEAD, **shape))


def test_a_budget_caps_what_is_read(llama: TransformerConfig) -> None:
    sparse = forward_cost(llama, batch_size=2, query_len=1, context_len=[100, 512, 32_000], kv_budget=512)
    assert sparse.attentions[0].read_len.tolist() == [101, 513, 513]


def test_only_the_logits_that_are_wanted_cost_something(llama: TransformerConfig) -> None:
    every = forward_cost(llama, batch_size=2, query_len=100, context_len=0)
    last = forward_cost(llama, batch_size=2, query_len=100, context_len=0, logits_len=1)
    assert last.operator("head").flop * 100 == every.operator("head").flop
    assert last.operator("mlp").flop == every.operator("mlp").flop
    assert last.logits_bytes * 100 == every.logits_bytes


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_tensor_parallelism_divides_the_matrices(llama: TransformerConfig, gpus: int) -> None:
    whole = forward_cost(llama, batch_size=8, query_len=3, context_len=1000)
    part = forward_cost(llama, batch_size=8, query_len=3, context_len=1000, tensor_parallel=gpus)
    for one, other in [(part.operator(name), whole.operator(name)) for name in OPERATORS] + [(part.attention, whole.attention)]:
        assert one.flop == pytest.approx(other.flop / gpus, rel=1e-15)
    assert part.attention.bytes == pytest.approx(whole.attention.bytes / gpus, rel=1e-15)
    for one, other in zip(part.products, whole.products, strict=True):
        rows, element = 8 * 3, 2
        kept = one.matrix.inputs if one.matrix.name in ("qkv", "gate_up", "head") else one.matrix.outputs
        not_shared = rows * kept * one.matrix.layers * element  # inputs of what splits its outputs, and the other way round
        assert one.bytes - not_shared == pytest.approx((other.bytes - not_shared) / gpus, rel=1e-12)
    assert blocks(part) == blocks(whole) / gpus
    assert part.elementwise.bytes == whole.elementwise.bytes
    assert (whole.num_allreduces, part.num_allreduces) == (0, 64)
    assert part.allreduce_bytes == 8 * 3 * 4096 * 2


def test_a_head_that_is_not_sharded_is_read_whole(llama: TransformerConfig) -> None:
    whole = forward_cost(llama, batch_size=8, query_len=1, context_len=1000)
    part = forward_cost(llama, batch_size=8, query_len=1, context_len=1000, tensor_parallel=8, head_sharded=False)
    assert part.operator("head").bytes == whole.operator("head").bytes
    assert part.logits_bytes == whole.logits_bytes
    assert part.operator("mlp").flop == whole.operator("mlp").flop / 8


def test_kv_heads_are_replicated_on_more_gpus_than_there_are(tinyllama: TransformerConfig) -> None:
    assert tinyllama.num_kv_heads == 4
    four = forward_cost(tinyllama, batch_size=8, query_len=1, context_len=1000, tensor_parallel=4)
    eight = forward_cost(tinyllama, batch_size=8, query_len=1, context_len=1000, tensor_parallel=8)
    assert eight.attention.bytes == four.attention.bytes
    assert blocks(eight) == blocks(four) == 8
    assert eight.attention.flop == four.attention.flop / 2


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
def test_rows_and_blocks_of_a_gpu_cover_its_share_of_the_queries(tinyllama: TransformerConfig, gpus: int) -> None:
    cost = forward_cost(tinyllama, batch_size=3, query_len=5, context_len=1000, tensor_parallel=gpus)
    assert cost.attentions[0].query_rows * blocks(cost) == 3 * 5 * tinyllama.num_heads / gpus


def test_every_count_broadcasts_over_the_pass_shapes(llama: TransformerConfig) -> None:
    batches, queries, contexts = np.array([1, 7])[:, None, None], np.array([1, 2, 5])[:, None], np.array([10, 1000, 5000, 9])
    grid = forward_cost(llama, batch_size=batches, query_len=queries, context_len=contexts, kv_budget=600)
    assert grid.flop.shape == grid.bytes.shape == (2, 3, 4)
    for i, j, k in np.ndindex(2, 3, 4):
        point = forward_cost(llama, batch_size=batches[i, 0, 0], query_len=queries[j, 0], context_len=contexts[k], kv_budget=600)
        assert point.flop == grid.flop[i, j, k]
        assert point.bytes == grid.bytes[i, j, k]
        assert point.arithmetic_intensity == grid.arithmetic_intensity[i, j, k]


def test_a_class_is_missing_from_no_total(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=2, query_len=2, context_len=100)
    classes = [*(cost.operator(name) for name in OPERATORS), cost.attention, cost.elementwise]
    assert cost.bytes == pytest.approx(sum(work.bytes for work in classes) + cost.logits_bytes, rel=1e-15)
    assert cost.flop == pytest.approx(sum(work.flop for work in classes), rel=1e-15)
    assert min(float(work.bytes) for work in classes) > 0


def test_every_product_belongs_to_a_class_of_operators(llama: TransformerConfig) -> None:
    names = {products.matrix.name: products.matrix.operator for products in forward_cost(llama, **ONE_TOKEN).products}
    assert names == {"qkv": "projections", "o": "projections", "gate_up": "mlp", "down": "mlp", "head": "head"}


def test_a_product_reads_its_weights_once_and_its_activations_in_and_out(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=5, query_len=3, context_len=7)
    down = next(products for products in cost.products if products.matrix.name == "down")
    assert down.flop == 32 * 2 * 15 * 14336 * 4096
    assert down.bytes == 32 * 2 * (14336 * 4096 + 15 * (14336 + 4096))


def test_logits_are_four_bytes_each(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=5, query_len=3, context_len=7, tensor_parallel=2)
    assert cost.logits_bytes == 15 * llama.vocab_size / 2 * 4
