"""Models by name: built-in configurations, and config and weight files of users."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from ..base.errors import InputError, bad
from ..base.notes import Note
from .hf_config import load_config, shipped_config
from .transformer import TransformerConfig

FILES = (".json", ".gguf", ".safetensors")


class UnknownModelError(InputError):
    """No built-in model has this name, and there is no file of it."""


@cache
def builtin_configs() -> dict[str, Path]:
    """Return the config files of the built-in models, by name."""
    folder = Path(__file__).parents[1] / "model_configs"
    return {file.stem: file for file in sorted(folder.glob("*.json"), key=lambda file: file.stem)}


def resolve_model(name: str, where: str = "model") -> TransformerConfig:
    """Find a model by path, or by a built-in name in any spelling and with any suffix that names a quantisation.

    A name that is not exactly that of a built-in model gives a warning that says what it was taken for.

    Args:
        name: What the user wrote.
        where: The parameter it was given for, for error messages.

    Raises:
        UnknownModelError: No model has this name; similar names are listed.
        InputError: A file is invalid.
    """
    if (found := model_of_path(name)) is not None:
        return found
    if os.path.isfile(name):
        raise bad(where, "", "a config.json, a GGUF file, or the folder of a checkpoint", f"{name!r}, another file")
    if name.startswith(("/", ".", "~")) or name.lower().endswith(FILES):
        raise unknown_model(name, where, ", a path at which there is nothing")
    exact = _lower_case().get(name.lower()) or _spellings().get(_spelling(name))
    if exact is not None:
        return _shipped(exact)
    from .naming import applied, meaning

    meant = meaning(name, builtin_configs())
    if meant is None:
        raise unknown_model(name, where)
    import warnings

    model, text = applied(_shipped(builtin_configs()[meant.builtin]), meant, name)
    warnings.warn(text, Note, stacklevel=2)
    return model


def is_builtin(name: str) -> bool:
    """Whether a name means a built-in model."""
    from .naming import meaning

    known = builtin_configs()
    return name in known or _spelling(name) in _spellings() or meaning(name, known) is not None


def model_of_path(name: str) -> TransformerConfig | None:
    """Read a model from a path: a config.json, a GGUF file, or a checkpoint directory with either; None if it is no path."""
    if os.path.isdir(name):  # unlike Path, these take any text
        if not os.path.exists(os.path.join(name, "config.json")) and (file := gguf_in(Path(name))) is not None:
            return _gguf(file, name)
        if not os.path.exists(os.path.join(name, "config.json")):
            raise bad(os.path.join(name, "config.json"), "", "a config.json", f"a folder without one{_other_form(name)}")
        return load_config(name, name=name, weights=True)
    if name.endswith(".json") and os.path.exists(name):
        return load_config(name, name=name)
    return _gguf(Path(name), name) if name.lower().endswith(".gguf") and os.path.exists(name) else None


def _other_form(folder: str) -> str:
    """What a folder without a config holds instead, with what to do."""
    forms = {
        "adapter_config.json": ", but with an adapter: give its base model",
        "params.json": ", but with params.json: take the checkpoint in the form of Hugging Face",
        "model_index.json": ", but with several models: give the folder of one",
    }
    return next((text for file, text in forms.items() if os.path.exists(os.path.join(folder, file))), "")


def gguf_in(folder: Path) -> Path | None:
    """The one model in GGUF that a folder holds; None if it holds none.

    Raises:
        InputError: It holds several.
    """
    files = [file for file in sorted(folder.glob("*.gguf")) if not file.name.lower().startswith("mmproj")]
    first = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(first) > 1:
        raise bad(folder, "", "one model in GGUF; give the file", f"{len(first)}: {', '.join(file.name for file in first[:4])}")
    return first[0] if first else None


def unknown_model(name: str, where: str, reason: str = "") -> UnknownModelError:
    """The error for a name that no model has, with the nearest names.

    Args:
        name: What the user wrote.
        where: The parameter it was given for.
        reason: Why nothing else was found under this name.
    """
    import difflib

    spelled = {_spelling(known): known for known in builtin_configs()}
    close = [spelled[match] for match in difflib.get_close_matches(_spelling(name), spelled, n=4, cutoff=0.4)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    expected = f"a built-in name ({hint}`magicdec models` lists all), a Hub id, or a path to a config.json, GGUF file or checkpoint"
    return UnknownModelError(*bad(where, "", expected, f"{name!r}{reason}").problems)


def _gguf(file: Path, name: str) -> TransformerConfig:
    from .gguf_config import load_gguf

    return load_gguf(file, name=name)


def _shipped(file: Path) -> TransformerConfig:
    return shipped_config(json.loads(file.read_text(encoding="utf-8")), name=file.stem)


@cache
def _lower_case() -> dict[str, Path]:
    return {known.lower(): file for known, file in builtin_configs().items()}


@cache
def _spellings() -> dict[str, Path]:
    return {_spelling(known): file for known, file in builtin_configs().items()}


def _spelling(name: str) -> str:
    from .naming import spelling

    return spelling(name)
