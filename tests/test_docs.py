"""The documentation: what it names exists, what it lists runs, what it shows is printed, and it builds without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import magicdec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOPS = ("magicdec", "costmodel", "executor", "reports", "hardware_profiles")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def listing() -> str:
    """The code of docs/explanation/round.md, the one that makes up the page."""
    return re.findall(
        r"^```python\n(.*?)^```", (DOCS / "explanation" / "round.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )[0]


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md")), ROOT / "dev" / "log.md", ROOT / "hardware_profiles" / "README.md"]


def modules() -> set[str]:
    """Every module of ours by its path, packages' own files left out."""
    found = set()
    for top in TOPS:
        for file in (ROOT / top).rglob("*.py"):
            if file.name != "__init__.py" and not any(parent.is_symlink() for parent in file.parents):
                found.add(str(file.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_to_files(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_architecture_page_has_a_line_for_every_module_and_no_other() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^- `([\w/]+\.py)`: ", text, re.MULTILINE))
    assert named == modules()


def test_the_architecture_page_has_a_line_for_every_package() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    packages = {str(Path(module).parent) for module in modules()}
    missing = [package for package in packages if f"`{package}/`" not in text]
    assert not missing


def test_files_that_the_architecture_page_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(TOPS)}|tests|docs|dev|examples|benchmarks|scripts)/[\w./-]*)`", text)
    assert len(named) >= 50
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["architecture.md", "reference/glossary.md", "how-to/kv-policy.md", "how-to/export.md"])
def test_identifiers_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`([A-Za-z_][\w.]*\w)(?:\([\w, ]*\))?`", (DOCS / page).read_text(encoding="utf-8")))
    code = "\n".join((ROOT / module).read_text(encoding="utf-8") for module in modules())
    words = set(re.findall(r"\w+", code)) | {"num_speculative_tokens", "newest", "plan.yaml", *TOPS}
    assert len(named) >= 5
    missing = {name for name in named if name not in words and not set(name.split(".")) <= words and not (ROOT / name).exists()}
    assert not missing


def test_the_version_to_cite_is_the_version() -> None:
    assert f"\nversion: {magicdec.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_reference_renders_every_public_function_and_result() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    rendered = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    names = {name.rpartition(".")[2] for name in rendered}
    assert set(magicdec.__all__) <= names
    for file in (ROOT / "magicdec" / "results").glob("*.py"):
        module = f"magicdec.results.{file.stem}"
        for name in re.findall(r"^class ([A-Z]\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"{module}.{name}" in rendered


def test_shared_entries_of_docstrings_are_split() -> None:
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("griffe_shared_entries", ROOT / "dev" / "griffe_shared_entries.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert doctest.testmod(module) == (0, 1)


@pytest.mark.parametrize(("gamma", "kv_budget"), [(1, 20), (3, 20), (5, 4), (4, 100)])
def test_the_listing_decodes_as_the_executor_does(gamma: int, kv_budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "executor"))
    from tiny_models import continue_without_cache, random_prompts, tiny_model

    from magicdec.costmodel.plans.strategy import Strategy
    from magicdec.executor.engine.request import Request
    from magicdec.executor.engine.settings import GenerationSettings
    from magicdec.executor.generate import run

    model, (prompt,) = tiny_model(), random_prompts([40])
    page: dict[str, Any] = {}
    exec(listing(), page)
    listed = page["generate"](model, prompt, 21, gamma=gamma, kv_budget=kv_budget)
    strategy = Strategy("self", "streaming_llm", kv_budget, gamma)
    result = run(model, None, [Request("1", prompt)], strategy, GenerationSettings(21))
    assert listed == result.outputs[0] == continue_without_cache(model, prompt, 21)


def test_the_listing_can_be_read_in_one_go() -> None:
    assert len(listing().splitlines()) <= 60


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert "--8<--" not in html, f"{page.name} has a snippet that was not included"
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', html)
        assert not loaded, f"{page.name} loads from the network"
