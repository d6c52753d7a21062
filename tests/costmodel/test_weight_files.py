"""Checkpoint directories: sizes and types from the headers of safetensors files."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import Shape, write_safetensors

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.tensors.safetensors import INDEX, read_header
from magicdec.executor.reference_model import reference_model_dir

Tensors = dict[str, tuple[str, Shape]]
LAYERS, WIDTH, HIDDEN, KV, VOCAB = 4, 512, 1024, 128, 1000
CONFIG: dict[str, object] = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip
MATRICES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KV, WIDTH), "self_attn.v_proj": (KV, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}  # fmt: skip


def packed(kind: str, name: str, shape: tuple[int, int]) -> Tensors:
    """The tensors of one matrix as checkpoints of this kind hold it."""
    rows, columns = shape
    match kind:
        case "fp8":
            return {
                f"{name}.weight": ("F8_E4M3", shape),
                f"{name}.weight_scale_inv": ("F32", (-(-rows // 128), -(-columns // 128))),
            }
        case "nvfp4":
            return {
                f"{name}.weight": ("U8", (rows, columns // 2)),
                f"{name}.weight_scale": ("F8_E4M3", (rows, columns // 16)),
                f"{name}.weight_scale_2": ("F32", ()),
                f"{name}.input_scale": ("F32", ()),
            }
        case "w4g128":
            return {
                f"{name}.qweight": ("I32", (columns // 8, rows)),
                f"{name}.qzeros": ("I32", (columns // 128, rows // 8)),
                f"{name}.scales": ("F16", (columns // 128, rows)),
                f"{name}.g_idx": ("I32", (columns,)),
            }
        case "nf4_nested":
            groups = rows * columns // 64
            return {
                f"{name}.weight": ("U8", (rows * columns // 2, 1)),
                f"{name}.weight.absmax": ("U8", (groups,)),
                f"{name}.weight.nested_absmax": ("F32", (-(-groups // 256),)),
                f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", (200,)),
            }
    return {f"{name}.weight": ("BF16", shape)}


def tensors_of(kind: str = "bfloat16", prefix: str = "model.", kept: tuple[str, ...] = ()) -> Tensors:
    found: Tensors = {
        f"{prefix}embed_tokens.weight": ("BF16", (VOCAB, WIDTH)),
        "lm_head.weight": ("BF16", (VOCAB, WIDTH)),
        f"{prefix}norm.weight": ("BF16", (WIDTH,)),
    }
    for i in range(LAYERS):
        for name, shape in MATRICES.items():
            found |= packed("bfloat16" if name in kept else kind, f"{prefix}layers.{i}.{name}", shape)
        found |= {
            f"{prefix}layers.{i}.{name}.weight": ("BF16", (WIDTH,)) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return found


def checkpoint(folder: Path, tensors: Tensors, shards: int = 1, **config: object) -> int:
    """Write a checkpoint; returns the size of its tensors. [bytes]"""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if shards == 1:
        return write_safetensors(folder / "model.safetensors", tensors)
    names, size = list(tensors), 0
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        size += write_safetensors(folder / file, {name: tensors[name] for name in names[i::shards]})
    index = {"metadata": {"total_size": size}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(index))
    return size


def dtypes(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for matrix in resolve_model(str(folder)).matrices():
        found.setdefault(matrix.name, set()).add(matrix.dtype)
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_sizes_are_those_of_the_files(shards: int, tmp_path: Path) -> None:
    size = checkpoint(tmp_path, tensors_of(), shards)
    model = resolve_model(str(tmp_path))
    assert model.weight_bytes == size
    assert model.stored is not None
    assert model.stored.bytes_by_type == (("bfloat16", size),)
    assert model.stored.unlisted_bytes == 0
    assert not model.groups  # still the few numbers of a plain decoder, which the executor reads
    assert not model.notes


def test_the_shipped_checkpoint_has_the_size_of_its_file() -> None:
    folder = reference_model_dir()
    with open(folder / "model.safetensors", "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert resolve_model(str(folder)).weight_bytes == (folder / "model.safetensors").stat().st_size - header


BLOCKS: dict[str, dict[str, object]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "w4g128": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
    "nf4_nested": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
}


# Packed integers do not tell their bits, so a config has to.
@pytest.mark.parametrize(
    ("kind", "stated"), [*((kind, True) for kind in BLOCKS), ("fp8", False), ("nvfp4", False), ("nf4_nested", False)]
)
def test_types_of_quantised_checkpoints_are_those_of_their_tensors(kind: str, stated: bool, tmp_path: Path) -> None:
    config = {"quantization_config": BLOCKS[kind]} if stated else {}
    size = checkpoint(tmp_path, tensors_of(kind, kept=("self_attn.o_proj",)), **config)
    assert resolve_model(str(tmp_path)).weight_bytes == size
    held = dtypes(tmp_path)
    assert held["qkv"] == held["gate_up"] == held["down"] == {kind}
    assert held["o"] == {"bfloat16"}  # which the config does not say
    assert held["head"] == {"bfloat16"}


def test_prediction_modules_and_encoders_are_told_from_the_decoder(tmp_path: Path) -> None:
    tensors = tensors_of(prefix="model.language_model.")
    decoder = checkpoint(tmp_path, tensors)
    tensors |= {f"model.language_model.layers.{LAYERS}.{name}.weight": ("BF16", shape) for name, shape in MATRICES.items()}
    tensors |= {"mtp.fc.weight": ("BF16", (WIDTH, 2 * WIDTH)), "model.visual.blocks.31.attn.qkv.weight": ("BF16", (96, 32))}
    checkpoint(tmp_path, tensors)
    model = resolve_model(str(tmp_path))
    assert model.weight_bytes == decoder + 96 * 32 * 2
    assert model.vision_params == 96 * 32


def test_an_index_without_its_files_gives_the_total(tmp_path: Path) -> None:
    size = checkpoint(tmp_path, tensors_of(), 2)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    index = json.loads((tmp_path / INDEX).read_text())
    index["metadata"]["total_size"] = size + 5000
    (tmp_path / INDEX).write_text(json.dumps(index))
    model = resolve_model(str(tmp_path))
    assert model.weight_bytes == size + 5000
    assert "total" in model.notes[0]
    index["metadata"]["total_size"] = size // 3
    (tmp_path / INDEX).write_text(json.dumps(index))
    model = resolve_model(str(tmp_path))
    assert model.weight_bytes == size
    assert "far from" in model.notes[0]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, tensors_of(), num_hidden_layers=40)
    with pytest.raises(InputError, match=r"model\.safetensors: tensors: expected about .* parameters, as the keys describe"):
        resolve_model(str(tmp_path))


def test_an_index_and_its_files_must_agree(tmp_path: Path) -> None:
    checkpoint(tmp_path, tensors_of(), 2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    held = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match=r"weight_map: expected all of the 2 files that it names, found no model-00002-of-00002"):
        resolve_model(str(tmp_path))
    write_safetensors(second, {"other": ("BF16", (2, 2))})
    with pytest.raises(InputError, match=r"expected this tensor, as model\.safetensors\.index\.json says, found nothing"):
        resolve_model(str(tmp_path))
    second.write_bytes(held)
    for name in ("../x.safetensors", "/etc/passwd", "a/b", "", ".."):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
        with pytest.raises(InputError, match="expected a file in the same folder"):
            resolve_model(str(tmp_path))


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ONE = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header: expected 8 bytes with the length"),
        (b"1234567", "header: expected 8 bytes with the length"),
        (struct.pack("<Q", 2**63) + b"{}", "header: expected 8 bytes with the length"),
        (struct.pack("<Q", 2) + b"[]", "expected a safetensors header as a JSON object"),
        (struct.pack("<Q", 2) + b"\xff\xff", "header: expected JSON in UTF-8"),
        (header({"t": ONE})[:-1], "header: expected 8 bytes with the length"),
        (header({"t": ONE}) + b"\0" * 7, r"t\.data_offsets: expected two places within the 7 bytes of data, found \[0, 8\]"),
        (header({"t": ONE}) + b"\0" * 9, "header: expected tensors that fill the 9 bytes of data, found tensors of 8 bytes"),
        (header({"t": {**ONE, "shape": [2, 3]}}) + b"\0" * 8, r"t\.data_offsets: expected 12 bytes for BF16 \[2, 3\], found 8"),
        (header({"t": {**ONE, "shape": [2**40] * 8}}) + b"\0" * 8, r"t\.data_offsets: expected"),
        (header({"t": {**ONE, "shape": [2, -2]}}) + b"\0" * 8, "t: expected a dtype, and a shape of whole numbers"),
        (header({"t": {**ONE, "dtype": 3}}) + b"\0" * 8, "t: expected a dtype, and a shape of whole numbers"),
        (header({"t": {**ONE, "data_offsets": [8, 0]}}) + b"\0" * 8, r"t\.data_offsets: expected two places"),
        (header({"t": ONE, "u": ONE}) + b"\0" * 8, r"u\.data_offsets: expected 8, where the tensor before it ends, found 0"),
        (header({"t": [1]}) + b"\0" * 8, "t: expected dtype, shape and data_offsets"),
        (struct.pack("<Q", 24) + b'{"t": {}, "t": {}}      ', "the key 't' is given twice"),
    ],
)
def test_damaged_headers_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"m\.safetensors: .*{message}|m\.safetensors: {message}"):
        read_header(file)


def test_a_header_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", 2**39))
        out.truncate(2**40)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"header: expected at most 64 MiB, found 549,755,813,888 bytes"):
        read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5000), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_model_or_one_message(place: int, value: int, tmp_path: Path) -> None:
    checkpoint(tmp_path, tensors_of())
    with open(tmp_path / "model.safetensors", "r+b") as out:
        out.seek(place)
        out.write(bytes([value]))
    message = ""
    try:
        resolve_model(str(tmp_path))
    except InputError as error:
        message = str(error)
    assert not message or message.startswith(str(tmp_path))
