"""The repository as users meet it: commands in its README and docs, its files, its words."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def shown_outputs() -> ModuleType:
    """dev/shown_outputs.py, which finds commands and outputs in pages."""
    spec = importlib.util.spec_from_file_location("shown_outputs", ROOT / "dev" / "shown_outputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = [pytest.param(ROOT / "README.md", marks=pytest.mark.slow), *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_has_commands_to_check() -> None:
    found = list(shown_outputs().examples((ROOT / "README.md").read_text(encoding="utf-8")))
    assert sum(len(commands) for commands, _ in found) >= 5
    assert sum(block is not None for _, block in found) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_work_in_their_order_and_print_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only the wording has changed, `python dev/shown_outputs.py` updates the pages."""
    tool = shown_outputs()
    monkeypatch.chdir(tmp_path)
    for commands, block in tool.examples(page.read_text(encoding="utf-8")):
        if any(map(tool.needs_this_machine, commands)):
            continue  # tests/magicdec/test_demo.py runs these, at a smaller size
        printed = [line for command in commands for line in tool.run(command)]
        if block is not None:
            assert tool.first_wrong_line(block[2].splitlines(), printed) is None


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_no_file_names_a_machine_path_and_none_is_a_pickle() -> None:
    words = re.compile(r"/wor[k]/|/home/[a-z]|/roo[t]/|\.\./share[d]")
    for path in tracked():
        assert path.suffix not in (".pt", ".pth", ".bin", ".pkl")
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".c", ".h", "") and path.stat().st_size < 10**6:
            assert not words.search(path.read_text(encoding="utf-8")), path


def test_no_merge_was_left_half_done() -> None:
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    for path in tracked():
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".c", ".h"):
            assert not marks.search(path.read_text(encoding="utf-8")), path


def test_shipped_data_is_declared_as_package_data() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for pattern in ("model_configs/*.json", "acceptance_curves/*.yaml", "published/*", "checkpoint/*", "*.c", "*.h", "*.yaml"):
        assert pattern in text
