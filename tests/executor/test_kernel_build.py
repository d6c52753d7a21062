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
from magicdec.inputs.cpu_profile import CPU, cpu_profile_file, write_profile

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
        ("damaged library", "invalid ELF header|file too short"),
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
from magicdec.cli import main
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
