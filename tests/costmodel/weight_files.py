"""Writes weight files with true headers and no data: the files are sparse."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from magicdec.costmodel.layers.dtypes import GGML_TYPES
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
    parts, infos, end = list[bytes](), list[bytes](), 0
    for name, (dtype, shape) in tensors.items():
        number, block, size = GGML_TYPES[dtype]
        infos.append(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", number, end))
        held = math.prod(shape) // block * size
        parts.append(b"")
        end += -(-held // 32) * 32
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    content = start + b"".join(_text(key) + _value(value) for key, value in metadata.items()) + b"".join(infos)
    with open(file, "wb") as out:
        out.write(content)
        out.truncate(-(-len(content) // 32) * 32 + end - cut)
    return sum(math.prod(shape) // GGML_TYPES[dtype][1] * GGML_TYPES[dtype][2] for dtype, shape in tensors.values())


def llama_gguf(layers: int = 32, width: int = 4096, kv: int = 1024, hidden: int = 14336, vocab: int = 128256, *, mix: bool = True):
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
        wide = "q6_k" if more and mix else "q4_k"
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
