"""Facts about this machine: its processor, caches and memory. Reads /proc and /sys, and imports nothing heavy."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE_BYTES = 2.0**25  # assumed where the system does not tell


def processor_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """The CPU's instruction set extensions, as /proc/cpuinfo lists them (x86 `flags`, Arm `Features`); empty if unknown."""
    return _cpuinfo("flags", "Features")


def last_level_cache_bytes() -> float:
    """Size of the CPU's largest cache; 32 MiB if unknown. [bytes]"""
    sizes = []
    for file in CPU_CACHES.glob("index*/size"):
        size = _read(file).strip()
        if size:
            sizes.append(float(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1))
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


def memory_bytes() -> float:
    """Installed memory. [bytes]"""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def available_memory_bytes() -> float:
    """Memory that can still be allocated, of the machine and of the container this process may run in. [bytes]"""
    found = [_container_bytes()]
    found += [
        float(line.split()[1]) * 1024 for line in _read(Path("/proc/meminfo")).splitlines() if line.startswith("MemAvailable")
    ]
    return min(found)


def _container_bytes() -> float:
    """What a container's limit leaves. Cached files do not count as used: the kernel drops them when memory runs short."""
    try:
        limit, used = (float((CGROUP / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        return limit - used + float(counts.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or one without a limit
        return float("inf")


def _cpuinfo(*keys: str) -> str:
    """Value of the first line of /proc/cpuinfo with one of these keys; empty if there is none."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
