"""Conversion of the header of a GGUF file to a TransformerConfig."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..base.errors import InputError
from ..hf.gguf_keys import converted
from ..hf.stored import TensorList
from ..tensors.gguf import read_gguf
from .hf_config import parse_hf_config
from .transformer import TransformerConfig

FILE_TYPES = {  # of `general.file_type`, for people; source: `LlamaFileType` in the package `gguf`
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS",
    31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


def load_gguf(path: str | Path, *, name: str) -> TransformerConfig:
    """Read a model from the header of its GGUF file, or of one of its files.

    Args:
        path: The file.
        name: Display name of the model.

    Raises:
        InputError: A file is missing, damaged or contradicts itself, or its architecture is not known.
    """
    file = read_gguf(Path(path))
    config = converted(file)
    listed = TensorList(file.tensors, file.where, config.prediction, ggml=True)
    try:
        model = parse_hf_config(config.raw, where=file.where, name=name, tensors=listed)
    except InputError as error:
        raise config.explained(error) from None
    kind = FILE_TYPES.get(stated) if isinstance(stated := file.metadata.get("general.file_type"), int) else None
    text = "the KV cache counts in 16 bits, as llama.cpp keeps it by default"
    return replace(
        model, notes=(*((f"a GGUF file called {kind}: types are those of its tensors",) if kind else ()), text, *model.notes)
    )
