"""Drafts: network of a draft step, cost of selecting KV entries (T_select), and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import gpus_for, models

from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import DRAFT_KINDS, KV_POLICIES, Strategy
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.costmodel.speculation.drafts import (
    EAGLE3_VOCABULARY,
    NO_DRAFT,
    Draft,
    draft_memory,
    index_bytes_per_entry,
    kv_bytes_per_gpu,
    prediction_head,
    select_kernels,
    selection_work,
    selects_at_every_step,
)

EVERY_STEP = ("topk", "quest", "pq")


def taken(draft: Draft, target: TransformerConfig, **changes: Any) -> tuple[float, float]:
    """KV and index of one sequence, and weights. [bytes]"""
    question: dict[str, Any] = {"max_context_len": 8000, "kv_budget": 512, "gamma": 4, "tensor_parallel": 1, **changes}
    arrays = {name: np.asarray(value, np.float64) for name, value in question.items() if name != "tensor_parallel"}
    kv, weights = draft_memory(draft, target, **arrays, tensor_parallel=question["tensor_parallel"])
    return float(kv), float(weights)


# Networks


def test_what_no_network_drafts_passes_through_none(llama: TransformerConfig) -> None:
    assert NO_DRAFT.network(llama) is None
    assert Draft("ngram").network(llama) is None
    assert not NO_DRAFT.drafts
    assert Draft("ngram").drafts


def test_a_self_draft_is_the_target_and_a_compressed_one_the_target_compressed(llama: TransformerConfig) -> None:
    assert Draft("self", "streaming_llm").network(llama) == llama
    small = Draft("self", kv_dtype="int4", weight_dtype="fp8").network(llama)
    assert small == llama.compressed(weight_dtype="fp8", kv_dtype="int4")
    assert Draft("model", "full", resolve_model("Llama-3.2-1B")).network(llama) == resolve_model("Llama-3.2-1B")


def test_a_prediction_head_is_one_layer_of_the_target(llama: TransformerConfig) -> None:
    eagle, mtp = prediction_head(llama, "eagle3"), prediction_head(llama, "mtp")
    assert eagle.num_layers == mtp.num_layers == 1
    assert (eagle.vocab_size, mtp.vocab_size) == (EAGLE3_VOCABULARY, llama.vocab_size)
    layer = (llama.params - 2 * llama.embedding_params - llama.d_model) / 32
    assert mtp.params == layer + llama.embedding_params + llama.d_model
    assert eagle.params == layer + EAGLE3_VOCABULARY * llama.d_model + llama.d_model
    assert {eagle.kv_bytes_per_token, mtp.kv_bytes_per_token} == {llama.kv_bytes_per_token / 32}
    assert prediction_head(replace(llama, vocab_size=100), "eagle3").vocab_size == 100


def test_the_head_of_deepseek_is_a_layer_with_experts_and_its_published_size(deepseek: TransformerConfig) -> None:
    """arXiv 2412.19437 counts 14 B with the module: 11.5 B of the layer, the shared embedding and head, and a projection."""
    mtp = prediction_head(deepseek, "mtp")
    assert mtp.experts is not None
    assert mtp.experts.num_dense_layers == 0
    assert mtp.params - mtp.embedding_params == pytest.approx(11.5e9, rel=0.01)
    assert prediction_head(deepseek, "eagle3").experts is None
    assert mtp.kv_bytes_per_token == deepseek.kv_bytes_per_token / 61


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mistral-7B-v0.1", "Mixtral-8x7B", "DeepSeek-V3", "Gemma-3-27B", "gpt-oss-20b"])
@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_the_one_layer_of_a_prediction_head_reaches_somewhere(name: str, kind: Any) -> None:
    head = prediction_head(resolve_model(name), kind)
    assert [layers for layers, _ in head.attention_windows] == [1]
    assert 0 < float(kv_bytes_per_gpu(head, 5000, 1)) <= 5000 * head.kv_bytes_per_token


@given(models(("dense", "sliding", "experts", "latent")), st.sampled_from(["eagle3", "mtp"]))
def test_a_prediction_head_is_smaller_than_its_target(model: TransformerConfig, kind: Any) -> None:
    head = prediction_head(model, kind)
    assert head.params - head.embedding_params <= model.params - model.embedding_params
    assert head.kv_bytes_per_token == pytest.approx(model.kv_bytes_per_token / model.num_layers)


# GPUs


def test_a_small_draft_runs_on_as_many_gpus_as_it_has_kv_heads(tinyllama: TransformerConfig, llama: TransformerConfig) -> None:
    assert [Draft("model", "full", tinyllama).gpus(gpus) for gpus in (1, 2, 4, 8)] == [1, 2, 4, 4]
    assert [Draft("model", "full", llama).gpus(gpus) for gpus in (4, 8, 16)] == [4, 8, 8]
    assert Draft("model", "full", tinyllama, tensor_parallel=1).gpus(8) == 1
    assert [Draft(kind).gpus(8) for kind in ("none", "ngram", "eagle3", "mtp")] == [8, 8, 8, 8]
    assert Draft("self", "streaming_llm").gpus(8) == 8


# Strategies


def test_a_draft_names_its_strategy(llama: TransformerConfig, small_llama: TransformerConfig) -> None:
    assert Draft("self", "quest", kv_dtype="int4").strategy(3, 512.0) == Strategy("self", "quest", 512, 3, kv_dtype="int4")
    assert Draft("model", "full", small_llama).strategy(2, np.inf) == Strategy("model", "full", None, 2, "Llama-3.2-1B")
    assert Draft("ngram").strategy(2, np.inf) == Strategy("ngram", gamma=2)
    assert Draft("self", weight_dtype="int8").strategy(2, np.inf).reads_less_than_target


# T_select


def test_policies_that_know_their_entries_select_nothing(llama: TransformerConfig) -> None:
    for policy in KV_POLICIES:
        work = selection_work(policy, llama, batch_size=[1, 8], context_len=32_000)
        selects = policy in EVERY_STEP
        assert selects_at_every_step(policy) == selects
        assert select_kernels(policy) == (2 if selects else 0)
        assert work.flop.shape == work.bytes.shape == (2,)
        assert (work.bytes > 0).all() == (work.flop > 0).all() == selects


def test_top_k_looks_at_every_key_and_writes_and_reads_its_score(llama: TransformerConfig) -> None:
    work = selection_work("topk", llama, batch_size=4, context_len=1000)
    keys = 4 * 1000 * llama.kv_bytes_per_token / 2
    scores = 4 * 1000 * 32 * 8 * 3 * 4  # layers, KV heads, passes, float32
    assert work.bytes == keys + scores
    assert work.flop == 4 * 1000 * 32 * 2 * 4096


def test_quest_looks_at_the_bounds_of_pages_of_sixteen_and_pq_at_sixteen_bytes(llama: TransformerConfig) -> None:
    quest = selection_work("quest", llama, batch_size=4, context_len=1000)
    assert quest.bytes == 4 * 1000 / 16 * (llama.kv_bytes_per_token + 32 * 8 * 3 * 4)
    assert quest.flop == 4 * 1000 / 16 * 32 * 2 * 2 * 4096
    pq = selection_work("pq", llama, batch_size=4, context_len=1000)
    assert pq.bytes == 4 * 1000 * 32 * 8 * (16 + 3 * 4)
    ((kind, _),) = llama.attentions
    assert index_bytes_per_entry("quest", kind, 2, 1) == llama.kv_bytes_per_token / 32 / 16
    assert index_bytes_per_entry("pq", kind, 2, 1) == 8 * 16
    assert {index_bytes_per_entry(policy, kind, 2, 1) for policy in ("full", "streaming_llm", "snapkv", "topk")} == {0}


def test_a_cheaper_index_is_cheaper_to_choose_from(llama: TransformerConfig, a100: HardwareProfile) -> None:
    deployment = Deployment(llama, a100, 8, 8)
    batch, context = np.array(64.0), np.array([8000.0, 64_000.0])
    costs = {policy: deployment.select_s(Draft("self", policy), batch, context, llama, 8) for policy in KV_POLICIES}
    assert not costs["streaming_llm"].any()
    assert not costs["snapkv"].any()
    assert not costs["full"].any()
    assert (costs["pq"] > 0).all()
    assert (costs["pq"] < costs["quest"]).all(), "16 bytes of codes, against two keys of 256 bytes for 16 tokens"
    assert (costs["quest"] < costs["topk"]).all()
    assert (costs["topk"][1] < deployment.pass_time(64, 1, 64_000).kv_s).all(), "keys alone are half of what a pass reads"


@given(models(), st.sampled_from(EVERY_STEP), st.integers(1, 512), st.integers(1, 200_000))
def test_choosing_grows_with_sequences_and_context_and_never_reads_more_than_all_and_its_scores(
    model: TransformerConfig, policy: Any, batch: int, context: int
) -> None:
    for gpus in gpus_for(model):
        work = selection_work(policy, model, batch_size=batch, context_len=context, tensor_parallel=gpus)
        more = selection_work(policy, model, batch_size=batch + 1, context_len=context + 1, tensor_parallel=gpus)
        assert 0 < float(work.bytes) < float(more.bytes)
        assert 0 < float(work.flop) < float(more.flop)
        scores = batch * context * model.num_layers * model.kv_heads_per_gpu(gpus) * (12 + 16)
        assert float(work.bytes) <= batch * float(kv_bytes_per_gpu(replace(model, sliding_window=None), context, gpus)) + scores


def test_layers_that_slide_are_searched_no_further_than_their_window(gpt_oss: TransformerConfig) -> None:
    short, long = (selection_work("topk", gpt_oss, batch_size=1, context_len=context) for context in (10_000, 100_000))
    full_layers = 12 / 24
    assert float(long.bytes - short.bytes) == pytest.approx(
        full_layers * 90_000 * (gpt_oss.kv_bytes_per_token / 2 + 24 * 8 * 12), rel=0.01
    )


def test_the_key_of_a_latent_entry_is_all_of_it(deepseek: TransformerConfig) -> None:
    """Scores in the latent space are products with 512 + 64 elements for each head."""
    work = selection_work("topk", deepseek, batch_size=1, context_len=1000)
    assert work.bytes >= 61 * 1000 * 576 * 2
    assert work.flop == 61 * 1000 * 2 * 128 * 576


def test_scores_and_keys_split_over_the_gpus(llama: TransformerConfig) -> None:
    for policy in EVERY_STEP:
        one, eight = (selection_work(policy, llama, batch_size=4, context_len=1000, tensor_parallel=gpus) for gpus in (1, 8))
        assert (eight.flop, eight.bytes) == (one.flop / 8, one.bytes / 8)


# Memory


def test_what_drafts_without_a_network_takes_no_memory(llama: TransformerConfig) -> None:
    assert taken(NO_DRAFT, llama) == taken(Draft("ngram"), llama) == (0, 0)


@pytest.mark.parametrize("policy", ["streaming_llm", "snapkv"])
def test_a_policy_that_knows_its_entries_keeps_a_compact_copy_of_them(llama: TransformerConfig, policy: Any) -> None:
    assert taken(Draft("self", policy), llama) == ((512 + 4) * 131_072, 0)
    assert taken(Draft("self", policy), llama, max_context_len=100) == ((100 + 4) * 131_072, 0)


def test_a_policy_that_chooses_at_every_step_reads_the_targets_own_entries_and_keeps_its_index(llama: TransformerConfig) -> None:
    assert taken(Draft("self", "topk"), llama) == (0, 0)
    assert taken(Draft("self", "quest"), llama) == (8000 * 131_072 / 16, 0)
    assert taken(Draft("self", "pq"), llama) == (8000 * 32 * 8 * 16, 0)


def test_a_compressed_self_draft_keeps_compressed_copies(llama: TransformerConfig) -> None:
    *layers, _ = llama.matrices()
    elements = sum(matrix.params for matrix in layers)
    assert taken(Draft("self", kv_dtype="int8"), llama, kv_budget=np.inf) == ((8000 + 4) * 65_536, 0)
    assert taken(Draft("self", "topk", kv_dtype="int8"), llama) == ((512 + 4) * 65_536, 0)
    assert taken(Draft("self", weight_dtype="int8", kv_dtype="int8"), llama, kv_budget=np.inf)[1] == elements
    assert taken(Draft("self", weight_dtype="int4"), llama, kv_budget=np.inf)[1] == elements * (0.5 + 2 / 128)
    assert taken(Draft("self", weight_dtype="int8"), llama, tensor_parallel=8)[1] == elements / 8


def test_a_small_draft_brings_its_weights_and_a_cache_of_what_it_may_read(
    llama: TransformerConfig, small_llama: TransformerConfig
) -> None:
    token, weights = small_llama.kv_bytes_per_token, small_llama.weight_bytes
    assert taken(Draft("model", "full", small_llama), llama, kv_budget=np.inf) == ((8000 + 4) * token, weights)
    assert taken(Draft("model", "streaming_llm", small_llama), llama) == ((512 + 4) * token, weights)
    assert taken(Draft("model", "topk", small_llama), llama) == ((8000 + 4) * token, weights), "any entry may be chosen"
    assert taken(Draft("model", "quest", small_llama), llama) == ((8000 + 4 + 500) * token, weights)
    kv, held = taken(Draft("model", "full", small_llama), llama, kv_budget=np.inf, tensor_parallel=8)
    assert kv == (8000 + 4) * token / 8
    assert held == small_llama.weight_bytes_per_gpu(8)


def test_a_prediction_head_brings_a_layer_and_its_cache(llama: TransformerConfig) -> None:
    layer = (llama.params - 2 * llama.embedding_params - llama.d_model) / 32 + llama.d_model
    kv, mtp = taken(Draft("mtp"), llama, kv_budget=np.inf)
    assert kv == (8000 + 4) * 131_072 / 32
    assert mtp == 2 * layer, "embedding and LM head are the target's own"
    assert taken(Draft("eagle3"), llama, kv_budget=np.inf) == (kv, 2 * (layer + EAGLE3_VOCABULARY * llama.d_model))


@given(models(), models(), st.sampled_from(KV_POLICIES), st.integers(1, 100_000), st.integers(1, 8192), st.integers(0, 10))
def test_draft_memory_grows_with_context_and_budget_and_is_never_negative(
    model: TransformerConfig, small: TransformerConfig, policy: Any, context: int, budget: int, gamma: int
) -> None:
    for draft in (Draft("self", policy, kv_dtype="int8"), Draft("self", policy), Draft("model", policy, small)):
        shape = {"max_context_len": context, "kv_budget": budget if draft.sparse else np.inf, "gamma": gamma}
        kv, weights = taken(draft, model, **shape)
        assert min(kv, weights) >= 0
        assert kv <= taken(draft, model, **{**shape, "max_context_len": 2 * context})[0]
        assert kv <= taken(draft, model, **{**shape, "kv_budget": 2 * shape["kv_budget"]})[0]
        assert kv <= taken(draft, model, **{**shape, "gamma": gamma + 1})[0]


@given(models(), st.integers(1, 200_000))
def test_no_layer_keeps_more_than_its_window(model: TransformerConfig, context: int) -> None:
    for gpus in gpus_for(model):
        per_token = model.kv_width_per_gpu(gpus) * model.kv_bytes_per_element
        expected = sum(layers * min(context, window or context) for layers, window in model.attention_windows) * per_token
        assert float(kv_bytes_per_gpu(model, context, gpus)) == pytest.approx(expected, rel=1e-12)


def test_every_kind_of_draft_has_a_case_here() -> None:
    assert set(DRAFT_KINDS) == {"none", "self", "model", "ngram", "eagle3", "mtp"}
    assert set(KV_POLICIES) == {"full", "streaming_llm", "snapkv", *EVERY_STEP}
