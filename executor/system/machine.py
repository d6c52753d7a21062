"""Facts about this machine: its processor, caches and memory. Imports nothing heavy.

Linux tells them in /proc and /sys, macOS through two small programs. What neither tells is unknown, and never an error.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SYSCTL, VM_STAT = "/usr/sbin/sysctl", "/usr/bin/vm_stat"  # of macOS
UNKNOWN_CACHE_BYTES = 2.0**25  # assumed where the system does not tell
UNKNOWN_MEMORY_BYTES = 2.0**33
RECLAIMABLE = ("free", "inactive", "speculative")  # pages that macOS gives to who asks


def processor_name() -> str:
    """The CPU's model name; on Arm under Linux its numbers, since there is no name."""
    arm = [_cpuinfo("CPU implementer"), _cpuinfo("CPU part"), _cpuinfo("CPU revision")]
    numbers = f"{platform.machine()} CPU implementer {arm[0]} part {arm[1]} revision {arm[2]}" if arm[0] else ""
    return _cpuinfo("model name") or numbers or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """The CPU's instruction set extensions (x86 `flags`, Arm `Features` of Linux, x86 features of macOS); empty if unknown."""
    on_macos = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    return _cpuinfo("flags", "Features") or " ".join(filter(None, map(_sysctl, on_macos)))


def last_level_cache_bytes() -> float:
    """Size of the CPU's largest cache; 32 MiB if unknown. [bytes]"""
    sizes = []
    for file in CPU_CACHES.glob("index*/size"):
        size = _read(file).strip()
        if size:
            sizes.append(float(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1))
    on_macos = map(_sysctl, ("hw.perflevel0.l2cachesize", "hw.l2cachesize", "hw.l3cachesize"))
    sizes += [float(size) for size in on_macos if size.isdecimal()]
    return max(sizes, default=0.0) or UNKNOWN_CACHE_BYTES


def memory_bytes() -> float:
    """Installed memory; 8 GiB if unknown. [bytes]"""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        size = _sysctl("hw.memsize")
        return float(size) if size.isdecimal() else UNKNOWN_MEMORY_BYTES


def available_memory_bytes() -> float:
    """Memory that can still be allocated, of the machine and of the container this process may run in. [bytes]"""
    lines = _read(MEMINFO).splitlines()
    found = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return min([_container_bytes(), *(found or [_reclaimable_bytes() or memory_bytes()])])


def peak_memory_bytes() -> float:
    """The most memory that this process has had so far. [bytes]"""
    import resource

    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _container_bytes() -> float:
    """What a container's limit leaves. Cached files do not count as used: the kernel drops them when memory runs short."""
    try:
        limit, used = (float((CGROUP / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        return limit - used + float(counts.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or one without a limit
        return float("inf")


def _reclaimable_bytes() -> float:
    """Free pages of macOS and those it can free at once; 0 if unknown."""
    text = _output(VM_STAT)
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (\w+):\s+(\d+)", text, re.MULTILINE))
    return float(page[1]) * sum(int(pages.get(kind, 0)) for kind in RECLAIMABLE) if page else 0.0


def _cpuinfo(*keys: str) -> str:
    """Value of the first line of /proc/cpuinfo with one of these keys; empty if there is none."""
    for line in _read(CPUINFO).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _sysctl(name: str) -> str:
    """A value that macOS keeps under this name; empty on other systems, or if it has none."""
    return _output(SYSCTL, "-n", name).strip() if sys.platform == "darwin" else ""


def _output(*command: str) -> str:
    """What a program prints; empty if there is no such program or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
