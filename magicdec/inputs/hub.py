"""Models by their id on the Hugging Face Hub: from its local cache, else the small JSON files that say what they are.

Nothing else is fetched, and no code: `config.json`, `hf_quant_config.json` and the index of the weight files, each of limited size.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

from magicdec.costmodel.base.limits import MAX_DOCUMENT_BYTES, MAX_HEADER_BYTES
from magicdec.costmodel.models.catalog import UnknownModelError, unknown_model
from magicdec.costmodel.tensors.safetensors import INDEX, read_index

PREFIX = "hf:"
CONFIG = "config.json"
FETCHED = {CONFIG: MAX_DOCUMENT_BYTES, "hf_quant_config.json": MAX_DOCUMENT_BYTES, INDEX: MAX_HEADER_BYTES}
TIMEOUT_S = 10.0
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def hub_id(name: str) -> str | None:
    """The id that a name has on the Hub; None if it can have none. What begins with a folder that exists is a path."""
    rest = name.removeprefix(PREFIX)
    if _ID.fullmatch(rest) is None or ".." in rest or "--" in rest:
        return None
    return None if rest == name and os.path.isdir(rest.split("/")[0]) else rest


def hub_folder(repo: str, name: str, where: str) -> Path:
    """The folder of the local cache that holds the small files of a model; they are fetched if it does not.

    Args:
        repo: Its id.
        name: What the user gave, for messages.
        where: The parameter, for messages.

    Raises:
        UnknownModelError: There is no such model, no network, or no library.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise unknown_model(name, where, "; Hub ids need huggingface_hub: pip install 'magicdec[hub]'") from None
    cached = hub.try_to_load_from_cache(repo, CONFIG)
    if isinstance(cached, str):
        return Path(cached).parent
    if constants.HF_HUB_OFFLINE:
        raise unknown_model(name, where, ", which is not in the cache of the Hub, and HF_HUB_OFFLINE is set")
    disable_progress_bars()
    folder = None
    for file, most in FETCHED.items():
        found = _fetched(hub, errors, repo, file, most, name, where)
        folder = folder or found
    assert folder is not None
    return folder.parent


def has_weights(folder: Path) -> bool:
    """Whether a folder of the cache has all weight files, not only some."""
    if not (folder / INDEX).is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / file).is_file() for file in set(read_index(folder / INDEX)[0].values()))


def _fetched(hub: ModuleType, errors: ModuleType, repo: str, file: str, most: int, name: str, where: str) -> Path | None:
    """A file of the cache, fetched; None if the model has no such file. The library writes it whole or not at all."""
    try:
        size = hub.get_hf_file_metadata(hub.hf_hub_url(repo, file), timeout=TIMEOUT_S).size
        if size is not None and size <= most:
            return Path(hub.hf_hub_download(repo, file, etag_timeout=TIMEOUT_S))
        reason = f", whose {file} has {'no stated size' if size is None else f'{size:,} bytes'}"
    except errors.GatedRepoError:
        reason = ", to which the Hub gives access only after its terms are accepted"
    except errors.RepositoryNotFoundError:
        reason = ", which the Hub does not have"
    except errors.EntryNotFoundError:
        if file != CONFIG:
            return None
        reason = f", which has no {CONFIG} on the Hub (of a model in GGUF, download the file and give its path)"
    except Exception as error:  # what libraries of the network raise is of any kind
        lines = str(error).strip().splitlines()
        reason = f"; the Hub cannot be asked ({type(error).__name__}{f': {lines[0][:120]}' if lines else ''})"
    raise unknown_model(name, where, reason) from None


__all__ = ["UnknownModelError", "has_weights", "hub_folder", "hub_id"]
