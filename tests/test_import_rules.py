"""The layout of the house: who may import whom, no circles, rooms of a readable size, and what must not be loaded at start."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("costmodel", "executor", "hardware_profiles", "reports")
MOST_MODULES, MOST_LINES = 14, 400
HEAVY = {"torch", "pandas", "matplotlib", "safetensors", "tokenizers"}
LEAN = HEAVY | {"scipy", "pydantic", "annotated_types"}  # shipped names need no validation

# Packages that a package may import, beside itself. What measures must not see a prediction, so the executor knows of the
# cost model only what a model is and what a plan says.
MAY_IMPORT = {
    "costmodel": (),
    "executor": ("costmodel.base", "costmodel.models", "costmodel.plans"),
    "reports": ("costmodel",),
    "hardware_profiles": (),
}


@cache
def module_files() -> dict[str, Path]:
    """Every module of ours by its dotted name below `magicdec`; `cli.plan` is magicdec/cli/plan.py."""
    files = {}
    for top in (*TOPS, "magicdec"):
        for file in (ROOT / top).rglob("*.py"):
            if any(parent.is_symlink() for parent in file.parents):
                continue
            parts = file.relative_to(ROOT / top if top == "magicdec" else ROOT).with_suffix("").parts
            files[".".join(part for part in parts if part != "__init__")] = file
    return files


def imports(name: str, file: Path) -> Iterator[str]:
    """Absolute names that a module imports, ours without the leading `magicdec.`"""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("magicdec.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".").removeprefix("magicdec.").removeprefix("magicdec")
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Modules of ours that each module imports, anywhere in its text."""
    found = {}
    for name, file in module_files().items():
        targets = set()
        for target in imports(name, file):
            while target and target not in module_files():
                target = target.rpartition(".")[0]
            if target and target != name:
                targets.add(target)
        found[name] = frozenset(targets)
    return found


def package_of(name: str) -> str:
    return name if module_files()[name].name == "__init__.py" else name.rpartition(".")[0]


def circle(edges: Mapping[str, frozenset[str] | set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_graph_is_the_real_one() -> None:
    assert "costmodel.speculation.evaluate" in graph()["costmodel.planning.search"]
    assert "costmodel.plans.strategy" in graph()["executor.drafting.draft_policy"]
    assert len(graph()) > 100


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert not circle(graph())


def test_no_packages_import_one_another_in_a_circle() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph().items():
        edges[package_of(name)] |= {package_of(target) for target in targets} - {package_of(name)}
    assert not circle(edges)


@pytest.mark.parametrize("top", TOPS)
def test_a_package_imports_only_what_it_may(top: str) -> None:
    for name, targets in graph().items():
        if name.split(".")[0] == top:
            others = {target for target in targets if target.split(".")[0] != top}
            strangers = {target for target in others if not any(f"{target}.".startswith(f"{may}.") for may in MAY_IMPORT[top])}
            assert not strangers, name


@pytest.mark.parametrize(("top", "banned"), [("costmodel", HEAVY), ("reports", {"torch"}), ("executor", {"pandas", "matplotlib"})])
def test_a_package_loads_no_library_that_is_not_its_own(top: str, banned: set[str]) -> None:
    for name, file in module_files().items():
        if name.split(".")[0] == top:
            assert not {target.split(".")[0] for target in imports(name, file)} & banned, name


def test_rooms_are_of_a_readable_size() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for name, file in module_files().items():
        modules[package_of(name)].append(name)
        assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, file
    by_command = {"api", "cli", "results"}  # a module for each command
    crowded = {package: len(names) for package, names in modules.items() if len(names) > MOST_MODULES and package not in by_command}
    assert not crowded


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (
            "predict --model llama-3.1-8b --hardware h100-sxm --batch-size 8 --context-len 8k",
            LEAN,
        ),
        (
            "plan --model llama-3.1-8b --hardware h100-sxm --batch-size 8 --context-len 8k",
            LEAN,
        ),
        ("predict --model reference --hardware h100-sxm --batch-size 8 --context-len 8k", HEAVY),
        ("profiles", HEAVY),
        ("--help", HEAVY | {"numpy", "scipy", "pydantic"}),
        ("report -o {folder} --batch-sizes 1,8 --context-lens 1k,8k", {"torch"}),
    ],
)
def test_planning_loads_no_torch_nor_pydantic_and_help_nearly_nothing(arguments: str, banned: set[str], tmp_path: Path) -> None:
    words = arguments.format(folder=tmp_path / "report").split()
    code = (
        "import sys\nfrom magicdec.cli.group import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(out.rsplit("LOADED", 1)[1].split())
    assert "click" in loaded
    assert not loaded & banned
