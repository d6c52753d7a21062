"""Writes weight files with true headers and no data: the files are sparse."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from magicdec.costmodel.hf.stored import GGUF_TENSORS
from magicdec.costmodel.layers.attention import Attention
from magicdec.costmodel.layers.dtypes import GGML_TYPES
from magicdec.costmodel.layers.layer import Layer
from magicdec.costmodel.layers.recurrent import Recurrent
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.tensors.safetensors import BITS

Shape = Sequence[int]


def write_safetensors(file: Path, tensors: Mapping[str, tuple[str, Shape]]) -> int:
    """Write a header for tensors of (dtype, shape); returns the size of the data. [bytes]"""
    header, end = dict[str, object](), 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)
    return end


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list() if value and isinstance(value[0], str):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(str(item)) for item in value)
        case list():
            kind, form = (7, "?") if value and isinstance(value[0], bool) else (4, "I")
            return struct.pack("<IIQ", 9, kind, len(value)) + struct.pack(f"<{len(value)}{form}", *value)
    raise TypeError(value)


def write_gguf(file: Path, metadata: Mapping[str, object], tensors: Mapping[str, tuple[str, Shape]], *, cut: int = 0) -> int:
    """Write a header for tensors of (type, dimensions in the order of ggml); returns the size of the data. [bytes]"""
    infos, end = list[bytes](), 0
    for name, (dtype, shape) in tensors.items():
        number, block, size = GGML_TYPES[dtype]
        infos.append(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", number, end))
        held = math.prod(shape) // block * size
        end += -(-held // 32) * 32
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    content = start + b"".join(_text(key) + _value(value) for key, value in metadata.items()) + b"".join(infos)
    with open(file, "wb") as out:
        out.write(content)
        out.truncate(-(-len(content) // 32) * 32 + end - cut)
    return sum(math.prod(shape) // GGML_TYPES[dtype][1] * GGML_TYPES[dtype][2] for dtype, shape in tensors.values())


def llama_gguf(
    layers: int = 32, width: int = 4096, kv: int = 1024, hidden: int = 14336, vocab: int = 128256
) -> tuple[dict[str, object], dict[str, tuple[str, Shape]]]:
    """Metadata and tensors of a Llama as llama.cpp writes it, in its mix Q4_K_M."""
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.file_type": 15,
        "llama.block_count": layers,
        "llama.context_length": 131072,
        "llama.embedding_length": width,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": width // 128,
        "llama.attention.head_count_kv": kv // 128,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 128,
        "llama.vocab_size": vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(1000)],
    }
    tensors: dict[str, tuple[str, Shape]] = {
        "token_embd.weight": ("q4_k", (width, vocab)),
        "output_norm.weight": ("float32", (width,)),
        "output.weight": ("q6_k", (width, vocab)),
        "rope_freqs.weight": ("float32", (64,)),
    }
    for i in range(layers):
        more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
        wide = "q6_k" if more else "q4_k"
        tensors |= {
            f"blk.{i}.attn_norm.weight": ("float32", (width,)),
            f"blk.{i}.ffn_norm.weight": ("float32", (width,)),
            f"blk.{i}.attn_q.weight": ("q4_k", (width, width)),
            f"blk.{i}.attn_k.weight": ("q4_k", (width, kv)),
            f"blk.{i}.attn_v.weight": (wide, (width, kv)),
            f"blk.{i}.attn_output.weight": ("q4_k", (width, width)),
            f"blk.{i}.ffn_gate.weight": ("q4_k", (width, hidden)),
            f"blk.{i}.ffn_up.weight": ("q4_k", (width, hidden)),
            f"blk.{i}.ffn_down.weight": (wide, (hidden, width)),
        }
    return metadata, tensors


def gguf_tensors(
    model: TransformerConfig, dtype: str = "q8_0", windows: Sequence[bool] | None = None
) -> dict[str, tuple[str, Shape]]:
    """Tensors of a model under the names that llama.cpp gives them; of vectors, those that say something.

    Layers come in the order of the model's groups, or in that of `windows`.
    """
    layers = [group.layer for group in model.layers for _ in range(group.count)]
    if windows is not None:
        sliding = iter([one for one in layers if one.attention and one.attention.limit])
        full = iter([one for one in layers if not (one.attention and one.attention.limit)])
        layers = [next(sliding if window else full) for window in windows]
    found: dict[str, tuple[str, Shape]] = {
        "token_embd.weight": (dtype, (model.d_model, model.vocab_size)),
        "output_norm.weight": ("float32", (model.d_model,)),
    }
    if not model.tied_embeddings:
        found["output.weight"] = (dtype, (model.d_model, model.vocab_size))
    for i, layer in enumerate(layers):
        for name, shape in _layer_tensors(model, layer).items():
            usual = len(shape) > 1 and shape[0] % GGML_TYPES[dtype][1] == 0
            found[f"blk.{i}.{name}"] = (dtype if usual else "float32", shape)
    return found


def _layer_tensors(model: TransformerConfig, layer: Layer) -> dict[str, Shape]:
    found: dict[str, Shape] = {"attn_norm.weight": (model.d_model,)}
    kind = layer.attention
    for weight in (*layer.mixers(model.d_model), *layer.mlps(model.d_model)):
        copies = (weight.experts,) if weight.role == "expert" else ()
        halves = (weight.outputs // 2, *copies)
        first = GGUF_TENSORS.get(weight.name, (weight.name,))[0]
        match weight.name:
            case "qkv" if isinstance(kind, Attention):
                found["attn_q.weight"] = (weight.inputs, weight.outputs)
                if not kind.shares_kv:
                    found["attn_k.weight"] = (weight.inputs, kind.kv_heads * kind.head_dim)
                    if not kind.keys_are_values:
                        found["attn_v.weight"] = (weight.inputs, kind.kv_heads * kind.value_width)
                if kind.qkv_bias:
                    found["attn_q.bias"] = (weight.outputs,)
                if kind.o_bias:
                    found["attn_output.bias"] = (model.d_model,)
            case "gate_up" | "shared_gate_up" | "expert_gate_up":
                found[f"{first}.weight"] = found[f"{first.replace('_up', '_gate')}.weight"] = (weight.inputs, *halves)
            case "out" if isinstance(layer.recurrent, Recurrent):
                name = "shortconv.out_proj" if layer.recurrent.kind == "short convolution" else "ssm_out"
                found[f"{name}.weight"] = (weight.inputs, weight.outputs)
                found["ssm_a" if name == "ssm_out" else "shortconv.conv.weight"] = (8,)
            case "in" if layer.recurrent is not None and layer.recurrent.kind == "short convolution":
                found["shortconv.in_proj.weight"] = (weight.inputs, weight.outputs)
            case _:
                found[f"{first}.weight"] = (weight.inputs, weight.outputs + weight.kv_outputs, *copies)
    return found
