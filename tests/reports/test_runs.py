"""Predicted beside measured: what is compared, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import magicdec
from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.records import to_document
from magicdec.costmodel.plans.plan import Plan, render_plan
from magicdec.reports.runs import read_runs, run_figures

ENVIRONMENT = {
    **{"device": "d", "threads": 1, "processes": 8, "torch": "2.13.0", "cuda": "13.0", "python": "3.12", "system": "s"},
    **{"cpu_kernel": False, "gpu_kernel": True, "instructions": "AVX2", "cores": 64, "date": "2026-01-01T00:00:00Z"},
}


@pytest.fixture
def plan() -> Plan:
    return magicdec.plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000).plan


def measured(plan: Plan, **changes: Any) -> dict[str, Any]:
    facts = to_document(plan)
    return {
        "workload": facts["workload"],
        "strategy": facts["strategy"],
        "hardware": "h100-sxm",
        "target": plan.target.fingerprint,
        "measured_target_step_s": 0.0148,
        "measured_verify_step_s": 0.0159,
        "measured_draft_step_s": 0.0043,
        "measured_speculative_tpot_s": 0.0096,
        "measured_speedup": 1.55,
        "mean_acceptance_length": 3.08,
        "measured_verify_bytes_per_s": 1e12,
        "measured_verify_flop_per_s": 1e14,
        "measured_peak_memory_bytes": 5e10,
        "measured_round_overhead_s": 1e-3,
        "throughput_tokens_per_s": 6600.0,
        "rounds": 100,
        "tokens": 20_000,
        "prefill_s": 10.0,
        "environment": ENVIRONMENT,
        **changes,
    }


def write(folder: Path, plan: Plan, record: dict[str, Any]) -> list[str]:
    (folder / "plan.yaml").write_text(render_plan(plan))
    (folder / "measurements.jsonl").write_text(json.dumps(record) + "\n")
    return [str(folder / "plan.yaml"), str(folder / "measurements.jsonl")]


def test_a_measurement_is_set_beside_its_plan(tmp_path: Path, plan: Plan) -> None:
    ((run,), _) = read_runs(write(tmp_path, plan, measured(plan)))
    table = run.table()
    assert table.loc["speedup", "measured"] == 1.55
    assert table.loc["verify step", "error"] == pytest.approx(plan.prediction.predicted_verify_step_s / 0.0159 - 1)
    (drawing,) = run_figures([run])
    assert all(ax.get_ylabel().endswith("]") for ax in drawing.figure.axes)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "another"},
        {"hardware": "cpu"},
        {"workload": {"batch_size": 32, "context_len": 32000, "output_len": 128}},
        {"workload": {"batch_size": 64, "context_len": 16000, "output_len": 128}},
        {"environment": {**ENVIRONMENT, "processes": 4}},
        {"strategy": {"draft_kind": "none", "kv_policy": "full", "kv_budget": None, "gamma": 0, "draft_model": None}},
    ],
)
def test_a_plan_is_not_set_beside_a_measurement_of_another_input(tmp_path: Path, plan: Plan, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a plan of the same workload, strategy, model and machine"):
        read_runs(write(tmp_path, plan, measured(plan, **changes)))


def test_what_is_no_measurement_is_refused_by_line(tmp_path: Path, plan: Plan) -> None:
    files = write(tmp_path, plan, {"speed": 1})
    with pytest.raises(InputError, match=r"measurements.jsonl: line 1: workload: expected a value"):
        read_runs(files)
    with pytest.raises(InputError, match="a readable file of measurements"):
        read_runs([str(tmp_path / "missing.jsonl")])
