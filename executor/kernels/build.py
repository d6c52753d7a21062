"""Builds the C kernels with the machine's compiler on first use and keeps the library in the user's cache folder.

Importing this module loads neither torch nor the kernels: planning reads `sources` and `VECTOR_WIDTH`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

from ..system.cache_dir import cache_folder, is_private_file
from ..system.machine import instruction_sets

SOURCES = ("cpu_attention.c", "cpu_layers.c")
HEADERS = ("cpu_attention.h", "simd.h")
# Vectors are explicit in the sources, so nothing is gained by -ffast-math, and without it each number is summed in the same
# order whatever the type of the weights.
COMPILE_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c")
# Linked without -fopenmp: OpenMP calls go to the runtime that torch has loaded; two runtimes would compete for the cores.
# Without -nostdlib gcc may add crtfastmath.o, which would make the whole process flush denormal numbers to zero.
LINK_FLAGS = ("-shared", "-nostdlib", "-Wl,--unresolved-symbols=ignore-all")
TIME_LIMIT_S = 120
VECTOR_WIDTH = 16  # floats in the widest vector of simd.h; sizes of a model must be multiples of it


class BuildError(Exception):
    """The kernels cannot be compiled or loaded; the message is for people."""


@cache
def kernels() -> ctypes.CDLL | None:
    """Load the C kernels, after compiling them if necessary.

    The environment variable `MAGICDEC_CFLAGS` adds compiler flags; `MAGICDEC_CPU_KERNEL=off` disables the kernels.

    Returns:
        The library; None if it is disabled, or if it cannot be built or loaded, after one warning.
    """
    if disabled():
        return None
    import torch  # noqa: F401 (its OpenMP runtime must be loaded before the kernels)

    try:
        return ctypes.CDLL(str(_library()))
    except (BuildError, OSError) as error:
        message = f"the C kernels are not available, so torch computes the same results more slowly: {error}"
        warnings.warn(f"{message}\n(MAGICDEC_CPU_KERNEL=off silences this warning)", RuntimeWarning, stacklevel=2)
        return None


def disabled() -> bool:
    """Whether `MAGICDEC_CPU_KERNEL=off` is set."""
    return os.environ.get("MAGICDEC_CPU_KERNEL") in ("off", "0")


def compiler() -> str | None:
    """Path of the C compiler: cc, gcc or clang; None if there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def sources() -> dict[str, str]:
    """Text of each file that the kernels are compiled from, by name."""
    return {name: (Path(__file__).parent / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)}


def _library() -> Path:
    """The compiled library in the cache folder: one for each version of sources, processor, compiler and flags."""
    command = compiler()
    if command is None:
        raise BuildError("no C compiler found (cc, gcc or clang)")
    texts = sources()
    flags = (*COMPILE_FLAGS, *shlex.split(os.environ.get("MAGICDEC_CFLAGS", "")))
    version = _run([command, "--version"])
    facts = [*texts.values(), version, instruction_sets(), *flags, *LINK_FLAGS]
    library = cache_folder() / f"cpu_kernels-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}.so"
    digest = library.with_suffix(".sha256")
    if not _is_as_built(library, digest):
        if library.exists() or library.is_symlink():
            note = f"{library} is not as this user built it; it is built again"
            warnings.warn(note, RuntimeWarning, stacklevel=4)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            _run([command, *flags, *SOURCES], folder)
            objects = [Path(name).with_suffix(".o").name for name in SOURCES]
            _run([command, *objects, *LINK_FLAGS, "-o", "built.so"], folder)
            built = Path(folder) / "built.so"
            built.chmod(0o700)
            (Path(folder) / "built.sha256").write_text(_sha256(built), encoding="utf-8")
            os.replace(Path(folder) / "built.sha256", digest)
            os.replace(built, library)
    return library


def _is_as_built(library: Path, digest: Path) -> bool:
    """Whether the library is this user's and has the digest that was noted when it was built."""
    if not (is_private_file(library) and is_private_file(digest)):
        return False
    return digest.read_text(encoding="utf-8", errors="replace") == _sha256(library)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _run(command: list[str], folder: str | None = None) -> str:
    """Run a compiler command and return what it prints."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"`{shlex.join(command)}` took longer than {TIME_LIMIT_S} s") from None
    if done.returncode:
        raise BuildError(f"`{shlex.join(command)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
