"""Models by name: built-in configurations, and config files of users."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

from ..base.errors import bad
from .hf_config import load_config, shipped_config
from .transformer import TransformerConfig


@cache
def builtin_configs() -> dict[str, Path]:
    """Return the config files of the built-in models, by name."""
    folder = Path(__file__).parents[1] / "model_configs"
    return {file.stem: file for file in sorted(folder.glob("*.json"), key=lambda file: file.stem)}


def resolve_model(name: str, where: str = "model") -> TransformerConfig:
    """Find a model by path, built-in name in any spelling, or Hugging Face repository id.

    Args:
        name: What the user wrote.
        where: The parameter it was given for, for error messages.

    Raises:
        InputError: No model has this name (similar names are listed), or the config file is invalid.
    """
    if os.path.isdir(name) or (name.endswith(".json") and os.path.exists(name)):  # unlike Path, these take any text
        return load_config(name, name=name)
    spelled = {_normalised(known): known for known in builtin_configs()}
    known = spelled.get(_normalised(name))
    if known is None:
        import difflib

        close = [spelled[match] for match in difflib.get_close_matches(_normalised(name), spelled, n=4, cutoff=0.4)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise bad(where, "", f"a built-in name ({hint}`magicdec models` lists all) or a path to a config.json", repr(name))
    return shipped_config(json.loads(builtin_configs()[known].read_text(encoding="utf-8")), name=known)


def _normalised(name: str) -> str:
    """Remove differences of spelling: owner, case, separators, suffixes such as `-hf` and `-instruct`, and Meta's prefix."""
    name = re.sub(r"[^a-z0-9.]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-")
    name = re.sub(r"-(instruct|chat|hf|base|it)\b", "", name).removeprefix("meta-").removesuffix("-v1.0")
    return name.replace("-", "")
