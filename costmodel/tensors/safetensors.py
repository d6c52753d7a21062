"""Headers of safetensors files, read without the weights.

A file is 8 bytes with the length of the header, the header in JSON, and the data, which the header must describe to the last byte.
Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import os
from pathlib import Path

from ..base.errors import bad
from ..base.files import read_text
from ..base.json_text import load_json_object
from ..base.json_types import Json, JsonObject
from ..base.limits import MAX_HEADER_BYTES, MAX_HEADER_VALUES, MAX_TENSOR_BYTES
from .tensor import Tensor

INDEX = "model.safetensors.index.json"
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8"} | {
    name: "fp8" for name in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
}
NO_WEIGHTS = ("adapter_", "consolidated", "optimizer", "training_")  # beginnings of other files that lie in checkpoint folders


def read_header(path: Path) -> list[Tensor]:
    """Read the tensors that one file holds.

    Raises:
        InputError: The file cannot be read, is cut off, or its header does not describe the data that follows.
    """
    where = str(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                expected = "8 bytes with the length of the header, then the header"
                raise bad(where, "header", expected, f"a file of {size:,} bytes" + (f", header of {length:,}" if size >= 8 else ""))
            if length > MAX_HEADER_BYTES:
                raise bad(where, "header", f"at most {MAX_HEADER_BYTES // 2**20} MiB", f"{length:,} bytes")
            content = file.read(length)
    except OSError as error:
        raise bad(where, "", "a readable safetensors file", error.strerror or error) from None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise bad(where, "header", "JSON in UTF-8", "other bytes") from None
    found = load_json_object(text, where, "a safetensors header", max_values=MAX_HEADER_VALUES, max_text_length=MAX_HEADER_BYTES)
    found.pop("__metadata__", None)
    return _tensors(found, where, size - 8 - length)


def _tensors(header: JsonObject, where: str, data_bytes: int) -> list[Tensor]:
    tensors, spans = list[Tensor](), list[tuple[int, int, str]]()
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise bad(where, name, "dtype, shape and data_offsets", entry)
        dtype, shape, offsets = entry.get("dtype"), _wholes(entry.get("shape")), _wholes(entry.get("data_offsets"))
        if not isinstance(dtype, str) or shape is None or len(shape) > 8:
            raise bad(where, name, "a dtype, and a shape of whole numbers", f"{dtype!r}, {entry.get('shape')!r}")
        if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
            raise bad(
                where, f"{name}.data_offsets", f"two places within the {data_bytes:,} bytes of data", entry.get("data_offsets")
            )
        held, elements = offsets[1] - offsets[0], 1
        for extent in shape:
            elements = min(elements * extent, MAX_TENSOR_BYTES)
        if dtype in BITS and held * 8 != elements * BITS[dtype]:
            raise bad(
                where, f"{name}.data_offsets", f"{elements * BITS[dtype] // 8:,} bytes for {dtype} {list(shape)}", f"{held:,}"
            )
        tensors.append(Tensor(name, NAMES.get(dtype, dtype.lower()), shape, held))
        spans.append((offsets[0], offsets[1], name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise bad(where, f"{name}.data_offsets", f"{end:,}, where the tensor before it ends", f"{first:,}")
        end = last
    if end != data_bytes:
        raise bad(where, "header", f"tensors that fill the {data_bytes:,} bytes of data", f"tensors of {end:,} bytes")
    return tensors


def _wholes(value: Json) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    found = [item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
    return tuple(found) if len(found) == len(value) else None


def read_index(path: Path) -> tuple[dict[str, str], int | None]:
    """Read an index of a checkpoint in several files.

    Returns:
        The file of each tensor, and the size of all tensors, if it is given. [bytes]

    Raises:
        InputError: It is no index, or names a file that is not beside it.
    """
    where = str(path)
    index = load_json_object(
        read_text(path, "index", max_bytes=2 * MAX_HEADER_BYTES), where, "an index", finite=False, max_values=MAX_HEADER_VALUES
    )
    named, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(named, dict) or not named:
        raise bad(where, "weight_map", "a map from tensor names to files", named if named is None else type(named).__name__)
    files = {}
    for tensor, name in named.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise bad(where, f"weight_map.{tensor}", "a file in the same folder", repr(name))
        files[tensor] = name
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    if total is not None and (not isinstance(total, int) or isinstance(total, bool) or not 0 < total < MAX_TENSOR_BYTES):
        raise bad(where, "metadata.total_size", "a number of bytes", total)
    return files, total


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint without index: all of its weights, or none."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith(NO_WEIGHTS))


def read_folder(folder: Path) -> tuple[list[Tensor], Path] | None:
    """Read the tensors of all weight files of a checkpoint.

    Returns:
        The tensors, and the file to name in messages about them; None if there are no weight files.

    Raises:
        InputError: A file that the index names is missing, a header is damaged, or index and headers contradict each other.
    """
    index = folder / INDEX
    if not index.is_file():
        files = weight_files(folder)
        return ([tensor for file in files for tensor in read_header(file)], files[0]) if files else None
    named, _ = read_index(index)
    names = sorted(set(named.values()))
    present = [name for name in names if (folder / name).is_file()]
    if not present:
        return None
    if len(present) < len(names):
        missing = next(name for name in names if name not in present)
        raise bad(index, "weight_map", f"all of the {len(names)} files that it names", f"no {missing}")
    tensors = list[Tensor]()
    for name in names:
        tensors += [tensor for tensor in read_header(folder / name) if named.get(tensor.name, name) == name]
    absent = named.keys() - {tensor.name for tensor in tensors}
    if absent:
        tensor = min(absent)
        raise bad(folder / named[tensor], tensor, f"this tensor, as {INDEX} says", "nothing")
    return tensors, index
