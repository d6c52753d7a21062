"""Facts about a machine, where Linux tells them, where macOS does, and where nothing does."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from magicdec.executor.system import machine

NOWHERE = ("CPUINFO", "MEMINFO", "CPU_CACHES", "CGROUP")
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            300000.
Pages inactive:                           20000.
Pages speculative:                         5000.
Pages wired down:                        100000.
"Translation faults":                 123456789.
"""


@pytest.fixture
def no_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without /proc, /sys and cgroups."""
    for name in NOWHERE:
        monkeypatch.setattr(machine, name, tmp_path / "nowhere")


def program(file: Path, answers: dict[str, str]) -> str:
    """A program that prints an answer for its last word, and fails for other words."""
    cases = "\n".join(f"    {key}) cat <<'END'\n{value}\nEND\n;;" for key, value in answers.items())
    file.write_text(f'#!/bin/sh\nfor word; do :; done\ncase "$word" in\n{cases}\n    *) exit 1;;\nesac\n')
    file.chmod(0o700)
    return str(file)


def test_this_machine_tells_everything() -> None:
    assert machine.processor_name()
    assert 2**15 <= machine.last_level_cache_bytes() <= 2**33
    assert 2**28 <= machine.available_memory_bytes() <= 2**46
    assert machine.available_memory_bytes() <= machine.memory_bytes() * 1.01
    assert 2**23 <= machine.peak_memory_bytes() <= machine.memory_bytes() * 1.01


@pytest.mark.usefixtures("no_linux")
def test_macos_tells_through_sysctl_and_vm_stat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers = {"machdep.cpu.brand_string": "Apple M3 Pro", "hw.perflevel0.l2cachesize": "16777216", "hw.l2cachesize": "4194304"}
    monkeypatch.setattr(machine, "SYSCTL", program(tmp_path / "sysctl", {**answers, "hw.memsize": "38654705664"}))
    monkeypatch.setattr(machine, "VM_STAT", program(tmp_path / "vm_stat", {"*": VM_STAT}))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.processor_name() == "Apple M3 Pro"
    assert machine.instruction_sets() == ""
    assert machine.last_level_cache_bytes() == 2**24
    assert machine.available_memory_bytes() == 35_000 * 16384
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert machine.peak_memory_bytes() == pytest.approx(peak, rel=0.1), "macOS counts bytes, Linux KiB"

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert machine.memory_bytes() == 38_654_705_664


@pytest.mark.usefixtures("no_linux")
@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_what_no_system_tells_is_assumed(system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SYSCTL", "VM_STAT"):
        monkeypatch.setattr(machine, name, str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "platform", system)
    assert machine.processor_name()
    assert machine.instruction_sets() == ""
    assert machine.last_level_cache_bytes() == machine.UNKNOWN_CACHE_BYTES
    assert machine.available_memory_bytes() == machine.memory_bytes()


def test_an_arm_processor_under_linux_is_named_by_its_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its /proc/cpuinfo has no name. Two processors must not share a cached profile."""
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd atomics\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\nCPU revision\t: 1\n")
    monkeypatch.setattr(machine, "CPUINFO", file)
    assert machine.processor_name().endswith("CPU implementer 0x41 part 0xd40 revision 1")
    assert machine.instruction_sets() == "fp asimd atomics"
