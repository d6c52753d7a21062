"""Forms in which checkpoints, drafts, GPUs and traces are published, beside those that other tests have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.draft_heads import load_head
from magicdec.costmodel.models.hf_config import parse_hf_config
from magicdec.costmodel.plans.trace_file import load_trace
from magicdec.inputs.machines import find_machine

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}
MOE = {"num_experts_per_tok": 8, "first_k_dense_replace": 1, "head_dim": 128, "max_position_embeddings": 32768}


def read(raw: dict[str, Any]) -> Any:
    return parse_hf_config(raw, where="config.json", name="M")


def per_group(pattern: str, bits: int, kind: str, **more: int) -> dict[str, Any]:
    return {"targets": [pattern], "weights": {"num_bits": bits, "type": kind, **more}}


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        ({"quant_method": "gptq_marlin", "bits": 4, "group_size": 128}, "w4g128"),
        ({"quant_method": "awq_marlin", "bits": 4, "group_size": 128}, "w4g128z"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"bits": 4, "group_size": 64}, "w4g32"),  # MLX: scale and bias in 16 bits for 64 elements
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mxfp4"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, "w4g32"),
        ({"quant_method": "eetq", "weights": "int8"}, "int8"),
        ({"quant_method": "quanto", "weights": "float8"}, "fp8"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "int8"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig", "_data": {}}}}, "fp8"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}}, "w4g64"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, "fp8"),
        ({"quant_method": "quark", "global_quant_config": {"weight": [{"dtype": "fp8_e4m3"}, {"dtype": "int4"}]}}, "w4g1024"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}}, "mxfp4"),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16, "num_codebooks": 1, "in_group_size": 8}, "w2g1024"),
        ({"quant_method": "bitnet"}, "w2g1024"),
        ({"quant_method": "higgs", "bits": 4, "group_size": 256}, "w4g256"),
    ],
)
def test_a_method_of_quantisation_is_read(block: dict[str, Any], dtype: str) -> None:
    assert read({**LLAMA, "quantization_config": block}).linear_dtype == dtype


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"quant_method": "awq", "bits": -4}, "bits"),
        ({"quant_method": "gptq"}, "bits"),
        ({"quant_method": "exl2", "bits": 4.25}, "quant_method"),
        ({"quant_method": "hqq"}, "quant_config"),
        ({"quant_method": "quark"}, "global_quant_config"),
        ({"quant_method": "quark", "global_quant_config": {"weight": 8}}, "weight"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int9"}}}, "dtype"),
        ({"quant_method": "torchao", "quant_type": {"default": []}}, "quant_type"),
        ({"quant_method": "quanto"}, "weights"),
        ({"bits": 4, "group_size": 7}, "bits"),
    ],
)
def test_a_block_that_makes_no_sense_gives_one_message(block: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        read({**LLAMA, "quantization_config": block})
    assert [problem.key.rpartition(".")[2] for problem in caught.value.problems] == [key]


def test_groups_of_modules_are_stored_by_pattern() -> None:
    groups = {"a": per_group("re:.*self_attn.*", 8, "float"), "b": per_group("re:.*mlp.*", 4, "float", group_size=16)}
    model = read({**LLAMA, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}})
    assert {matrix.name: matrix.dtype for matrix in model.matrices()} == {
        **{"qkv": "fp8", "o": "fp8"},
        **{"gate_up": "nvfp4", "down": "nvfp4", "head": "bfloat16"},
    }


@pytest.mark.parametrize(
    ("raw", "total", "active"),
    [
        # Gemma 3 4B, Pixtral 12B and LLaVA 1.5 7B leave sizes to the defaults of their family.
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    **{"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240},
                    **{"num_hidden_layers": 34, "sliding_window": 1024},
                },
            },
            3.88,
            3.88,
        ),
        (
            {
                "model_type": "llava",
                "text_config": {
                    **{"model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40},
                    **{"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 131_072, "sliding_window": None},
                },
            },
            12.25,
            11.58,
        ),
        ({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}, 6.74, 6.61),
        # Ring-mini-linear 2.0: an incomplete group of layers would end with full attention.
        (
            {
                **{"model_type": "bailing_moe_linear", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20},
                **{"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 157_184, "num_experts": 256, **MOE},
                **{"num_shared_experts": 1, "moe_intermediate_size": 512, "layer_group_size": 5},
            },
            16.4,
            1.28,
        ),
        # Step-3: queries through 2048, keys and values not.
        (
            {
                "model_type": "step3_vl",
                "text_config": {
                    **{"model_type": "step3_text", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61},
                    **{"num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256, "share_q_dim": 2048},
                    **{"share_expert_dim": 5120, "moe_intermediate_size": 5120, "moe_num_experts": 48, "moe_top_k": 3},
                    **{"vocab_size": 128_815, "max_seq_len": 65536, "moe_layers_enum": ",".join(map(str, range(4, 60)))},
                },
            },
            316,
            37.9,
        ),
        # ChatGLM3 6B has names of its own.
        (
            {
                **{"model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28, "kv_channels": 128},
                **{"num_attention_heads": 32, "multi_query_group_num": 2, "padded_vocab_size": 65024, "seq_length": 8192},
                **{"add_qkv_bias": True, "add_bias_linear": False},
            },
            6.24,
            5.98,
        ),
        # LongCat-Flash 560B: two layers in one, and a third of the experts that a token takes is empty.
        (
            {
                **{"model_type": "longcat_flash", "hidden_size": 6144, "ffn_hidden_size": 12288, "num_layers": 28},
                **{"expert_ffn_hidden_size": 2048, "num_attention_heads": 64, "kv_lora_rank": 512, "q_lora_rank": 1536},
                **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 512},
                **{"zero_expert_num": 256, "moe_topk": 12, "vocab_size": 131_072, "max_position_embeddings": 131_072},
            },
            561,
            27.2,
        ),
        # ERNIE 4.5 VL 28B A3B: experts for images are kept, and not read by text.
        (
            {
                **{"model_type": "ernie4_5_moe_vl", "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28},
                **{"num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 103_424, "max_position_embeddings": 131_072},
                **{"moe_num_experts": [64, 64], "moe_intermediate_size": [1536, 512], "moe_k": 6, "moe_num_shared_experts": 2},
                **{"moe_layer_start_index": [1, 1], "moe_layer_end_index": [29, 28], "moe_layer_interval": 1},
            },
            28.6,
            3.35,
        ),
    ],
)
def test_a_published_config_has_the_size_of_its_model(raw: dict[str, Any], total: float, active: float) -> None:
    model = read(raw)
    assert (model.params / 1e9, model.active_params / 1e9) == (pytest.approx(total, rel=0.005), pytest.approx(active, rel=0.01))
    taken = [note for note in model.notes if "leaves to the defaults" in note]
    assert bool(taken) == (raw["model_type"] in ("gemma3", "llava"))


def test_sizes_are_missing_where_no_published_config_leaves_them_out() -> None:
    for raw in ({"model_type": "llama"}, {"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}}):
        with pytest.raises(InputError, match="hidden_size: expected a value"):
            read(raw)


def test_layers_that_share_a_cache_keep_it_once() -> None:
    raw = {**LLAMA, "model_type": "hunyuan", "num_experts": 16, "moe_topk": 1, "num_shared_expert": 1, "moe_intermediate_size": 512}
    assert 2 * read({**raw, "use_cla": True}).kv_bytes_per_token == read(raw).kv_bytes_per_token


@pytest.mark.parametrize(
    ("raw", "kind", "title"),
    [
        ({"medusa_num_heads": 5, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3"}, "other", "medusa"),
        ({"model_type": "mlp_speculator", "architectures": ["MLPSpeculatorPreTrainedModel"], "emb_dim": 64}, "other", "mlpspec"),
        ({**LLAMA, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLM"]}, "other", "EAGLE 1 or 2"),
        ({**LLAMA, "model_type": "mimo_mtp", "architectures": ["MiMoMTPModel"], "num_hidden_layers": 1}, "mtp", "prediction"),
        ({**LLAMA, "draft_vocab_size": 32000, "architectures": ["LlamaForCausalLMEagle3"]}, "eagle3", "EAGLE-3"),
    ],
)
def test_a_draft_without_a_model_is_known_as_one(tmp_path: Path, raw: dict[str, Any], kind: str, title: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    head = load_head(tmp_path, name="draft")
    assert head is not None
    assert (head.kind, title in head.title) == (kind, True)


def test_a_path_of_something_else_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder without one$"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="give its base model"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    with pytest.raises(InputError, match=r"the folder of a checkpoint, found .*another file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_a_number_of_gpus_goes_to_its_own_parameter_and_counts_in_a_list() -> None:
    for name in ("8x H100", "8xH100", "8x NVIDIA H100 80GB HBM3", "H100 x8", "H100 x 8"):
        with pytest.raises(InputError, match="h100-sxm, with 8 as `num_gpus`"):
            find_machine(name)
    with pytest.warns(UserWarning, match="layers are split"):
        machine = find_machine("2x3090,5080")
    assert machine is not None
    assert machine.name == "rtx-3090,rtx-3090,rtx-5080"
    with pytest.warns(UserWarning, match="layers are split"):
        machine = find_machine("rtx 5080 + rtx 3090")
    assert machine is not None
    assert machine.name == "rtx-5080,rtx-3090"


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\x1f\x8b\x08", "gzip -dk"),
        (b"PK\x03\x04", "zip archive"),
        (b"PAR1", "Parquet"),
        ("prompt_len,output_len\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_packed_trace_is_refused_with_what_to_do(tmp_path: Path, head: bytes, words: str) -> None:
    (tmp_path / "trace").write_bytes(head + bytes(40))
    with pytest.raises(InputError, match=words):
        load_trace(str(tmp_path / "trace"))


def trace_of(folder: Path, text: str) -> Any:
    (folder / "trace.jsonl").write_text(text, encoding="utf-8")
    return load_trace(str(folder / "trace.jsonl"))


def test_times_of_a_block_trace_are_milliseconds_unless_they_have_fractions(tmp_path: Path) -> None:
    row = '{{"timestamp": {}, "input_length": 5, "output_length": 5}}\n'
    assert trace_of(tmp_path, row.format(0) + row.format(3052)).arrival_s.tolist() == [0, 3.052]
    assert trace_of(tmp_path, row.format(61.5) + row.format(63.0)).arrival_s.tolist() == [0, 1.5]


def test_instructions_before_the_first_message_are_part_of_the_prompt(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "be nice."}, {"role": "user", "content": [{"type": "text", "text": "hello you"}]}]
    trace = trace_of(tmp_path, json.dumps({"messages": [*said, {"role": "assistant", "content": "good day"}]}))
    assert (list(trace.prompt_lens), list(trace.output_lens)) == ([5], [2])
