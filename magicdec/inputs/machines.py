"""GPUs by name: one, those of this machine, or a list of different ones; a note says what was chosen."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.notes import note
from magicdec.costmodel.hardware.catalog import Found, find_profile
from magicdec.costmodel.hardware.profile import HardwareProfile

if TYPE_CHECKING:
    from .local_machine import Device

LOCAL = "local"
SEPARATOR = ","
_COUNT = re.compile(r"\s*(?:(\d{1,2})\s*[x×*]\s*(?=\D|\d{4})(.+)|(.+?)\s+[x×*]\s*(\d{1,2}))\s*", re.IGNORECASE)


def find_machine(name: str) -> HardwareProfile | None:
    """Resolve the name of a GPU, `local`, or names of several separated by commas.

    Args:
        name: What the user gave.

    Returns:
        The profile; None if `local` has no GPU that its drivers know of.

    Warns:
        Note: The name leaves a choice, or the devices share the layers of a model.

    Raises:
        InputError: Nothing of that name, or a file that is no profile.
    """
    if name == LOCAL:
        from .local_machine import local_devices  # slow to import, like the next ones

        devices = local_devices()
        if not devices:
            note("no GPU that a driver knows of: the CPU of this machine is taken")
            return None
        return _local(devices)
    listed = [part for part in re.split(r"\s*,\s*|\s+\+\s+", name.strip())]
    if len(listed) == 1 or os.path.isfile(name):
        if (counted := _counted(name)) is not None and not os.path.isfile(name):
            count, of = counted
            expected = (
                f"the name of one GPU, {find_profile(of).profile.name}, with {count} as `num_gpus`; or a list, separated by commas"
            )
            raise bad("hardware", "", expected, repr(name))
        found = find_profile(name)
        note(found.note)
        return found.profile
    from magicdec.costmodel.hardware.mixed import layer_split, split_note

    parts = []
    for part in listed:
        count, of = _counted(part) or (1, part)
        parts += [find_profile(of)] * count
    split = layer_split([part.profile for part in parts])
    note(*(part.note for part in parts), split_note([part.profile for part in parts]))
    return split


def _counted(name: str) -> tuple[int, str] | None:
    """How many of what a name such as `2x RTX 3090` or `H100 x8` says; None if it says no number."""
    found = _COUNT.fullmatch(name)
    if found is None:
        return None
    count, of = int(found[1] or found[4]), found[2] or found[3]
    return (count, of) if count > 0 else None


def check_layer_split(profile: HardwareProfile, num_gpus: int) -> None:
    """Refuse a number of GPUs beside a list of them.

    Raises:
        InputError: There is one.
    """
    if SEPARATOR in profile.name and num_gpus != 1:
        raise bad("num_gpus", "", "1, or nothing, beside a list in `hardware`: it names every GPU", num_gpus)


def _local(devices: Sequence[Device]) -> HardwareProfile:
    from magicdec.costmodel.hardware.mixed import layer_split, split_note

    counts = Counter(devices)
    found = {device: _profile(device) for device in counts}
    has = " and ".join(f"{count} x {device.name}" if count > 1 else device.name for device, count in counts.items())
    if len(counts) == 1:
        ((device, count),) = counts.items()
        more = f"one of them is taken unless the number of GPUs says otherwise, up to {count}" if count > 1 else ""
        note(f"this machine has {has}: {found[device].profile.name}", found[device].note, more)
        return found[device].profile
    profiles = [found[device].profile for device in devices]
    note(f"this machine has {has}", *(one.note for one in found.values()), split_note(profiles))
    return layer_split(profiles)


def _profile(device: Device) -> Found:
    return find_profile(device.name, memory_gb=device.memory_gb)
