"""Models by name: the built-in configurations, and the one a user means."""

from __future__ import annotations

import difflib
import json
import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ..base.errors import bad
from .hf_config import load_config, parse_hf_config
from .transformer import TransformerConfig


@cache
def builtin_configs() -> dict[str, Traversable]:
    """Files of the built-in models, by name."""
    folder = resources.files("magicdec.costmodel") / "model_configs"
    files = {entry.name.removesuffix(".json"): entry for entry in folder.iterdir() if entry.name.endswith(".json")}
    return dict(sorted(files.items()))


def resolve_model(name: str, where: str = "--model") -> TransformerConfig:
    """The configuration a user means: a path, a built-in name in any spelling, or a Hugging Face repository id.

    Raises:
        InputError: Nothing of that name; the closest built-in names are listed.
    """
    if Path(name).exists() and (Path(name).is_dir() or name.endswith(".json")):
        return load_config(name, name=name)
    spelled = {_plain(known): known for known in builtin_configs()}
    known = spelled.get(_plain(name))
    if known is None:
        close = [spelled[match] for match in difflib.get_close_matches(_plain(name), spelled, n=4, cutoff=0.4)]
        hint = f"{', '.join(close)} are close; " if close else ""
        raise bad(where, "", f"a built-in name ({hint}`magicdec models` lists all) or a path to a config.json", repr(name))
    file = builtin_configs()[known]
    return parse_hf_config(json.loads(file.read_text(encoding="utf-8")), where=str(file), name=known)


def _plain(name: str) -> str:
    """A model's name without what people write differently: owner, case, separators, `-hf`, `-instruct`, Meta's prefix."""
    name = re.sub(r"[^a-z0-9.]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-")
    name = re.sub(r"-(instruct|chat|hf|base|it)\b", "", name).removeprefix("meta-").removesuffix("-v1.0")
    return name.replace("-", "")
