"""Building the C kernels: what is linked, what a failure says, and that planning does without them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import save_checkpoint, tiny_model

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.executor.kernels import build
from magicdec.executor.system import cache_dir
from magicdec.inputs import names
from magicdec.inputs.cpu_profile import CPU, cpu_profile_file, write_profile

reads_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of loaded files")
needs_compiler = pytest.mark.skipif(build.compiler() is None or build.disabled(), reason="needs a C compiler and the kernels on")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is built, loaded or switched off; the cache folder, which is the temporary one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MAGICDEC_CPU_KERNEL", raising=False)
    build.kernels.cache_clear()
    yield tmp_path / "magicdec"
    build.kernels.cache_clear()


@needs_compiler
def test_with_a_compiler_there_are_kernels() -> None:
    """Otherwise every test of them would be skipped."""
    assert build.kernels() is not None


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("flag", "unrecognized|unknown|unsupported|no-such-flag"),
        ("no compiler", "no C compiler found"),
        ("too slow", "took longer than"),
        ("damaged library", "invalid ELF header|file too short|not valid mach-o"),
    ],
)
def test_a_failed_build_warns_once_with_the_reason(failure: str, said: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if failure == "flag":
        monkeypatch.setenv("MAGICDEC_CFLAGS", "--no-such-flag")
    elif failure == "no compiler":
        monkeypatch.setattr(build, "compiler", lambda: None)
    elif failure == "too slow":
        monkeypatch.setattr(build, "TIME_LIMIT_S", 1e-4)
    else:
        monkeypatch.setattr(
            build, "_run", lambda command, folder=None: (folder and str((Path(folder) / "built.so").write_text("x"))) or ""
        )
    if failure in ("flag", "too slow") and build.compiler() is None:
        pytest.skip("needs a C compiler")
    with pytest.warns(RuntimeWarning, match=f"(?s)torch computes the same results.*({said}).*MAGICDEC_CPU_KERNEL=off") as caught:
        assert build.kernels() is None
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.kernels() is None


@pytest.mark.parametrize("value", ["off", "0"])
def test_kernels_that_are_switched_off_are_not_built_and_give_no_warning(
    value: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGICDEC_CPU_KERNEL", value)
    assert build.kernels() is None
    assert not fresh.exists()


@reads_maps
@needs_compiler
def test_the_library_brings_no_openmp_runtime_and_keeps_denormal_numbers() -> None:
    """A second runtime would compete with torch's for the cores; crtfastmath would change numbers in the whole process."""
    code = """
import re, torch
from magicdec.executor.kernels.build import kernels
openmp = lambda: sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search("(gomp|iomp|libomp)", line)})
before = openmp()
assert kernels() is not None
assert openmp() == before, openmp()
assert float(torch.tensor([1e-39]) * 0.5) > 0
assert 5e-324 * 1.0 > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@reads_maps
@pytest.mark.parametrize("model", ["reference", "a checkpoint in 16 bits"])
def test_planning_for_this_cpu_loads_no_kernels_and_no_openmp(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    profile = resolve_profile("h100-sxm")  # any numbers will do, with a rate for 16 bits
    write_profile(replace(profile, name=CPU), cpu_profile_file())
    if model != "reference":
        model = str(tmp_path / "model")
        save_checkpoint(Path(model), tiny_model(dtype="bfloat16", d_model=48, head_dim=16, d_ff=80))
    words = ["predict", "--model", model, "--hardware", CPU, "--batch-size", "2", "--context-len", "128", "--json"]
    code = f"""
import sys
from magicdec.cli.group import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code
maps = open("/proc/self/maps").read()
assert "libpython" in maps or "python" in maps
for name in ("gomp", "cpu_kernels", "libtorch"):
    assert name not in maps, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
    assert not [*(tmp_path / "cache").rglob("*.so")]


@needs_compiler
@pytest.mark.parametrize("damage", ["cut off", "garbage", "link", "writable by others", "no digest"])
def test_a_library_that_is_not_as_it_was_built_is_built_again(damage: str, fresh: Path, tmp_path: Path) -> None:
    """A cut-off library would end the process when it is loaded, a planted one would run somebody else's code."""
    assert build.kernels() is not None
    (library,) = fresh.glob("*.so")
    built = library.read_bytes()
    if damage == "cut off":
        library.write_bytes(built[: len(built) // 2])
    elif damage == "garbage":
        library.write_bytes(b"\x7fELF" + bytes(4096))
    elif damage == "link":
        planted = tmp_path / "planted.so"
        planted.write_bytes(built)
        library.unlink()
        library.symlink_to(planted)
    elif damage == "writable by others":
        library.chmod(0o777)
    else:
        library.with_suffix(".sha256").unlink()
    build.kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="it is built again") as caught:
        assert build.kernels() is not None
    assert len(caught) == 1
    assert not library.is_symlink()
    assert library.stat().st_mode & 0o022 == 0
    build.kernels.cache_clear()
    assert build.kernels() is not None, "without another warning"


@pytest.mark.parametrize("fault", ["link", "writable by others", "a file"])
def test_a_cache_folder_that_others_could_write_is_not_used(fault: str, fresh: Path, tmp_path: Path) -> None:
    if fault == "link":
        (tmp_path / "elsewhere").mkdir()
        fresh.symlink_to(tmp_path / "elsewhere")
    elif fault == "a file":
        fresh.write_text("")
    else:
        fresh.mkdir()
        fresh.chmod(0o777)
    folder = cache_dir.cache_folder()
    assert folder != fresh
    assert folder == cache_dir.cache_folder()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_cached_profile_of_somebody_else_or_a_damaged_one_is_measured_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    profile = replace(resolve_profile("l40"), name=CPU)
    monkeypatch.setattr(names, "measure_cpu", lambda model, bar: measured.append("again") or profile)
    names.find_hardware(CPU)
    names.find_hardware(CPU)
    assert len(measured) == 1
    file = cpu_profile_file()
    file.write_text("name: [")
    assert names.find_hardware(CPU).name == CPU
    assert len(measured) == 2
    file.chmod(0o666)
    names.find_hardware(CPU)
    assert len(measured) == 3
    text = file.read_text()
    file.unlink()
    (fresh / "planted.yaml").write_text(text)
    file.symlink_to(fresh / "planted.yaml")
    names.find_hardware(CPU)
    assert len(measured) == 4


def compiler_like(folder: Path, lines: str) -> str:
    """A compiler that behaves differently from the machine's, which it calls with "$@" in the end."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\n{lines}\nexec "{build.compiler()}" "$@"\n')
    script.chmod(0o700)
    return str(script)


REFUSE = 'case "$*" in *{0}*) echo "error: unsupported option {0}" >&2; exit 1;; esac'
LIKE_APPLE = """
case "$*" in *-march=native*) echo "error: unsupported option -march=native" >&2; exit 1;; esac
for word; do
    shift
    case "$last $word" in
        "-Xclang -fopenmp") set -- "$@" -fopenmp;;
        *" -fopenmp") echo "error: unsupported option -fopenmp" >&2; exit 1;;
        *" -Xclang") ;;
        *) set -- "$@" "$word";;
    esac
    last="$word"
done
"""


@needs_compiler
@pytest.mark.parametrize(
    ("lines", "used", "unused"),
    [
        (REFUSE.format("-march=native"), ["-fopenmp"], ["-march=native"]),
        (f"{REFUSE.format('-march=native')}\n{REFUSE.format('-mcpu=native')}", ["-fopenmp"], ["-mcpu=native", "-march=native"]),
        (LIKE_APPLE, ["-Xclang -fopenmp"], ["-march=native"]),
        (REFUSE.format("-fopenmp"), [], ["-fopenmp"]),
    ],
    ids=["another name of the processor", "no name of the processor", "Apple's clang", "no OpenMP"],
)
def test_the_kernels_build_with_what_a_compiler_accepts(
    lines: str, used: list[str], unused: list[str], fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGICDEC_CC", compiler_like(tmp_path, f'echo "$*" >> {tmp_path / "calls"}\n{lines}'))
    monkeypatch.setattr(build, "_one_thread", lambda: used == [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.kernels() is not None
    compiled = [line for line in (tmp_path / "calls").read_text().splitlines() if "cpu_layers.c" in line][-1]
    assert all(flag in compiled for flag in used)
    assert not any(flag in compiled.replace("-Xclang -fopenmp", "") for flag in unused)


@needs_compiler
def test_without_openmp_several_threads_are_left_to_torch(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread of the kernels would be slower than all of torch's."""
    monkeypatch.setenv("MAGICDEC_CC", compiler_like(tmp_path, REFUSE.format("-fopenmp")))
    monkeypatch.setattr(build, "_one_thread", lambda: False)
    with pytest.warns(RuntimeWarning, match="has no OpenMP"):
        assert build.kernels() is None


def test_a_compiler_that_does_not_exist_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGICDEC_CC", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match="no C compiler found .no-such-compiler."):
        assert build.kernels() is None
