"""The C kernels of this folder, compiled on first use with the machine's own compiler and kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from ..system.cache_dir import cache_folder

SOURCES = ("cpu_attention.c", "cpu_layers.c")
VECTOR_WIDTH = 16  # the widest vector of simd.h: dimensions of a model must be multiples of it
HEADERS = ("cpu_attention.h", "simd.h")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-shared", "-fPIC")


@cache
def kernels() -> ctypes.CDLL | None:
    """The kernels, or None where there is no C compiler or `MAGICDEC_CPU_KERNEL=off` is set.

    `MAGICDEC_CFLAGS` adds flags of the compiler.
    """
    if os.environ.get("MAGICDEC_CPU_KERNEL") == "off":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_library(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def sources() -> dict[str, str]:
    """Text of each file that the kernels are compiled from."""
    return {name: (resources.files(__package__) / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)}


def _library(compiler: str) -> Path:
    """The compiled kernels; one file for each version of the sources, processor, compiler and flags."""
    texts = sources()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    flags = (*FLAGS, *shlex.split(os.environ.get("MAGICDEC_CFLAGS", "")))
    processor = next((line for line in _cpuinfo() if line.startswith(("flags", "Features"))), "")
    key = hashlib.sha256("\n".join([*texts.values(), version, processor, *flags]).encode()).hexdigest()[:16]
    library = cache_folder() / f"cpu_kernels-{key}.so"
    if library.is_file() and library.stat().st_uid != os.getuid():
        raise OSError(f"{library} belongs to another user")
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            # Linked without an OpenMP library of its own: torch has brought one, and two would fight over the cores.
            linked = ["-Wl,--unresolved-symbols=ignore-all", "-nostdlib"]
            command = [compiler, *flags, *SOURCES, "-o", "built.so", *linked]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
            os.replace(Path(folder) / "built.so", library)
    return library


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
