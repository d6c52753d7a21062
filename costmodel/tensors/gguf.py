"""Headers of GGUF files: metadata and tensors, read without the weights.

An own reader, since that of the package `gguf` maps whole files and makes arrays of every token (seconds, and gigabytes of address
space), and trusts the counts in a file. Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ..base.errors import bad
from ..base.limits import MAX_HEADER_BYTES, MAX_TENSOR_BYTES
from ..layers.dtypes import GGML_TYPES
from .tensor import Tensor

Value = int | float | bool | str | list["int | float | bool"] | None
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TYPES = {number: (name, elements, size) for name, (number, elements, size) in GGML_TYPES.items()}
MAX_KEYS, MAX_TENSORS, MAX_NAME = 65_536, 262_144, 1024
MAX_TEXTS = 4_000_000  # tokens and merges of a vocabulary: read over, not kept
MAX_KEPT = 8192  # numbers of an array: one for each layer
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufFile:
    """The header of a model in one file or several.

    Attributes:
        where: The first file, for messages.
        metadata: Values by key; None for texts in lists and for long lists, which are not kept.
        tensors: Tensors of all files.
    """

    where: str
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]


def is_gguf(path: str | Path) -> bool:
    """Whether a path is called like a GGUF file, in any case."""
    return str(path).lower().endswith(".gguf")


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a model; of a model in several files, any of them may be given.

    Raises:
        InputError: A file cannot be read, is missing or cut off, or its header contradicts itself or the file.
    """
    part = PART.search(path.name)
    if part is None:
        metadata, tensors = _read_file(path)
        count = metadata.get("split.count")
        if isinstance(count, int) and count > 1:
            raise bad(path, "split.count", "files called NAME-00001-of-0000N.gguf for a model in several files", count)
        return GgufFile(str(path), metadata, tuple(tensors))
    count = int(part[2])
    if not 1 <= count <= 1000:
        raise bad(path, "", "a name with at most 1000 parts", path.name)
    files = [path.with_name(f"{path.name[: part.start()]}-{i:05}-of-{part[2]}.gguf") for i in range(1, count + 1)]
    if (missing := next((file for file in files if not file.is_file()), None)) is not None:
        raise bad(missing, "", f"all {count} files of this model", "no such file")
    parts = [_read_file(file) for file in files]
    metadata, tensors = parts[0][0], [tensor for _, held in parts for tensor in held]
    stated = metadata.get("split.tensors.count")
    if isinstance(stated, int) and stated != len(tensors):
        raise bad(files[0], "split.tensors.count", f"{len(tensors)}, the tensors of all files", stated)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise bad(files[0], "tensors", "each tensor once in all files", "one more often")
    return GgufFile(str(files[0]), metadata, tuple(tensors))


def _read_file(path: Path) -> tuple[dict[str, Value], list[Tensor]]:
    try:
        with open(path, "rb") as file:
            return _Header(file, str(path)).read()
    except OSError as error:
        raise bad(path, "", "a readable GGUF file", error.strerror or error) from None


class _Header:
    """Reads a header from front to back; `key` is what is being read, for messages."""

    def __init__(self, file: BinaryIO, where: str):
        self.file, self.where, self.key = file, where, ""
        self.size = os.fstat(file.fileno()).st_size
        self.position, self.texts = 0, 0

    def wrong(self, expected: str, found: object) -> NoReturn:
        raise bad(self.where, self.key, expected, found)

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > min(self.size, MAX_HEADER_BYTES):
            if self.position <= self.size:
                self.wrong(f"a header of at most {MAX_HEADER_BYTES // 2**20} MiB", "a larger one")
            self.wrong(f"{count:,} more bytes", f"the end of the file, after {self.size:,} bytes")
        return self.file.read(count)

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self, longest: int) -> str:
        length = self.number("<Q")
        if length > longest:
            self.wrong(f"a text of at most {longest:,} bytes", f"{length:,}")
        return self.take(length).decode("utf-8", "replace")

    def read(self) -> tuple[dict[str, Value], list[Tensor]]:
        magic = self.take(4) if self.size >= 4 else b""
        if magic != b"GGUF":
            self.wrong("a GGUF file", f"one that begins with {magic!r}")
        self.key = "version"
        version = self.number("<I")
        if version not in (2, 3):
            self.wrong("2 or 3, little-endian", version)
        self.key = "tensor count"
        if (tensors := self.number("<Q")) > MAX_TENSORS:
            self.wrong(f"at most {MAX_TENSORS:,}", f"{tensors:,}")
        self.key = "key count"
        if (keys := self.number("<Q")) > MAX_KEYS:
            self.wrong(f"at most {MAX_KEYS:,}", f"{keys:,}")
        metadata: dict[str, Value] = {}
        for i in range(keys):
            self.key = f"key {i}"
            self.key = self.text(MAX_NAME)
            if self.key in metadata:
                self.wrong("each key once", "it twice")
            metadata[self.key] = self.value(self.number("<I"))
        return metadata, self.tensors(tensors, metadata)

    def value(self, kind: int) -> Value:
        if kind in SCALARS:
            return self.scalar(kind)
        if kind == STRING:
            return self.text(MAX_HEADER_BYTES)
        if kind != ARRAY:
            self.wrong("a type of value from 0 to 12", kind)
        inner, count = self.number("<I"), self.number("<Q")
        if inner == STRING:
            self.texts += count
            if self.texts > MAX_TEXTS:
                self.wrong(f"at most {MAX_TEXTS:,} texts", f"{self.texts:,}")
            for _ in range(count):
                self.take(self.number("<Q"))
            return None
        if inner not in SCALARS:
            self.wrong("a list of numbers or texts", f"one of type {inner}")
        content = self.take(count * struct.calcsize(SCALARS[inner]))
        return [item for (item,) in struct.iter_unpack(SCALARS[inner], content)] if count <= MAX_KEPT else None

    def scalar(self, kind: int) -> int | float | bool:
        form = SCALARS[kind]
        found: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def tensors(self, count: int, metadata: Mapping[str, Value]) -> list[Tensor]:
        found, spans, names = list[Tensor](), list[tuple[int, int, str]](), set[str]()
        for i in range(count):
            self.key = f"tensor {i}"
            self.key = self.text(MAX_NAME)
            if self.key in names:
                self.wrong("each tensor once", "it twice")
            names.add(self.key)
            dimensions = self.number("<I")
            if not 1 <= dimensions <= 4:
                self.wrong("1 to 4 dimensions", dimensions)
            shape = tuple(self.number("<Q") for _ in range(dimensions))
            kind, offset = self.number("<I"), self.number("<Q")
            if kind not in TYPES:
                self.wrong("a type of ggml that is in use", kind)
            dtype, block, size = TYPES[kind]
            elements = 1
            for extent in shape:
                elements *= extent
                if extent < 1 or elements > MAX_TENSOR_BYTES:
                    self.wrong("dimensions from 1, of less than 2^60 elements", list(shape))
            if shape[0] % block:
                self.wrong(f"rows of a multiple of {block} elements in {dtype}", shape[0])
            found.append(Tensor(self.key, dtype, shape, elements // block * size))
            spans.append((offset, offset + elements // block * size, self.key))
        self.check_data(spans, metadata)
        return found

    def check_data(self, spans: list[tuple[int, int, str]], metadata: Mapping[str, Value]) -> None:
        """Tensors begin at multiples of the alignment, do not overlap, and end within the file."""
        self.key = "general.alignment"
        alignment = metadata.get(self.key, 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            self.wrong("a power of two", alignment)
        data, end = -(-self.position // alignment) * alignment, 0
        for first, last, name in sorted(spans):
            self.key = name
            if first % alignment or first < end:
                self.wrong(f"an offset that is a multiple of {alignment} and not within another tensor", f"{first:,}")
            if data + last > self.size:
                self.wrong(
                    f"{last - first:,} bytes from byte {data + first:,} on", f"a file that is cut off at {self.size:,} bytes"
                )
            end = last
