"""The repository as users meet it: its README commands, its files, its words."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from magicdec.cli import main

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("magicdec ")]


def test_the_readme_has_commands_to_check() -> None:
    assert len(readme_commands()) >= 5


def test_readme_commands_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in readme_commands():
        if command.startswith("magicdec demo") or "--hardware cpu" in command:
            continue  # tests/magicdec/test_demo.py runs these, at a smaller size
        result = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"


def test_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [p for p in tracked() if p.suffix == ".py" and p.parts[len(ROOT.parts)] not in ("tests", "benchmarks")]
    missing = [str(p.relative_to(ROOT)) for p in modules if p.name != "__init__.py" and p.name not in readme]
    assert modules
    assert not missing


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
