"""Builds the C kernels with the machine's compiler on first use and keeps the library in the user's cache folder.

Importing this module loads neither torch nor the kernels: planning reads `sources` and `VECTOR_WIDTH`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..system.cache_dir import cache_folder, is_private_file
from ..system.machine import instruction_sets, processor_name

SOURCES = ("cpu_attention.c", "cpu_layers.c")
HEADERS = ("cpu_attention.h", "simd.h")
# Vectors and FMA are explicit in the sources, so nothing is gained by -ffast-math, and without it each number is summed and
# rounded in the same order whatever the compiler and the type of the weights.
COMPILE_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fPIC")
# Of each of these the first that the compiler accepts is used. Compilers name the processor differently, and Apple's clang passes
# -fopenmp only to its inner part.
PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())
OPENMP_FLAGS = (("-fopenmp",), ("-Xclang", "-fopenmp"), ())
# Without start files nothing runs when the library is loaded: some of GCC's would make the whole process flush denormal numbers to
# zero. Names that nobody defines at link time are those of OpenMP: torch has loaded its runtime.
LINK_FLAGS = {
    "Darwin": ("-dynamiclib", "-undefined", "dynamic_lookup"),
    "Linux": ("-shared", "-nostartfiles", "-Wl,--unresolved-symbols=ignore-all"),
}
TIME_LIMIT_S = 120
VECTOR_WIDTH = 16  # floats in the widest vector of simd.h; sizes of a model must be multiples of it


class BuildError(Exception):
    """The kernels cannot be compiled or loaded; the message is for people."""


@cache
def kernels() -> ctypes.CDLL | None:
    """Load the C kernels, after compiling them if necessary.

    The environment variable `MAGICDEC_CC` names the compiler, `MAGICDEC_CFLAGS` adds compiler flags, and `MAGICDEC_CPU_KERNEL=off`
    disables the kernels.

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
    """Path of the C compiler: what `MAGICDEC_CC` names, by default cc, gcc or clang; None if there is none."""
    chosen = os.environ.get("MAGICDEC_CC")
    if chosen:
        return shutil.which(chosen)
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def sources() -> dict[str, str]:
    """Text of each file that the kernels are compiled from, by name."""
    return {name: (Path(__file__).parent / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)}


def _library() -> Path:
    """The compiled library in the cache folder: one for each version of sources, processor, compiler and flags."""
    import torch

    command = compiler()
    if command is None:
        raise BuildError(f"no C compiler found ({os.environ.get('MAGICDEC_CC') or 'cc, gcc or clang'})")
    texts = sources()
    user_flags = shlex.split(os.environ.get("MAGICDEC_CFLAGS", ""))
    settings = (COMPILE_FLAGS, PROCESSOR_FLAGS, OPENMP_FLAGS, LINK_FLAGS, user_flags, torch.__version__, _one_thread())
    facts = [*texts.values(), _run([command, "--version"]), processor_name(), instruction_sets(), str(settings)]
    # macOS loads a library of this name too.
    library = cache_folder() / f"cpu_kernels-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:16]}.so"
    digest = library.with_suffix(".sha256")
    if not _is_as_built(library, digest):
        if library.exists() or library.is_symlink():
            note = f"{library} is not as this user built it; it is built again"
            warnings.warn(note, RuntimeWarning, stacklevel=4)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            built = _build(command, user_flags, Path(folder))
            built.chmod(0o700)
            (Path(folder) / "built.sha256").write_text(_sha256(built), encoding="utf-8")
            os.replace(Path(folder) / "built.sha256", digest)
            os.replace(built, library)
    return library


def _build(command: str, user_flags: list[str], folder: Path) -> Path:
    """Compile the sources in a folder into a library that this process can load.

    OpenMP comes from the runtime that torch has loaded, because two of them compete for the cores. If that one is not the
    compiler's (GCC's beside clang), it comes from the compiler's own. Without any the kernels compute on one thread, so they are
    built only where torch has one thread too.
    """
    processor, openmp = (_first_accepted(command, flags, folder) for flags in (PROCESSOR_FLAGS, OPENMP_FLAGS))
    link_flags = LINK_FLAGS.get(platform.system(), LINK_FLAGS["Linux"])
    ways: list[tuple[tuple[str, ...], tuple[str, ...]]] = [(openmp, ()), (openmp, openmp)] if openmp else []
    if _one_thread():
        ways.append(((), ()))
    failure = BuildError(f"{command} has no OpenMP, without which the kernels would use one thread of {os.cpu_count()}")
    objects, built = [Path(name).with_suffix(".o").name for name in SOURCES], folder / "built.so"
    for compiled_with, linked_with in ways:
        _run([command, *COMPILE_FLAGS, *processor, *compiled_with, *user_flags, "-c", *SOURCES], folder)
        try:
            _run([command, *objects, *link_flags, *linked_with, "-o", built.name], folder)
            ctypes.CDLL(str(built))
        except (BuildError, OSError) as error:
            failure = BuildError(str(error))
        else:
            return built
    raise failure


def _first_accepted(command: str, candidates: Sequence[tuple[str, ...]], folder: Path) -> tuple[str, ...]:
    """The first of several sets of flags that the compiler accepts, or the last one."""
    (folder / "empty.c").write_text("int nothing;\n", encoding="utf-8")
    for flags in candidates[:-1]:
        try:
            _run([command, *flags, "-c", "empty.c"], folder)
        except BuildError:
            continue
        return flags
    return candidates[-1]


def _one_thread() -> bool:
    import torch

    return torch.get_num_threads() == 1


def _is_as_built(library: Path, digest: Path) -> bool:
    """Whether the library is this user's and has the digest that was noted when it was built."""
    if not (is_private_file(library) and is_private_file(digest)):
        return False
    return digest.read_text(encoding="utf-8", errors="replace") == _sha256(library)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _run(command: list[str], folder: Path | None = None) -> str:
    """Run a compiler command and return what it prints."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"`{shlex.join(command)}` took longer than {TIME_LIMIT_S} s") from None
    if done.returncode:
        raise BuildError(f"`{shlex.join(command)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
