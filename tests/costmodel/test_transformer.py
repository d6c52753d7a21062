"""Parameters and bytes of models, compared with published numbers and checked for consistency."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_inputs import DTYPES, active_params, gpus_for, models

from magicdec.costmodel.hf.families import FAMILIES
from magicdec.costmodel.models.catalog import builtin_configs, resolve_model
from magicdec.costmodel.models.transformer import BYTES_PER_ELEMENT, TransformerConfig
from magicdec.costmodel.plans.plan import fingerprint

# As Hugging Face counts the parameters of the published checkpoints.
PUBLISHED_PARAMS = {
    "CodeLlama-34B": 33_743_970_304,
    "DeepSeek-V3": 671_026_404_352,  # without the correction biases of its routers, which are buffers
    "Gemma-3-27B": 27_009_346_304,  # the language model
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B": 46_702_792_704,
    "Qwen2-7B": 7_615_616_512,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "TinyLlama-1.1B": 1_100_048_384,
    "Yi-6B": 6_061_035_520,
    "Yi-34B": 34_388_917_248,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}
# As their reports print them: all but gpt-oss count the embedding.
PUBLISHED_ACTIVE = {"Mixtral-8x7B": 12.9e9, "Qwen3-30B-A3B": 3.35e9, "Qwen3-235B-A22B": 22.2e9, "DeepSeek-V3": 37.6e9}
PUBLISHED_ACTIVE_WITHOUT_EMBEDDING = {"gpt-oss-20b": 3.61e9, "gpt-oss-120b": 5.13e9}  # arXiv 2508.10925, table 1
PUBLISHED_KV_BYTES = {
    "Llama-3.1-8B": 128 * 1024,
    "Llama-2-7B": 512 * 1024,
    "DeepSeek-V3": 61 * 576 * 2,  # 70 KB, arXiv 2412.19437: 516 KB for Llama-3.1-405B
    "Qwen3-30B-A3B": 48 * 2 * 4 * 128 * 2,
}


FAMILY_BY_NAME = {
    **dict.fromkeys(("CodeLlama", "Llama", "Sheared-LLaMA", "TinyLlama", "Yi"), "llama"),
    **{"Mistral": "mistral", "Mixtral": "mixtral", "DeepSeek-V3": "deepseek_v3", "Gemma-3": "gemma3", "gpt-oss": "gpt_oss"},
    **{"Qwen2": "qwen2", "Qwen3": "qwen3"},
}


def size_in_name(name: str) -> float | None:
    """Billions of parameters according to the model's name."""
    found = re.search(r"-(?:(\d+)x)?([0-9.]+)([BM])", name, flags=re.IGNORECASE)
    if found is None:
        return None
    return int(found[1] or 1) * float(found[2]) * (1e-3 if found[3] == "M" else 1.0)


# Whole copies of a config, whose name says their family; test_model_configs.py has the others.
NAMED = [name for name in builtin_configs() if '"architectures"' in builtin_configs()[name].read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", NAMED)
def test_every_built_in_model_is_plausible(name: str) -> None:
    model = resolve_model(name)
    assert model.name == name
    assert model.family in FAMILIES
    assert model.family == ("qwen3_moe" if "-A" in name else next(f for n, f in FAMILY_BY_NAME.items() if name.startswith(n)))
    assert model.num_heads % model.num_kv_heads == 0
    assert model.head_dim in (64, 128, 192)
    assert model.d_model <= model.d_ff < 6 * model.d_model
    assert model.vocab_size >= 32_000
    assert model.max_context_len >= 2048
    assert model.bytes_per_element == 2
    assert 0.5 * model.params < model.weight_bytes <= 2 * model.params
    assert 0 < active_params(model) <= model.params
    assert (active_params(model) < model.params) == (model.experts is not None)
    promised = size_in_name(name)
    assert promised is None or model.params == pytest.approx(promised * 1e9, rel=0.25)


@pytest.mark.parametrize("name", [name for name in NAMED if resolve_model(name).expert_dtype is None])
def test_a_model_that_is_not_compressed_takes_two_bytes_a_parameter(name: str) -> None:
    assert resolve_model(name).weight_bytes == 2 * resolve_model(name).params


@pytest.mark.parametrize(("name", "params"), PUBLISHED_PARAMS.items())
def test_parameters_are_those_of_the_published_checkpoint(name: str, params: int) -> None:
    assert resolve_model(name).params == params


@pytest.mark.parametrize(("name", "params"), PUBLISHED_ACTIVE.items())
def test_active_parameters_are_the_published_ones(name: str, params: float) -> None:
    assert active_params(resolve_model(name)) == pytest.approx(params, rel=0.005)


@pytest.mark.parametrize(("name", "params"), PUBLISHED_ACTIVE_WITHOUT_EMBEDDING.items())
def test_active_parameters_but_for_the_embedding_are_the_published_ones(name: str, params: float) -> None:
    model = resolve_model(name)
    assert active_params(model) - model.embedding_params == pytest.approx(params, rel=0.01)


def test_biases_of_idle_experts_are_not_active(gpt_oss: TransformerConfig) -> None:
    assert gpt_oss.experts is not None
    without = replace(gpt_oss, experts=replace(gpt_oss.experts, bias=False))
    router_and_active = 32 + 4 * (2 * 2880 + 2880)
    assert active_params(gpt_oss) - active_params(without) == 24 * router_and_active


@pytest.mark.parametrize(("name", "size"), [("gpt-oss-20b", 12.8 * 2**30), ("gpt-oss-120b", 60.8 * 2**30), ("DeepSeek-V3", 671e9)])
def test_compressed_checkpoints_are_as_large_as_published(name: str, size: float) -> None:
    assert resolve_model(name).weight_bytes == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(("name", "size"), PUBLISHED_KV_BYTES.items())
def test_kv_bytes_of_a_token_are_the_published_ones(name: str, size: int) -> None:
    assert resolve_model(name).kv_bytes_per_token == size


def test_a_group_of_small_elements_shares_a_scale() -> None:
    assert BYTES_PER_ELEMENT["int4"] * 128 == 64 + 2
    assert BYTES_PER_ELEMENT["mxfp4"] * 32 == 16 + 1
    assert all(BYTES_PER_ELEMENT[f"float{bits}"] * 8 == bits for bits in (16, 32, 64))
    assert BYTES_PER_ELEMENT["fp8"] == BYTES_PER_ELEMENT["int8"] == 1


def test_another_type_changes_bytes_and_not_parameters(llama: TransformerConfig) -> None:
    assert llama.with_dtype("float32").weight_bytes == 2 * llama.weight_bytes
    assert llama.with_dtype("int4").weight_bytes == llama.weight_bytes / 2 * (0.5 + 2 / 128)
    assert llama.with_dtype("float32").params == llama.params
    assert llama.with_dtype("float32").kv_bytes_per_token == 2 * llama.kv_bytes_per_token


def test_one_type_is_one_type_whatever_was_compressed(deepseek: TransformerConfig) -> None:
    plain = deepseek.compressed(kv_dtype="fp8").with_dtype("bfloat16")
    assert plain.weight_bytes == 2 * plain.params
    assert plain.kv_bytes_per_token == deepseek.kv_bytes_per_token
    assert {matrix.dtype for matrix in plain.matrices()} == {"bfloat16"}


def test_compression_takes_the_layers_or_the_cache_and_leaves_the_rest(llama: TransformerConfig) -> None:
    weights, cache = llama.compressed(weight_dtype="int4"), llama.compressed(kv_dtype="fp8")
    *layers, head = llama.matrices()
    saved = sum(matrix.bytes for matrix in layers) * (1 - BYTES_PER_ELEMENT["int4"] / 2)
    assert weights.weight_bytes == pytest.approx(llama.weight_bytes - saved, rel=1e-12)
    assert weights.matrices()[-1] == head
    assert weights.kv_bytes_per_token == llama.kv_bytes_per_token
    assert (cache.weight_bytes, cache.kv_bytes_per_token) == (llama.weight_bytes, llama.kv_bytes_per_token / 2)
    assert llama.compressed() == llama


def test_compressing_weights_compresses_the_experts_too() -> None:
    mixtral = resolve_model("Mixtral-8x7B")
    small = mixtral.compressed(weight_dtype="fp8")
    assert small.weight_bytes == pytest.approx(mixtral.weight_bytes / 2, rel=0.01)


@given(models(), st.sampled_from(["fp8", "int8", "int4"]))
def test_compression_never_takes_more(model: TransformerConfig, dtype: str) -> None:
    assert model.compressed(weight_dtype=dtype).weight_bytes <= model.weight_bytes
    assert model.compressed(kv_dtype=dtype).kv_bytes_per_token <= model.kv_bytes_per_token


@given(models(), st.sampled_from(DTYPES))
def test_any_model_in_one_type_takes_that_many_bytes_a_parameter(model: TransformerConfig, dtype: str) -> None:
    assert model.with_dtype(dtype).weight_bytes == pytest.approx(model.params * BYTES_PER_ELEMENT[dtype], rel=1e-12)


@given(models())
def test_parameters_are_whole_matrices_vectors_and_an_embedding(model: TransformerConfig) -> None:
    matrices = sum(matrix.params for matrix in model.matrices())
    vectors = model.params - matrices - (0 if model.tied_embeddings else model.embedding_params)
    assert vectors == int(vectors)
    assert vectors >= (model.norms_per_layer * model.num_layers + 1) * model.d_model
    assert active_params(model) <= model.params


@pytest.mark.parametrize(("tied", "tables"), [(False, 2), (True, 1)])
def test_embeddings_and_head_may_be_of_another_type(tied: bool, tables: int) -> None:
    model = replace(resolve_model("llama-3.1-8b"), tied_embeddings=tied)
    wide = replace(model, embedding_dtype="float32")
    assert (model.embedding_bytes, wide.embedding_bytes) == (model.embedding_params * 2, model.embedding_params * 4)
    assert wide.weight_bytes - model.weight_bytes == tables * model.embedding_params * 2
    assert fingerprint(wide) == fingerprint(model)


@given(models())
def test_gpus_share_every_matrix_but_those_that_make_what_all_need(model: TransformerConfig) -> None:
    whole = {matrix.name: matrix for matrix in model.matrices()}
    replicated = {"router", "q_down", "kv_down"}
    for gpus in gpus_for(model):
        for part in model.matrices(gpus):
            share = 1.0 if part.name in replicated else 1 / gpus
            if part.name == "qkv":  # KV heads are replicated where there are too few
                kv_width = 2 * model.head_dim * max(model.num_kv_heads / gpus, 1.0)
                assert part.outputs == model.d_attention / gpus + kv_width
                continue
            assert part.params == pytest.approx(whole[part.name].params * share, rel=1e-12), part.name


@given(models())
def test_a_gpu_of_many_holds_a_share_of_the_weights_and_all_of_an_unsharded_head(model: TransformerConfig) -> None:
    assert model.weight_bytes_per_gpu(1, head_sharded=False) == model.weight_bytes_per_gpu(1) == model.weight_bytes
    for gpus in gpus_for(model):
        held, with_head = (model.weight_bytes_per_gpu(gpus, head_sharded=sharded) for sharded in (True, False))
        embeddings = model.embedding_bytes * (1 if model.tied_embeddings else 2)
        assert with_head - held == pytest.approx(embeddings * (1 - 1 / gpus), rel=1e-6, abs=1)
        assert model.weight_bytes / gpus * (1 - 1e-12) <= held <= model.weight_bytes


@given(models())
def test_kv_heads_split_over_the_gpus_until_each_has_one(model: TransformerConfig) -> None:
    for gpus in gpus_for(model):
        width = model.kv_width_per_gpu(gpus)
        if model.latent is not None:
            assert width == model.latent.kv_rank + model.latent.rope_dim
            assert model.kv_heads_per_gpu(gpus) == 1
        else:
            assert width == 2 * model.head_dim * math.ceil(model.num_kv_heads / gpus)
    layers = sum(layers for layers, _ in model.attention_windows)
    assert layers == model.num_layers
    assert all(layers > 0 for layers, _ in model.attention_windows)
