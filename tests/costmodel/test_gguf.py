"""GGUF files: their metadata becomes the same model as its `config.json` does, and sizes are those of the tensors."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import Shape, gguf_tensors, llama_gguf, write_gguf

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.layers.dtypes import GGML_TYPES
from magicdec.costmodel.layers.layer import merged
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.gguf_config import load_gguf
from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.tensors.gguf import read_gguf

Metadata = dict[str, object]


def usual(arch: str, model: TransformerConfig, **more: object) -> Metadata:
    """The keys that llama.cpp writes for every model, and further ones with `__` for a point."""
    keys: Metadata = {
        "block_count": model.num_layers,
        "context_length": model.max_context_len,
        "embedding_length": model.d_model,
        "feed_forward_length": model.d_ff,
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.num_kv_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": model.head_dim,
        "rope.freq_base": 10000.0,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items() if value is not None}


def pattern(model: TransformerConfig, period: int) -> list[bool]:
    return [(i + 1) % period != 0 for i in range(model.num_layers)]


def experts(count: int, used: int, width: int, **more: object) -> Metadata:
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width, **more}


def qwen35(model: TransformerConfig, value_heads: int, **more: object) -> Metadata:
    return {
        "ssm__conv_kernel": 4,
        "ssm__state_size": 128,
        "ssm__group_count": 16,
        "ssm__time_step_rank": value_heads,
        "ssm__inner_size": 128 * value_heads,
        "full_attention_interval": 4,
        "attention__head_count": more.pop("heads"),
        "attention__head_count_kv": more.pop("kv_heads"),
        "attention__key_length": 256,
        "attention__value_length": 256,
        **more,
    }


# Built-in models, and the keys of their GGUF files as the conversion scripts of llama.cpp write them.
BUILT_IN: dict[str, Callable[[TransformerConfig], Metadata]] = {
    "Llama-3.1-8B": lambda m: usual("llama", m),
    "Mixtral-8x7B": lambda m: usual("llama", m, expert_count=8, expert_used_count=2),
    "Qwen2.5-7B": lambda m: usual("qwen2", m, attention__key_length=None, attention__value_length=None),
    "Qwen3-8B": lambda m: usual("qwen3", m),
    "Qwen3-30B-A3B": lambda m: usual("qwen3moe", m, **experts(128, 8, 768)),
    "DeepSeek-V3": lambda m: usual(
        "deepseek2",
        m,
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        attention__q_lora_rank=1536,
        attention__kv_lora_rank=512,
        rope__dimension_count=64,
        leading_dense_block_count=3,
        **experts(256, 8, 2048, expert_shared_count=1),
    ),
    "GLM-5-FP8": lambda m: usual(
        "glm-dsa",
        m,
        attention__head_count=64,
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=256,
        attention__value_length_mla=256,
        attention__q_lora_rank=2048,
        attention__kv_lora_rank=512,
        attention__indexer__head_count=32,
        attention__indexer__key_length=128,
        attention__indexer__top_k=2048,
        rope__dimension_count=64,
        **experts(256, 8, 2048, expert_shared_count=1),
    ),
    "gpt-oss-20b": lambda m: usual("gpt-oss", m, attention__sliding_window=128, **experts(32, 4, 2880)),
    "Gemma-3-27B": lambda m: usual("gemma3", m, attention__sliding_window=1024),
    "Gemma-4-26B-A4B": lambda m: usual(
        "gemma4",
        m,
        attention__head_count=16,
        attention__head_count_kv=[8 if window else 2 for window in pattern(m, 6)],
        attention__key_length=512,
        attention__value_length=512,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
        attention__sliding_window=1024,
        attention__sliding_window_pattern=pattern(m, 6),
        attention__shared_kv_layers=0,
        embedding_length_per_layer_input=0,
        **experts(128, 8, 704),
    ),
    "Qwen3.5-27B": lambda m: usual("qwen35", m, **qwen35(m, 48, heads=24, kv_heads=4)),
    "Qwen3.5-397B-A17B": lambda m: usual(
        "qwen35moe", m, **qwen35(m, 64, heads=32, kv_heads=2, **experts(512, 10, 1024, expert_shared_feed_forward_length=1024))
    ),
    "Nemotron-3-Nano-30B-A3B-BF16": lambda m: usual(
        "nemotron_h_moe",
        m,
        attention__head_count=[0 if i % 2 else 32 for i in range(m.num_layers)],
        attention__head_count_kv=[0 if i % 2 else 2 for i in range(m.num_layers)],
        attention__key_length=128,
        attention__value_length=128,
        feed_forward_length=[0] * m.num_layers,
        ssm__conv_kernel=4,
        ssm__state_size=128,
        ssm__group_count=8,
        ssm__inner_size=4096,
        ssm__time_step_rank=64,
        **experts(128, 6, 1856, expert_shared_count=1, expert_shared_feed_forward_length=3712),
    ),
    "MiMo-V2-Flash": lambda m: usual(
        "mimo2",
        m,
        attention__head_count_kv=[8 if group else 4 for group in MIMO],
        attention__key_length=192,
        attention__value_length=128,
        attention__sliding_window=128,
        attention__sliding_window_pattern=MIMO,
        **experts(256, 8, 2048),
    ),
    "MiniMax-M2.5": lambda m: usual("minimax-m2", m, **experts(256, 8, 1536)),
    "Llama-4-Scout-17B-16E": lambda m: usual(
        "llama4", m, feed_forward_length=16384, interleave_moe_layer_step=1, **experts(16, 1, 8192)
    ),
}
MIMO = [not (i == 0 or i == 47 or (i % 6 == 5)) for i in range(48)]


def written(tmp_path: Path, metadata: Metadata, tensors: dict[str, tuple[str, Shape]]) -> Path:
    file = tmp_path / "model.gguf"
    write_gguf(file, metadata, tensors)
    return file


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_gguf_file_describes_the_same_layers_as_the_config(name: str, tmp_path: Path) -> None:
    model = resolve_model(name)
    model = replace(model.with_dtype(model.dtype), vision_params=0)
    metadata = BUILT_IN[name](model)
    listed = next((value for key, value in metadata.items() if key.endswith("sliding_window_pattern")), None)
    file = tmp_path / "model.gguf"
    size = write_gguf(file, metadata, gguf_tensors(model, windows=listed if isinstance(listed, list) else None))
    found = load_gguf(file, name="found")
    assert set(merged(found.layers)) == set(merged(model.layers))
    assert found.params == pytest.approx(model.params, rel=1e-3)
    assert (found.vocab_size, found.d_model, found.max_context_len) == (model.vocab_size, model.d_model, model.max_context_len)
    assert found.tied_embeddings == model.tied_embeddings
    assert found.kv_bytes_per_token == model.kv_bytes_per_token
    assert found.weight_bytes == size


LFM2 = {
    "model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14], "block_ff_dim": 12288, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
    "conv_L_cache": 3, "vocab_size": 65536, "max_position_embeddings": 128000, "tie_word_embeddings": True,
}  # fmt: skip
MAMBA2 = {
    "model_type": "mamba2", "hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80, "head_dim": 64, "n_groups": 1,
    "state_size": 128, "conv_kernel": 4, "expand": 2, "vocab_size": 50288, "tie_word_embeddings": True,
    "max_position_embeddings": 2**20,
}  # fmt: skip
GLM45_AIR = {
    "model_type": "glm4_moe", "hidden_size": 4096, "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": False, "vocab_size": 151552,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA2_2B = {
    "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "intermediate_size": 9216, "sliding_window": 4096, "vocab_size": 256000, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "raw", "more"),
    [
        (
            "lfm2",
            LFM2,
            {
                "shortconv__l_cache": 3,
                "feed_forward_length": 8192,
                "attention__head_count_kv": [8 if i in (2, 5, 8, 10, 12, 14) else 0 for i in range(16)],
            },
        ),
        (
            "mamba2",
            MAMBA2,
            {
                "ssm__conv_kernel": 4,
                "ssm__inner_size": 5120,
                "ssm__state_size": 128,
                "ssm__time_step_rank": 80,
                "ssm__group_count": 1,
                "feed_forward_length": 0,
                "attention__head_count": 0,
                "attention__head_count_kv": None,
                "attention__key_length": None,
                "attention__value_length": None,
            },
        ),
        ("glm4moe", GLM45_AIR, experts(128, 8, 1408, expert_shared_count=1, leading_dense_block_count=1)),
        ("gemma2", GEMMA2_2B, {"attention__sliding_window": 4096}),
    ],
)
def test_so_does_one_of_a_family_without_a_built_in_model(
    arch: str, raw: dict[str, object], more: dict[str, object], tmp_path: Path
) -> None:
    model = parse_hf_config(raw, where="config.json", name=arch)
    file = written(tmp_path, usual(arch, model, **more), gguf_tensors(model))
    found = load_gguf(file, name=arch)
    assert set(merged(found.layers)) == set(merged(model.layers))
    assert found.params == pytest.approx(model.params, rel=2e-3)
    assert found.state_bytes_per_sequence == model.state_bytes_per_sequence


def test_the_sizes_of_a_mix_are_those_that_llama_bench_reports(tmp_path: Path) -> None:
    """llama-bench says 4.58 GiB and 8.03 B for `llama 8B Q4_K - Medium`."""
    metadata, tensors = llama_gguf()
    found = load_gguf(written(tmp_path, metadata, tensors), name="llama")
    assert round(found.weight_bytes / 2**30, 2) == 4.58
    assert round(found.params / 1e9, 2) == 8.03
    assert found.stored is not None
    assert {dtype for dtype, _ in found.stored.bytes_by_type} == {"q4_k", "q6_k", "float32"}
    down = {(matrix.dtype, matrix.layers) for matrix in found.matrices() if matrix.name == "down"}
    assert down == {("q6_k", 16), ("q4_k", 16)}
    assert found.matrices()[-1].dtype == "q6_k"


def test_a_model_in_several_files_is_read_from_any_of_them(tmp_path: Path) -> None:
    metadata, tensors = llama_gguf(layers=4)
    names = list(tensors)
    split = {"split.count": 2, "split.tensors.count": len(names)}
    files = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    write_gguf(files[0], {**metadata, **split, "split.no": 0}, {name: tensors[name] for name in names[:20]})
    write_gguf(files[1], {**split, "split.no": 1}, {name: tensors[name] for name in names[20:]})
    whole = load_gguf(written(tmp_path, metadata, tensors), name="m")
    assert load_gguf(files[1], name="m").weight_bytes == whole.weight_bytes
    (tmp_path / "model.gguf").unlink()
    assert resolve_model(str(tmp_path)).weight_bytes == whole.weight_bytes
    files[0].unlink()
    with pytest.raises(InputError, match=r"m-00001-of-00002\.gguf: expected all 2 files of this model"):
        load_gguf(files[1], name="m")


def test_prediction_modules_are_no_part_of_the_target(tmp_path: Path) -> None:
    metadata, tensors = llama_gguf(layers=4)
    plain = load_gguf(written(tmp_path, metadata, tensors), name="m")
    more = {name.replace("blk.3.", "blk.4."): entry for name, entry in tensors.items() if name.startswith("blk.3.")}
    more["blk.4.nextn.eh_proj.weight"] = ("q4_k", (8192, 4096))
    metadata |= {"llama.block_count": 5, "llama.nextn_predict_layers": 1}
    found = load_gguf(written(tmp_path, metadata, {**tensors, **more}), name="m")
    assert found.weight_bytes == plain.weight_bytes
    assert found.num_mtp == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.block_count": 5}, r"llama\.block_count: expected 4, the blocks that have tensors, found 5"),
        ({"llama.embedding_length": 2048}, r"llama\.embedding_length: expected 4096, as token_embd\.weight has, found 2048"),
        ({"llama.feed_forward_length": 1}, r"llama\.feed_forward_length: expected 14336, as ffn_down\.weight has, found 1"),
        ({"llama.attention.head_count": 0}, r"llama\.attention\.head_count: expected at least 1, found 0"),
        ({"llama.attention.head_count_kv": 3}, r"llama\.attention\.head_count: expected a multiple of num_key_value_heads \(3\)"),
        ({"llama.attention.head_count_kv": [8]}, r"head_count_kv: expected a number for each of the 4 layers, found 1 numbers"),
        ({"llama.context_length": "long"}, r"llama\.context_length: expected a valid integer, found 'long' \(str\)"),
        ({"general.architecture": "bert"}, r"general\.architecture: expected a language model"),
        ({"general.architecture": 7}, r"general\.architecture: expected the name of an architecture, found 7"),
        ({"llama.attention.key_length": 512}, r"tensors: expected about .* parameters, as the keys describe the model"),
        ({"general.alignment": 3}, r"general\.alignment: expected a power of two, found 3"),
    ],
)
def test_keys_that_contradict_the_tensors_are_named(changes: Metadata, message: str, tmp_path: Path) -> None:
    metadata, tensors = llama_gguf(layers=4)
    with pytest.raises(InputError, match=message):
        load_gguf(written(tmp_path, {**metadata, **changes}, tensors), name="m")


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    metadata, tensors = llama_gguf(layers=2)
    file = written(tmp_path, metadata, tensors)
    with open(file, "rb") as whole:
        start = whole.read(40_000)
    for end in [*range(0, 200, 7), 1000, 5000, 14_000, 15_000]:
        file.write_bytes(start[:end])
        with pytest.raises(InputError, match=r"model\.gguf"):
            read_gguf(file)
    write_gguf(file, metadata, tensors, cut=64)
    with pytest.raises(InputError, match="found a file that is cut off at"):
        read_gguf(file)


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 2**40),
        b"GGUF" + struct.pack(">IQQ", 3, 1, 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"x" * 100,
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 12, 2**61),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) * 1000,
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I4Q", 4, 2**40, 2**40, 2**40, 2**40) + b"\0" * 12,
    ],
)
def test_counts_beyond_belief_cost_no_memory(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with open(file, "wb") as out:
        out.write(content)
        out.truncate(2**40)  # sparse: the file seems large enough
    tracemalloc.start()
    with pytest.raises(InputError, match=r"m\.gguf"):
        read_gguf(file)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_model_or_one_message(place: int, value: int, tmp_path: Path) -> None:
    metadata, tensors = llama_gguf(layers=1)
    metadata["tokenizer.ggml.tokens"] = ["a"]
    file = written(tmp_path, metadata, tensors)
    with open(file, "r+b") as out:
        out.seek(place)
        out.write(bytes([value]))
    message = ""
    try:
        load_gguf(file, name="m")
    except InputError as error:
        message = str(error)
    assert not message or message.startswith(str(file))


def test_types_have_the_sizes_of_the_package_gguf() -> None:
    constants = pytest.importorskip("gguf.constants")
    known = {int(kind): sizes for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    ours = {number: (elements, size) for number, elements, size in GGML_TYPES.values()}
    assert {number: sizes for number, sizes in known.items() if number in ours} == ours
