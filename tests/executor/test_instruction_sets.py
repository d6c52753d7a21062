"""The C kernels as each compiler builds them for each processor compute what torch computes in float64, within `ROUNDING`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_replay import SANITIZERS, compile_driver, random_cases, replay

from magicdec.executor.system.machine import instruction_sets

COMPILERS = ("gcc", "clang")
X86 = {  # by what a processor needs to run it: flags of the compiler
    "AVX-512": ("avx512f avx512bw avx512vl", "-march=x86-64-v4"),
    "AVX2": ("avx2 fma f16c", "-march=x86-64-v3"),
    "AVX without FMA": ("avx", "-march=x86-64 -mavx"),
    "plain C": ("", "-march=x86-64"),
}
ANYWHERE = {
    "plain C, 4 floats": "-DLANES=4",
    "plain C, 8 floats": "-DLANES=8 -Wno-psabi",
    "plain C, 16 floats": "-DLANES=16 -Wno-psabi",
}
EMULATOR = "qemu-aarch64-static"
ARM = {
    "NEON": "-march=armv8-a",
    "NEON of a later processor": "-march=armv8.2-a+fp16+dotprod",
    "plain C, 16 floats": "-DLANES=16 -Wno-psabi",
}
ARM_COMPILERS = {"gcc": ("aarch64-linux-gnu-gcc",), "clang": ("clang", "--target=aarch64-linux-gnu")}
ARM_BUILDS = [("NEON", "gcc"), ("NEON", "clang"), ("NEON of a later processor", "clang"), ("plain C, 16 floats", "clang")]
on_x86 = platform.machine() in ("x86_64", "AMD64")


def built(command: tuple[str, ...], flags: str, folder: Path, *, openmp: bool = True) -> Path:
    """The driver; the test is skipped if there is no such compiler, or if it has no OpenMP and that is asked for."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    words = flags.split()
    if openmp and not has_openmp(command, folder):
        pytest.skip(f"{' '.join(command)} has no OpenMP runtime to link")
    return compile_driver(command, [*words, "-fopenmp" if openmp else "-Wno-unknown-pragmas"], folder)


def has_openmp(command: tuple[str, ...], folder: Path) -> bool:
    source = folder / "openmp.c"
    source.write_text("int main(void) {\n#pragma omp parallel\n{ }\nreturn 0; }\n", encoding="utf-8")
    words = [*command, "-fopenmp", str(source), "-o", str(folder / "openmp")]
    return subprocess.run(words, capture_output=True, check=False, timeout=120).returncode == 0


@pytest.mark.skipif(not on_x86, reason="needs an x86-64 processor")
@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("processor", X86)
def test_each_x86_build_computes_what_torch_does(processor: str, compiler: str, tmp_path: Path) -> None:
    """With AVX-512 only as far as building on a processor that has none."""
    needed, flags = X86[processor]
    driver = built((compiler,), flags, tmp_path)
    if not set(needed.split()) <= set(instruction_sets().split()):
        pytest.skip(f"built with {compiler}, but not run: this processor has no {processor}")
    replay([str(driver)], list(random_cases(60, seed=1)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("vectors", "compiler"), [*zip(ANYWHERE, ("gcc", "clang", "gcc"), strict=True)])
def test_vectors_of_each_length_compute_what_torch_does(vectors: str, compiler: str, tmp_path: Path) -> None:
    """16 floats take the paths of AVX-512 on any machine. Here without OpenMP, so on one thread."""
    driver = built((compiler,), ANYWHERE[vectors], tmp_path, openmp=False)
    replay([str(driver)], list(random_cases(60, seed=2)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("processor", "compiler"), ARM_BUILDS)
def test_arm_builds_compute_what_torch_does_under_emulation(processor: str, compiler: str, tmp_path: Path) -> None:
    """Cross-compiled; GCC's build with its OpenMP runtime, clang's on one thread."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not installed")
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("aarch64-linux-gnu-gcc, whose libraries clang uses too, is not installed")
    driver = built(ARM_COMPILERS[compiler], f"-static {ARM[processor]}", tmp_path, openmp=compiler == "gcc")
    replay([EMULATOR, str(driver)], list(random_cases(45, seed=3)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-O1", "-O1 -DLANES=16 -Wno-psabi"])
def test_sanitizers_find_nothing_on_random_shapes(flags: str, tmp_path: Path) -> None:
    """Every buffer has exactly the size that Python gives it. `scripts/sanitize` tries as many shapes as wanted."""
    native = "-march=x86-64-v3" if "avx2" in instruction_sets() else ""
    driver = built(("gcc",), f"{flags} {native} {' '.join(SANITIZERS)}", tmp_path)
    replay([str(driver)], list(random_cases(90, seed=4)), tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.slow
def test_sanitizers_find_an_access_outside(tmp_path: Path) -> None:
    """A buffer that is 4 bytes too short is noticed."""
    driver = built(("gcc",), f"-O1 {' '.join(SANITIZERS)}", tmp_path)
    cases = list(random_cases(3, seed=5))
    short = cases[2].buffers[-1]
    object.__setattr__(short, "size", short.size - 4)
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        replay([str(driver)], cases, tmp_path)


def test_the_plain_build_is_the_one_for_unknown_processors() -> None:
    """The test of plain C would prove nothing if the compiler had intrinsics of this processor on by default."""
    if shutil.which("gcc") is None or not on_x86:
        pytest.skip("needs gcc on x86-64")
    words = ["gcc", "-march=x86-64", "-dM", "-E", "-x", "c", os.devnull]
    defined = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "__AVX__" not in defined
