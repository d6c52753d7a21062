"""What devices this machine has, asked from the tools that its drivers install. Nothing is imported, and nothing waits for long."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec

TOOL_LIMIT_S = 10.0
TORCH_LIMIT_S = 60.0
GB, MIB = 1e9, 2**20
ASK_TORCH = """
import torch
for api in (torch.cuda, getattr(torch, "xpu", None)):
    if api is not None and api.is_available():
        for i in range(api.device_count()):
            print(api.get_device_name(i), api.get_device_properties(i).total_memory, sep="\\t")
"""


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        name: What its driver calls it.
        memory_gb: Its memory, rounded; None if the driver does not say. [GB]
    """

    name: str
    memory_gb: int | None


def local_devices() -> tuple[Device, ...]:
    """The GPUs of this machine; empty if no tool knows of one.

    Asked in turn, until one answers: nvidia-smi, rocm-smi, sysctl (Apple), torch where it is installed.
    """
    for ask in (_nvidia, _amd, _apple, _torch):
        if devices := ask():
            return devices
    return ()


def _nvidia() -> tuple[Device, ...]:
    lines = _answer("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits").splitlines()
    parts = [line.rpartition(",") for line in lines if "," in line]
    return tuple(Device(name.strip(), _gb(memory, MIB)) for name, _, memory in parts if name.strip())


def _amd() -> tuple[Device, ...]:
    text = _answer("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    try:
        cards = json.loads(text[text.find("{") :]) if "{" in text else {}
    except ValueError:
        return ()
    found = []
    for card in cards.values() if isinstance(cards, dict) else ():
        facts = {str(key).lower(): str(value) for key, value in card.items()} if isinstance(card, dict) else {}
        names = [facts.get(key, "") for key in ("card series", "card model", "device name")]
        if name := next((name for name in names if re.search(r"[a-z]\w* ", name.lower())), ""):
            found.append(Device(name.strip(), _gb(facts.get("vram total memory (b)", ""), 1)))
    return tuple(found)


def _apple() -> tuple[Device, ...]:
    name, _, memory = _answer("sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize").strip().partition("\n")
    if not name.startswith("Apple"):
        return ()
    return (Device(name, round(float(memory) / 2**30) if memory.strip().isdigit() else None),)  # sold in GiB, called GB


def _torch() -> tuple[Device, ...]:
    if find_spec("torch") is None:
        return ()
    lines = _answer(sys.executable, "-c", ASK_TORCH, limit_s=TORCH_LIMIT_S).splitlines()
    parts = [line.partition("\t") for line in lines if "\t" in line]
    return tuple(Device(name, _gb(memory, 1)) for name, _, memory in parts)


def _answer(tool: str, *arguments: str, limit_s: float = TOOL_LIMIT_S) -> str:
    """What a tool prints; empty if there is no such tool, or if it fails or hangs."""
    import shutil  # slow to import, like the next one
    import subprocess

    path = shutil.which(tool)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _gb(number: str, unit: float) -> int | None:
    return round(float(number) * unit / GB) if number.strip().isdigit() else None
