"""Hardware profiles by name: the shipped ones, and files of users."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..base.errors import bad
from .datasheets import FOLDER, datasheet_profile, datasheets, memory_options
from .naming import MachineName
from .profile import HardwareProfile
from .profile_file import load_profile, shipped_profile

MEMORY_TOLERANCE = 0.1  # a driver reports some per cent less or more than the datasheet
MEMORY_RANGE = (0.25, 4.0)  # of the usual memory: cards are refitted with twice as much, seldom more


@dataclass(frozen=True)
class Found:
    """A profile that a name resolves to.

    Attributes:
        profile: The profile.
        note: What was chosen where the name leaves a choice; empty if it leaves none.
    """

    profile: HardwareProfile
    note: str = ""


@dataclass(frozen=True)
class _Entry:
    """The names of one shipped profile."""

    name: str
    description: str
    aliases: tuple[str, ...]
    driver_names: tuple[str, ...]
    memory_gb: float
    options: dict[int, float]

    @property
    def full_names(self) -> tuple[str, ...]:
        """Names that leave no choice."""
        return (*self.driver_names, self.description)


@cache
def profile_files() -> dict[str, Path]:
    """The shipped profile files, by name; other profiles are lines of the table of datasheets."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"), key=lambda file: file.stem)}


@cache
def builtin_profiles() -> tuple[str, ...]:
    """The names of all shipped profiles: those with a file of their own first."""
    return (*profile_files(), *datasheets())


def resolve_profile(name: str, where: str = "hardware") -> HardwareProfile:
    """As `find_profile`, without the note."""
    return find_profile(name, where).profile


def find_profile(name: str, where: str = "hardware", *, memory_gb: int | None = None) -> Found:
    """Find a profile by file path, shipped name, alias, or by what a driver or torch calls the device.

    Vendors, brands, case and separators do not matter. A memory size in the name chooses among variants, or replaces the size.

    Args:
        name: What the user wrote.
        where: The parameter it was given for, for error messages.
        memory_gb: Memory of the device, if it is known otherwise than from the name. [GB]

    Raises:
        InputError: No profile has this name (similar names are listed), or the file is invalid.
    """
    if name.endswith((".yaml", ".yml")) or os.path.isfile(name):
        return Found(load_profile(name))
    if name in profile_files() and memory_gb is None:
        return Found(_builtin(name))  # taking all other names apart is slow
    wanted = MachineName.parse(name)
    exact = [_entries()[full] for full in _full_names().get(wanted.text, ())]
    fitting = exact or [entry for entry in _group(wanted.key) if wanted.forms <= _forms(entry)]
    if not fitting:
        raise bad(where, "", _expected(wanted), repr(name))
    size = memory_gb or (None if exact else wanted.memory_gb)
    sized = [entry for entry in fitting if size is None or _has_memory(entry, size)] or fitting
    chosen = _usual(sized, wanted.key)
    others = [entry.name for entry in sized if entry is not chosen]
    note = f"{name} is taken for {chosen.name}; there {_are(others)}" if others else ""
    if size is None and len(chosen.options) > 1:
        note = "; ".join(part for part in (note, _memory_note(chosen)) if part)
    if size in chosen.options and size is not None:
        return Found(datasheet_profile(chosen.name, (size, chosen.options[size])), note)
    if size is None or _near(chosen.memory_gb, size):
        return Found(_builtin(chosen.name), note)
    return _with_memory(chosen, size, where, name)


def _are(others: Sequence[str]) -> str:
    return f"{'are' if len(others) > 1 else 'is'} also {', '.join(others)}"


def _memory_note(entry: _Entry) -> str:
    *others, largest = sorted(entry.options)
    sizes = ", ".join(map(str, others))
    other = f"{entry.name}-{others[0]}gb would say {others[0]} GB"
    return f"{entry.name} comes with {sizes} or {largest} GB: {largest} GB assumed, {other}"


def _with_memory(entry: _Entry, memory_gb: int, where: str, name: str) -> Found:
    """A profile with another memory size than the device is sold with."""
    low, high = MEMORY_RANGE
    if not low <= memory_gb / entry.memory_gb <= high:
        raise bad(where, "", f"a memory size near that of {entry.name}, {entry.memory_gb:.0f} GB", repr(name))
    usual = _builtin(entry.name)
    size = f"{memory_gb / entry.memory_gb * usual.peak.memory_bytes:.4e}"
    text = re.sub(r"(?m)^name: .*$", f"name: {entry.name}-{memory_gb}gb", usual.text, count=1)
    text = re.sub(r"(?m)^(  memory_bytes:) \S+", rf"\1 {size}", text, count=1)
    text = re.sub(r"(?m)^aliases: .*$", "aliases: []", text, count=1)
    note = f"{entry.name} comes with {entry.memory_gb:.0f} GB; taken with {memory_gb} GB at the same bandwidth"
    return Found(shipped_profile(text), note)


def _near(one: float, other: float) -> bool:
    return abs(one / other - 1) <= MEMORY_TOLERANCE


def _has_memory(entry: _Entry, memory_gb: int) -> bool:
    sizes = entry.options or (entry.memory_gb,)
    return any(_near(size, memory_gb) for size in sizes)


def _forms(entry: _Entry) -> frozenset[str]:
    names = (entry.name, entry.description, *entry.driver_names, *entry.aliases)
    return frozenset().union(*(MachineName.parse(name).forms for name in names))


def _group(key: str) -> list[_Entry]:
    """Profiles that differ in form factor and memory alone."""
    return [_entries()[name] for name in _keys().get(key, ())]


def _usual(entries: Sequence[_Entry], key: str) -> _Entry:
    """The profile that has the bare name as an alias; else the first."""
    bare = (entry for entry in entries if any(_is_bare(alias, key) for alias in (entry.name, *entry.aliases)))
    return next(bare, entries[0])


def _is_bare(alias: str, key: str) -> bool:
    name = MachineName.parse(alias)
    return name.key == key and not name.forms and name.memory_gb is None


def _expected(wanted: MachineName) -> str:
    import difflib

    if others := [entry.name for entry in _group(wanted.key)]:
        close = others
    else:
        inside = [key for key in _keys() if len(wanted.key) > 2 and (wanted.key in key or (len(key) > 4 and key in wanted.key))]
        near = inside[:4] or difflib.get_close_matches(wanted.key, _keys(), n=4, cutoff=0.5)
        close = list(dict.fromkeys(name for key in near for name in _keys()[key]))[:4]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"a shipped profile ({hint}`magicdec profiles` lists all), `cpu`, `local`, or a path to a profile file"


@cache
def _entries() -> dict[str, _Entry]:
    return {name: _file_entry(name) if name in profile_files() else _table_entry(name) for name in builtin_profiles()}


@cache
def _keys() -> dict[str, tuple[str, ...]]:
    """Names of the profiles of each key."""
    found: dict[str, dict[str, None]] = {}
    for entry in _entries().values():
        for name in (entry.name, *entry.aliases, *entry.driver_names):
            found.setdefault(MachineName.parse(name).key, {})[entry.name] = None
    return {key: tuple(names) for key, names in found.items()}


@cache
def _full_names() -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for entry in _entries().values():
        for name in entry.full_names:
            found.setdefault(MachineName.parse(name).text, {})[entry.name] = None
    return {text: tuple(names) for text, names in found.items()}


def _file_entry(name: str) -> _Entry:
    """The names at the head of a profile file; reading all of it would be slow."""
    text = profile_files()[name].read_text(encoding="utf-8")
    head = _head(text)
    size = re.search(r"(?m)^  memory_bytes: (\S+)", text)
    assert size is not None
    return _Entry(name, head["description"][0], head.get("aliases", ()), head.get("driver_names", ()), float(size[1]) / 1e9, {})


def _head(text: str) -> dict[str, tuple[str, ...]]:
    """The lines above `peak` of a shipped profile file; lists are written in brackets."""
    found = {}
    for line in text.partition("\npeak:")[0].splitlines():
        key, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            found[key] = tuple(part.strip() for part in value.strip("[]").split(",") if part) if value.startswith("[") else (value,)
    return found


def _table_entry(name: str) -> _Entry:
    row = datasheets()[name]
    options = memory_options(row)
    memory_gb = max(options) if options else float(row["memory_bytes"]) / 1e9
    return _Entry(
        name, row["description"], tuple(filter(None, row["aliases"].split(";"))), (row["driver_name"],), memory_gb, options
    )


@cache
def _builtin(name: str) -> HardwareProfile:
    files = profile_files()
    return shipped_profile(files[name].read_text(encoding="utf-8")) if name in files else datasheet_profile(name)
