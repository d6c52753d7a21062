"""Checkpoint directories: config.json and safetensors files, read without pickles and checked tensor by tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.costmodel.base.files import read_text
from magicdec.costmodel.base.json_text import load_json_object
from magicdec.costmodel.base.json_types import JsonObject
from magicdec.costmodel.models.hf_config import EXECUTABLE_FAMILIES, load_config
from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels.build import kernels
from .dtypes import cpu_execution
from .tensor_parallel import SINGLE_PROCESS, Ranks
from .transformer import Transformer

SAFETENSORS_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
MAX_INDEX_BYTES = 64 * 2**20  # an index names every tensor
DIGESTED_BYTES = 2**16  # at either end of a file
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")  # buffers in old checkpoints


def load_model(
    folder: str | Path, *, device: str = "cpu", dtype: str | None = None, name: str | None = None, ranks: Ranks = SINGLE_PROCESS
) -> Transformer:
    """Load a checkpoint directory for inference.

    Files are memory-mapped, and only this process's shard of each tensor is read.

    Args:
        folder: Holds `config.json` and `*.safetensors`, as Hugging Face checkpoints do.
        device: Where the weights go.
        dtype: Convert the weights to it; None keeps the dtype of `config.json`, or on a CPU uses those of `cpu_execution`.
        name: The model's name in messages; None for the folder's name.
        ranks: The processes that share the model.

    Raises:
        InputError: A file is missing or unreadable; tensors are missing, left over or of the wrong shape; the architecture
            cannot be executed; there is no such device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise bad("device", "", "cpu, because torch finds no CUDA device", repr(device))
    folder = Path(folder)
    config = load_config(folder, name=name)
    if config.family not in EXECUTABLE_FAMILIES:
        expected = f"an architecture that can be executed ({', '.join(EXECUTABLE_FAMILIES)})"
        raise bad(folder / "config.json", "model_type", expected, f"{config.family}, which can only be planned")
    files = _safetensors_files(folder)
    if dtype is None and device == "cpu":
        config = _as_stored(cpu_execution(config, kernels=ranks.size == 1 and kernels() is not None), files)
    else:
        config = config.with_dtype(dtype or config.dtype)
    with torch.device("meta"):
        model, whole = Transformer(config, ranks), Transformer(config)
    wanted = {
        key: _Wanted(own.dtype, tuple(full.shape), ranks.shard_slices(full.shape, own.shape))
        for (key, own), (_, full) in zip(_parameters(model).items(), _parameters(whole).items(), strict=True)
    }
    tensors = _read_tensors(folder, files, wanted, config.tied_embeddings, device)
    model.load_state_dict(tensors, strict=False, assign=True)
    if config.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.fill_rope_tables()
    return model.eval().requires_grad_(False)


def stop_tokens(folder: str | Path) -> tuple[int, ...]:
    """Token ids that end a text: `eos_token_id` of generation_config.json, else of config.json, else none.

    Raises:
        InputError: A file is unreadable, or `eos_token_id` is neither an id nor a list of ids.
    """
    for file in (Path(folder) / "generation_config.json", Path(folder) / "config.json"):
        found = (_read_json(file) if file.is_file() else {}).get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in ids):
                raise bad(file, "eos_token_id", "a token id or a list of them", repr(found))
            return tuple(ids)
    return ()


def checkpoint_digest(folder: str | Path) -> str:
    """Fingerprint of a checkpoint's weights: 16 hexadecimal digits of a hash over the sizes and both ends of its files.

    A safetensors file begins with the names and shapes of its tensors and ends with weights. Training or rounding changes
    weights everywhere, so the ends are enough.

    Raises:
        InputError: The index of the files is unreadable.
    """
    digest = hashlib.sha256()
    for file in _safetensors_files(Path(folder)):
        with open(file, "rb") as weights:
            size = weights.seek(0, os.SEEK_END)
            digest.update(f"{file.name} {size}".encode())
            for start in (0, max(size - DIGESTED_BYTES, 0)):
                weights.seek(start)
                digest.update(weights.read(DIGESTED_BYTES))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Wanted:
    """What is read of one tensor: its dtype here, its whole shape, and this process's shard of it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: tuple[slice, ...]


def _parameters(model: Transformer) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _read_json(file: Path) -> JsonObject:
    return load_json_object(read_text(file, "JSON file", max_bytes=MAX_INDEX_BYTES), str(file), "a JSON file", finite=False)


def _safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index names, else all."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise bad(index, "weight_map", "a map from tensor names to files", repr(weight_map))
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise bad(index, "weight_map", "names of files in the same folder", repr(name))
    return sorted({folder / str(name) for name in weight_map.values()})


def _as_stored(config: TransformerConfig, files: list[Path]) -> TransformerConfig:
    """Keep 16-bit matrices only where the files store all of their kind in that dtype; others would be rounded."""
    layers: set[str] = set()
    tables: set[str] = set()
    for file in files:
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as archive:
            for key in archive.keys():  # noqa: SIM118 (an archive is no mapping)
                part = archive.get_slice(key)
                if len(part.get_shape()) == 2 and not _unused(key, config.tied_embeddings):
                    (layers if ".layers." in key else tables).add(part.get_dtype())
    return replace(
        config,
        linear_dtype=config.linear_dtype if layers == {SAFETENSORS_DTYPES.get(config.linear_dtype or "")} else None,
        embedding_dtype=config.embedding_dtype if tables == {SAFETENSORS_DTYPES.get(config.embedding_dtype or "")} else None,
    )


def _unused(key: str, tied_embeddings: bool) -> bool:
    """True for a tensor that checkpoints may contain but no model reads."""
    return key.endswith(IGNORED_SUFFIXES) or (key == "lm_head.weight" and tied_embeddings)


def _read_tensors(
    folder: Path, files: list[Path], wanted: Mapping[str, _Wanted], tied_embeddings: bool, device: str
) -> dict[str, Tensor]:
    """Read this process's shard of every wanted tensor. All problems are reported together."""
    if not files:
        pickles = [file.name for file in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        found = f"only {', '.join(pickles)}: pickles can run any code and are never loaded" if pickles else "none"
        raise bad(folder, "", "*.safetensors files", found)
    tensors: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            with safe_open(file, "pt") as archive:
                for key in archive.keys():  # noqa: SIM118 (an archive is no mapping)
                    if _unused(key, tied_embeddings):
                        continue
                    stored = archive.get_slice(key)
                    shape, dtype = stored.get_shape(), stored.get_dtype()
                    if key not in wanted:
                        problems.append(Problem(str(file), key, "no such tensor for this config.json", f"shape {list(shape)}"))
                    elif dtype not in SAFETENSORS_DTYPES.values():
                        problems.append(Problem(str(file), key, f"a dtype out of {', '.join(SAFETENSORS_DTYPES.values())}", dtype))
                    elif tuple(shape) != wanted[key].shape:
                        problems.append(Problem(str(file), key, f"shape {list(wanted[key].shape)}", f"shape {list(shape)}"))
                    else:
                        tensors[key] = stored[wanted[key].shard].to(device, wanted[key].dtype)
        except (SafetensorError, OSError) as error:
            raise bad(file, "", "a readable safetensors file", error) from None
    seen = set(tensors) | {problem.key for problem in problems}
    tied = {"lm_head.weight"} if tied_embeddings else set()
    missing = sorted(set(wanted) - seen - tied)
    problems += [Problem(str(folder), key, f"a tensor of shape {list(wanted[key].shape)}", "nothing") for key in missing]
    if problems:
        raise InputError(*problems)
    return tensors
