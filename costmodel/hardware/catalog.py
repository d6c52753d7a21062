"""Hardware profiles by name: the shipped ones, and files of users."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ..base.errors import bad
from .profile import HardwareProfile
from .profile_file import load_profile, parse_profile


@cache
def builtin_profiles() -> dict[str, Traversable]:
    """Return the files of the shipped profiles, by name."""
    folder = resources.files("magicdec.hardware_profiles")
    files = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def resolve_profile(name: str, where: str = "hardware") -> HardwareProfile:
    """Find a profile by file path, shipped name or alias; case and underscores do not matter.

    Args:
        name: What the user wrote.
        where: The parameter it was given for, for error messages.

    Raises:
        InputError: No profile has this name (similar names are listed), or the file is invalid.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return load_profile(name)
    wanted = name.lower().replace("_", "-")
    if wanted in builtin_profiles():
        return _builtin(wanted)
    known: dict[str, str] = {}
    for profile_name in builtin_profiles():
        known |= dict.fromkeys((profile_name, *_builtin(profile_name).aliases), profile_name)
    if wanted in known:
        return _builtin(known[wanted])
    close = difflib.get_close_matches(wanted, known, n=4, cutoff=0.3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    expected = f"a shipped profile ({hint}`magicdec profiles` lists all), `cpu`, or a path to a profile file"
    raise bad(where, "", expected, repr(name))


@cache
def _builtin(name: str) -> HardwareProfile:
    file = builtin_profiles()[name]
    return parse_profile(file.read_text(encoding="utf-8"), where=f"hardware_profiles/{name}.yaml")
