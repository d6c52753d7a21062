"""Checkpoints: a directory with config.json and safetensors files, read without pickles and checked tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.costmodel.models.hf_config import EXECUTABLE_FAMILIES, load_config
from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels.build import kernels
from .dtypes import cpu_execution
from .tensor_parallel import SINGLE_PROCESS, Ranks
from .transformer import Transformer

NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # of types in safetensors files
MOST_PROBLEMS = 20  # as many are shown
DIGESTED_BYTES = 2**16  # at either end of a file
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")  # buffers that old checkpoints carry


def load_model(
    folder: str | Path, *, device: str = "cpu", dtype: str | None = None, name: str | None = None, ranks: Ranks = SINGLE_PROCESS
) -> Transformer:
    """The model of a checkpoint directory, ready for inference.

    Files are mapped into memory, and of each tensor no more is read than this process holds.

    Args:
        folder: Holds `config.json` and `*.safetensors`, as Hugging Face checkpoints do.
        device: Where the weights go.
        dtype: Type they are converted to; None for the one in `config.json`, or on a CPU for what it runs there in.
        name: How the model is called in what is printed; None for the folder's name.
        ranks: The processes that share it.

    Raises:
        InputError: A file is missing or unreadable; tensors are missing, left over or of the wrong shape; the architecture is
            none that is executed here.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise bad("--device", "", "cpu, for torch sees no CUDA device", repr(device))
    folder = Path(folder)
    config = load_config(folder, name=name)
    if config.family not in EXECUTABLE_FAMILIES:
        expected = f"an architecture that is executed here ({', '.join(EXECUTABLE_FAMILIES)})"
        raise bad(folder / "config.json", "model_type", expected, f"{config.family}, which can be planned only")
    files = _shards(folder)
    if dtype is None and device == "cpu":
        config = _as_stored(cpu_execution(config, kernels=ranks.size == 1 and kernels() is not None), files)
    else:
        config = config.with_dtype(dtype or config.dtype)
    with torch.device("meta"):
        model, whole = Transformer(config, ranks), Transformer(config)
    wanted = dict(whole.named_parameters(remove_duplicate=False))
    own = dict(model.named_parameters(remove_duplicate=False))
    parts = {key: ranks.shard_slices(wanted[key].shape, own[key].shape) for key in wanted}
    types = {key: own[key].dtype for key in own}
    tensors = _read_tensors(folder, files, wanted, parts, types, config.tied_embeddings, device)
    model.load_state_dict(tensors, strict=False, assign=True)
    if config.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.fill_rope_tables()
    return model.eval().requires_grad_(False)


def stop_tokens(folder: str | Path) -> tuple[int, ...]:
    """The ids that end a text: `eos_token_id` of generation_config.json, else of config.json."""
    for file in (Path(folder) / "generation_config.json", Path(folder) / "config.json"):
        facts = _read_json(file) if file.is_file() else {}
        found = facts.get("eos_token_id")
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(token, int) for token in ids):
                raise bad(file, "eos_token_id", "a token id or a list of them", repr(found))
            return tuple(ids)
    return ()


def checkpoint_digest(folder: str | Path) -> str:
    """What tells one checkpoint's weights from another's: sixteen hexadecimal digits over the sizes and ends of its files.

    A file begins with its tensors' names and shapes and ends with weights, which training and rounding change everywhere.
    """
    found = hashlib.sha256()
    for file in _shards(Path(folder)):
        with open(file, "rb") as weights:
            size = weights.seek(0, os.SEEK_END)
            found.update(f"{file.name} {size}".encode())
            for start in (0, max(size - DIGESTED_BYTES, 0)):
                weights.seek(start)
                found.update(weights.read(DIGESTED_BYTES))
    return found.hexdigest()[:16]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad(file, "", "a readable JSON file", error) from None
    if not isinstance(found, dict):
        raise bad(file, "", "a JSON object", type(found).__name__)
    return found


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, else all."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise bad(index, "weight_map", "which file holds which tensor", repr(weight_map))
    return sorted({folder / str(name) for name in weight_map.values()})


def _as_stored(config: TransformerConfig, files: list[Path]) -> TransformerConfig:
    """The model with matrices in 16 bits only where the files hold all of their kind in these: others would be rounded."""
    layers, tables = set(), set()
    for file in files:
        with suppress(SafetensorError, OSError), safe_open(file, "pt") as archive:
            for key in archive.keys():  # noqa: SIM118 (an archive is no mapping)
                part = archive.get_slice(key)
                if len(part.get_shape()) == 2 and not _unused(key, config.tied_embeddings):
                    (layers if ".layers." in key else tables).add(part.get_dtype())
    return replace(
        config,
        linear_dtype=config.linear_dtype if layers == {NAMES.get(config.linear_dtype or "")} else None,
        embedding_dtype=config.embedding_dtype if tables == {NAMES.get(config.embedding_dtype or "")} else None,
    )


def _unused(key: str, tied_embeddings: bool) -> bool:
    """A tensor that checkpoints may carry and nobody reads."""
    return key.endswith(IGNORED_SUFFIXES) or (key == "lm_head.weight" and tied_embeddings)


def _read_tensors(
    folder: Path,
    files: list[Path],
    wanted: dict[str, Tensor],
    parts: dict[str, tuple[slice, ...]],
    types: dict[str, torch.dtype],
    tied_embeddings: bool,
    device: str,
) -> dict[str, Tensor]:
    """Some part of each tensor that is wanted, on a device and in its type; everything wrong is said at once."""
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
                    shape = list(archive.get_slice(key).get_shape())
                    if key not in wanted:
                        problems.append(Problem(str(file), key, "no such tensor for this config.json", f"shape {shape}"))
                    elif archive.get_slice(key).get_dtype() not in NAMES.values():
                        kind = archive.get_slice(key).get_dtype()
                        problems.append(Problem(str(file), key, f"a type out of {', '.join(NAMES.values())}", kind))
                    elif shape != list(wanted[key].shape):
                        problems.append(Problem(str(file), key, f"shape {list(wanted[key].shape)}", f"shape {shape}"))
                    else:
                        tensors[key] = archive.get_slice(key)[parts[key]].to(device, types[key])
        except (SafetensorError, OSError) as error:
            raise bad(file, "", "a readable safetensors file", error) from None
    seen = set(tensors) | {problem.key for problem in problems}
    tied = {"lm_head.weight"} if tied_embeddings else set()
    missing = sorted(set(wanted) - seen - tied)
    problems += [Problem(str(folder), key, f"a tensor of shape {list(wanted[key].shape)}", "nothing") for key in missing]
    if len(problems) > MOST_PROBLEMS:
        more = Problem(str(folder), "", "nothing else wrong", f"{len(problems) - MOST_PROBLEMS} more problems like these")
        problems = [*problems[:MOST_PROBLEMS], more]
    if problems:
        raise InputError(*problems)
    return tensors
