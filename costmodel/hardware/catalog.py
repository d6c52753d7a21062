"""Hardware profiles by name: the shipped ones, and files of users."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from ..base.errors import bad
from .profile import HardwareProfile
from .profile_file import load_profile, shipped_profile


@cache
def builtin_profiles() -> dict[str, Path]:
    """Return the files of the shipped profiles, by name."""
    folder = Path(__file__).parents[2] / "hardware_profiles"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def resolve_profile(name: str, where: str = "hardware") -> HardwareProfile:
    """Find a profile by file path, shipped name or alias; case and underscores do not matter.

    Args:
        name: What the user wrote.
        where: The parameter it was given for, for error messages.

    Raises:
        InputError: No profile has this name (similar names are listed), or the file is invalid.
    """
    if name.endswith((".yaml", ".yml")) or os.path.isfile(name):
        return load_profile(name)
    wanted = name.lower().replace("_", "-")
    if wanted in builtin_profiles():
        return _builtin(wanted)
    known: dict[str, str] = {}
    for profile_name in builtin_profiles():
        known |= dict.fromkeys((profile_name, *_builtin(profile_name).aliases), profile_name)
    if wanted in known:
        return _builtin(known[wanted])
    import difflib

    close = difflib.get_close_matches(wanted, known, n=4, cutoff=0.3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    expected = f"a shipped profile ({hint}`magicdec profiles` lists all), `cpu`, or a path to a profile file"
    raise bad(where, "", expected, repr(name))


@cache
def _builtin(name: str) -> HardwareProfile:
    return shipped_profile(builtin_profiles()[name].read_text(encoding="utf-8"))
