"""`scripts/gpu-check`, as far as it goes without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do_instead(tmp_path: Path) -> None:
    ended = call("-o", str(tmp_path / "out"))
    assert ended.returncode == 2
    assert "finds no GPU" in ended.stderr
    assert "--rehearse" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_that_fails_loses_nothing_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "tests.txt").mkdir()  # so that the stage `tests` cannot write its log
    ended = call("--rehearse", "--stages", "rates,tests,speculation", "-o", str(tmp_path))
    assert ended.returncode == 1
    assert "tests: failed" in ended.stdout
    assert "not done: tests" in ended.stdout
    rates = [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text().splitlines()]
    assert {row["what"] for row in rates} == {"environment", "memory", "product", "layer"}
    assert all(row["time_s"] > 0 for row in rates if row["what"] == "layer")
    speculation = [json.loads(line) for line in (tmp_path / "speculation.jsonl").read_text().splitlines()]
    assert all(row["speedup"] > 0 for row in speculation)
