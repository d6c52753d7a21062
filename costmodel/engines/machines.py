"""Classes of machines that an engine treats alike, told from a profile."""

from __future__ import annotations

import re
from typing import Literal, get_args

from ..hardware.profile import HardwareProfile

MachineClass = Literal["hopper", "blackwell", "ampere", "cuda-card", "unified", "apple", "amd", "amd-card", "intel", "cpu", "other"]
MACHINE_CLASSES: tuple[MachineClass, ...] = get_args(MachineClass)
MACHINE_TITLES: dict[str, str] = {
    "hopper": "Hopper data-centre GPUs",
    "blackwell": "Blackwell data-centre GPUs",
    "ampere": "Ampere data-centre GPUs",
    "cuda-card": "NVIDIA cards with GDDR memory",
    "unified": "NVIDIA systems with unified memory",
    "apple": "Apple chips",
    "amd": "AMD data-centre GPUs",
    "amd-card": "AMD cards",
    "intel": "Intel GPUs",
    "cpu": "processors",
    "other": "other machines",
}
_PATTERNS: tuple[tuple[str, MachineClass], ...] = (
    (r"^(gh200|h\d+)\b", "hopper"),
    (r"^(b\d00|gb[23]00)\b", "blackwell"),
    (r"^a(100|30)\b", "ampere"),
    (r"^(gb10|thor|jetson|orin)", "unified"),
    (r"^m\d", "apple"),
    (r"^mi\d", "amd"),
    (r"^(rx-|radeon|ai-pro-r|pro-w|w\d{4}|ryzen|strix)", "amd-card"),
    (r"^(arc|data-center-gpu|gaudi|b50|b60)", "intel"),
    (r"^cpu$", "cpu"),
)


def machine_class(hardware: HardwareProfile) -> MachineClass:
    """The class of a machine; `other` if nothing is known of its kind.

    Args:
        hardware: The profile; of several devices in a list the first counts.
    """
    name = hardware.name.partition(",")[0]
    for pattern, found in _PATTERNS:
        if re.search(pattern, name):
            return found
    return "cuda-card" if "NVIDIA" in hardware.description else "amd-card" if "AMD" in hardware.description else "other"
