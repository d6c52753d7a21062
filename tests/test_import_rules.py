"""Who may import whom, and what must not be loaded at start."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"costmodel", "executor", "reports", "magicdec", "hardware_profiles"}
DATA_CLASSES = {"units", "transformer", "architecture", "hf_config", "workload", "strategy", "policy", "plan", "errors"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_by(package: str) -> set[str]:
    return {name for file in (ROOT / package).rglob("*.py") for name in imports(file)}


def test_costmodel_imports_no_other_package_of_ours_and_no_heavy_library() -> None:
    tops = {name.split(".")[0] for name in imported_by("costmodel")}
    assert "numpy" in tops
    assert not tops & (OURS - {"costmodel"} | {"torch", "pandas", "matplotlib"})


def test_executor_sees_only_data_classes_of_the_cost_model() -> None:
    names = imported_by("executor")
    assert not {name.split(".")[0] for name in names} & {"reports", "magicdec", "pandas", "matplotlib"}
    modules = {name.split(".")[1] for name in names if name.startswith("costmodel.")}
    assert "transformer" in modules
    assert modules <= DATA_CLASSES


def test_reports_never_import_the_executor_or_torch() -> None:
    tops = {name.split(".")[0] for name in imported_by("reports")}
    assert "costmodel" in tops
    assert not tops & {"executor", "torch", "magicdec"}


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        ("predict --model llama-3.1-8b --hardware h100-sxm --batch-size 8 --context-len 8k", {"torch", "pandas", "matplotlib"}),
        ("plan --model llama-3.1-8b --hardware h100-sxm --batch-size 8 --context-len 8k", {"torch", "pandas", "matplotlib"}),
        ("predict --model reference --hardware h100-sxm --batch-size 8 --context-len 8k", {"torch", "pandas", "matplotlib"}),
        ("profiles", {"torch", "pandas", "matplotlib"}),
        ("--help", {"torch", "pandas", "matplotlib", "numpy", "scipy"}),
        ("report -o {folder} --batch-sizes 1,8 --context-lens 1k,8k", {"torch"}),
    ],
)
def test_planning_loads_no_torch_and_help_loads_nearly_nothing(arguments: str, banned: set[str], tmp_path: Path) -> None:
    words = arguments.format(folder=tmp_path / "report").split()
    code = (
        "import sys\nfrom magicdec.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(out.rsplit("LOADED", 1)[1].split())
    assert "click" in loaded
    assert not loaded & banned
