"""The table of well-known deployments in docs/accuracy.md: what is reported of them, and what the memory model says."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.passes.cache import kv_bytes_per_gpu
from magicdec.costmodel.speculation.memory import Memory, memory_of, usable_bytes

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"


@dataclass(frozen=True)
class Deployment:
    """A row of the table; `reported` and `ours` are cells of it."""

    model: str
    gpus: int
    hardware: str
    kv: str
    context_len: int
    reported: str
    ours: str


def deployments() -> list[Deployment]:
    """Rows of the table below the heading."""
    section = PAGE.read_text(encoding="utf-8").partition("## Memory of known deployments")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    return [
        Deployment(model, int(machine.split(" x ")[0]), machine.split(" x ")[1], kv, int(context.replace(",", "")), reported, ours)
        for model, machine, kv, context, reported, ours in rows[1:]
    ]


def memory(row: Deployment) -> Memory:
    """Memory of one GPU that decodes one sequence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a name was taken for
        model = resolve_model(row.model)
    if row.kv != "16 bits" and row.kv != model.kv_dtype:
        model = model.compressed(kv_dtype=row.kv)
    return memory_of(model, batch_size=1, max_context_len=row.context_len, tensor_parallel=row.gpus)


@pytest.mark.parametrize("row", deployments(), ids=lambda row: f"{row.model}-{row.gpus}x{row.hardware}-{row.context_len}")
def test_a_known_deployment_fits_or_not_as_is_reported(row: Deployment) -> None:
    found, hardware = memory(row), resolve_profile(row.hardware)
    says = "fits" if found.fits(hardware) else "does not fit"
    total = float(found.total_bytes) / 1e9
    assert row.ours == f"{says}: {total:.1f} of {usable_bytes(hardware) / 1e9:.1f} GB"
    assert row.reported.startswith(says)
    if (size := re.search(r"([0-9.]+) GB", row.reported)) is not None:
        assert total == pytest.approx(float(size[1]), rel=0.10)
    assert re.search(r"\]\(https://[^)]+\)", row.reported)


def test_the_table_has_ten_deployments_and_some_that_do_not_fit() -> None:
    rows = deployments()
    assert len({row.model for row in rows}) >= 10
    assert sum(row.reported.startswith("does not fit") for row in rows) >= 3


@pytest.mark.parametrize(("context_len", "mebibytes"), [(4096, 178), (32_768, 1074), (65_536, 2098), (131_072, 4146)])
def test_cache_and_states_of_a_hybrid_are_those_that_llama_cpp_reports(context_len: int, mebibytes: int) -> None:
    model = resolve_model("Qwen3.5-9B")  # https://github.com/jaylfc/taOS/issues/144
    kept = float(kv_bytes_per_gpu(model, context_len, 1)) + model.state_bytes_per_sequence
    assert kept / 2**20 == pytest.approx(mebibytes, abs=0.6)
