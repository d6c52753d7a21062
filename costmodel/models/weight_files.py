"""Exact sizes of a model from the headers of its weight files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..base.errors import bad
from ..base.units import format_bytes
from ..hf.stored import TensorList, WeightFiles
from ..layers.dtypes import BYTES_PER_ELEMENT
from ..layers.layer import Layer
from ..tensors.safetensors import INDEX, read_folder, read_index
from .architecture import StoredWeights
from .transformer import TransformerConfig

# Files may hold more than the layers: copies of tied matrices, buffers, scales. Beyond this they are those of another model.
NOTED, REFUSED, REFUSED_GGUF = 0.03, 0.4, 0.1


def folder_tensors(folder: Path) -> TensorList | None:
    """The tensors of a checkpoint directory; None if it has no weight files.

    Raises:
        InputError: A weight file is missing or damaged.
    """
    found = read_folder(folder)
    return TensorList(found[0], str(found[1])) if found is not None else None


def attached(model: TransformerConfig, files: WeightFiles) -> TransformerConfig:
    """The model with what its weight files hold.

    Raises:
        InputError: They hold far more or far less than the model has.
    """
    held, expected, what = float(files.elements), float(model.params), "parameters"
    if model.tied_embeddings and files.of_head() is not None:
        expected += model.embedding_params
    if files.packed:
        held, expected, what = float(files.total_bytes), model.weight_bytes, "bytes"
    off = held / expected - 1
    if not -(REFUSED_GGUF if files.ggml else REFUSED) <= off <= (REFUSED_GGUF if files.ggml else 1 / (1 - REFUSED) - 1):
        raise bad(files.where, "tensors", f"about {expected:,.0f} {what}, as the keys describe the model", f"{held:,.0f}")
    notes = model.notes
    if abs(off) > NOTED:
        notes += (f"the weight files hold {off:+.0%} {what} against what the config describes; sizes are those of the files",)
    by_type = sorted(((dtype, float(size)) for dtype, size in files.bytes_by_type.items()), key=lambda item: -item[1])
    return replace(model, stored=StoredWeights(tuple(by_type), files.total_bytes - model.weight_bytes), notes=notes)


def with_index_total(model: TransformerConfig, folder: Path) -> TransformerConfig:
    """The model with the total size that the index of a directory states, where the weight files themselves are not there.

    Raises:
        InputError: The index is damaged.
    """
    if not (folder / INDEX).is_file():
        return model
    named, total = read_index(folder / INDEX)
    if total is None:
        return model
    if any(".mtp." in f".{name}" or ".nextn." in name or f".layers.{model.num_layers}." in name for name in named):
        total -= round(model.num_mtp * _prediction_bytes(model))
    off = total / model.weight_bytes - 1
    if not -REFUSED <= off <= 1 / (1 - REFUSED) - 1:
        text = f"its index states {format_bytes(total)}, far from what its config describes; sizes are counted from the config"
        return replace(model, notes=(*model.notes, text))
    text = f"the size of the weights is the total that {INDEX} states"
    return replace(model, stored=StoredWeights((), total - model.weight_bytes), notes=(*model.notes, text))


def _prediction_bytes(model: TransformerConfig) -> float:
    size = 0.0
    for group in model.mtp:
        stored = dict(group.stored)
        for part in (Layer.mixers, Layer.mlps):
            for weight in part(group.layer, model.d_model):
                dtype = stored.get(weight.name) or (model.expert_dtype if weight.role == "expert" else model.linear_dtype)
                size += group.count * weight.params * BYTES_PER_ELEMENT[dtype or model.dtype]
    return size
