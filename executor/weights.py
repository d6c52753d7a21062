"""Checkpoints: a directory with config.json and safetensors files, read without pickles and checked tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from costmodel.errors import InputError, Problem, bad
from costmodel.transformer import TransformerConfig, load_config
from executor.transformer import Transformer

IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")  # buffers that old checkpoints carry


def load_model(folder: str | Path, *, device: str = "cpu", dtype: str | None = None, name: str | None = None) -> Transformer:
    """The model of a checkpoint directory, ready for inference.

    Args:
        folder: Holds `config.json` and `*.safetensors`, as Hugging Face checkpoints do.
        device: Where the weights go.
        dtype: Type they are converted to; None for the one in `config.json`.
        name: How the model is called in what is printed; None for the folder's name.

    Raises:
        InputError: A file is missing or unreadable; tensors are missing, left over or of the wrong shape.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise bad("--device", "", "cpu, for torch sees no CUDA device", repr(device))
    folder = Path(folder)
    config = load_config(folder, name=name)
    config = config.with_dtype(dtype or config.dtype)
    with torch.device("meta"):
        model = Transformer(config)
    wanted = dict(model.named_parameters(remove_duplicate=False))
    tensors = _read_tensors(folder, wanted, config)
    target_dtype = getattr(torch, config.dtype)
    model.load_state_dict({key: value.to(device, target_dtype) for key, value in tensors.items()}, strict=False, assign=True)
    if config.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.fill_rope_tables()
    return model.eval().requires_grad_(False)


def stop_tokens(folder: str | Path) -> tuple[int, ...]:
    """The ids that end a text: `eos_token_id` of generation_config.json, else of config.json."""
    for file in (Path(folder) / "generation_config.json", Path(folder) / "config.json"):
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return tuple(found) if isinstance(found, list) else (found,)
    return ()


def _read_tensors(folder: Path, wanted: dict[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
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
                    if key.endswith(IGNORED_SUFFIXES) or (key == "lm_head.weight" and config.tied_embeddings):
                        continue
                    shape = list(archive.get_slice(key).get_shape())
                    if key not in wanted:
                        problems.append(Problem(str(file), key, "no such tensor for this config.json", f"shape {shape}"))
                    elif shape != list(wanted[key].shape):
                        problems.append(Problem(str(file), key, f"shape {list(wanted[key].shape)}", f"shape {shape}"))
                    else:
                        tensors[key] = archive.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise bad(file, "", "a readable safetensors file", error) from None
    seen = set(tensors) | {problem.key for problem in problems}
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    missing = sorted(set(wanted) - seen - tied)
    problems += [Problem(str(folder), key, f"a tensor of shape {list(wanted[key].shape)}", "nothing") for key in missing]
    if problems:
        raise InputError(*problems[:20])
    return tensors
