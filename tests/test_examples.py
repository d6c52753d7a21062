"""The examples run as they are, and print what they promise."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_examples_can_be_read_in_one_go(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 60


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {"own_acceptance", "paper_figures", "server_plan"}


@pytest.mark.slow
def test_the_figures_of_the_paper_are_drawn_for_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("paper_figures").main(str(tmp_path / "figures"))
    printed = capsys.readouterr().out
    assert "best gamma" in printed
    assert "Qwen2.5-7B" in (tmp_path / "figures" / "index.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "figures").glob("*.svg"))) >= 3


def test_a_server_gets_a_plan_a_map_and_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("server_plan").main(str(tmp_path / "plan"))
    printed = capsys.readouterr().out
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in printed
    assert "note: " in printed
    assert "--tensor-parallel-size 8" in (tmp_path / "plan" / "start.sh").read_text(encoding="utf-8")


def test_acceptance_is_measured_and_planned_with(capsys: pytest.CaptureFixture[str]) -> None:
    load("own_acceptance").main(context_len=512, rows=1, gamma=2, max_new_tokens=6)
    printed = capsys.readouterr().out
    assert "acceptance rate" in printed
    assert printed.count("reference on l4, batch 256") == 2
