"""The main job at a small size, with a profile of this machine measured and kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from magicdec.api.demo import current_hardware, fastest_seen, memory_change
from magicdec.cli.group import main
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.executor.measuring import cpu_probe
from magicdec.inputs import cpu_profile
from magicdec.reports.runs import read_runs


@pytest.mark.slow
def test_demo_predicts_plans_runs_compares_and_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_profile, "TRIES", 1)  # other tests use memory meanwhile
    monkeypatch.setattr(cpu_probe, "CONTEXT_LENS", (512, 1024))
    monkeypatch.setattr(cpu_probe, "QUERY_LENS", (1, 2, 5))
    folder = tmp_path / "demo"
    arguments = ["demo", "--batch-size", "4", "--context-len", "1024", "--max-new-tokens", "8", "--folder", str(folder), "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["outputs_identical"] is True
    assert document["tokens_compared"] == 32
    for key in ("predicted_speedup", "measured_speedup", "mean_acceptance_length", "strategy"):
        assert document[key] is not None
    assert "acceptance_rate" in document
    assert len((folder / "output.jsonl").read_text().splitlines()) == 4
    ((run,), _) = read_runs([str(folder / "plan.yaml"), str(folder / "measurements.jsonl")])
    assert {"target step", "verify step"} <= set(run.table().index)
    assert len(list((tmp_path / "cache" / "magicdec").glob("cpu-*.yaml"))) == 1


def test_the_demo_says_when_memory_is_not_what_it_was() -> None:
    assert memory_change(50e9, 52e9) == ""
    assert memory_change(75e9, 50e9) == "memory bandwidth is 75.0 GB/s now and was 50.0 GB/s when the profile was measured"


def test_a_run_tells_of_memory_that_was_faster_in_it_unless_caches_were() -> None:
    """Steps of 8 ms: 520 MB read, where 32 MB are cached; and of 0.5 ms, 35 MB."""
    assert fastest_seen(45e9, 65e9, 8e-3, 32e6) == 65e9
    assert fastest_seen(75e9, 65e9, 8e-3, 32e6) == 75e9
    assert fastest_seen(45e9, 70e9, 5e-4, 32e6) == 45e9


@pytest.mark.parametrize(
    ("reads", "remeasure", "measured"), [(50e9, False, [False]), (80e9, False, [False, True]), (80e9, True, [True])]
)
def test_the_demo_measures_the_machine_anew_when_memory_has_changed(
    reads: float, remeasure: bool, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    profile = resolve_profile("l40")
    known = replace(profile, peak=replace(profile.peak, memory_bandwidth_bytes_per_s=51e9))

    def find(name: str, *, remeasure: bool, progress: object) -> HardwareProfile:
        asked.append(remeasure)
        return known

    monkeypatch.setattr("magicdec.api.demo.find_hardware", find)
    said: list[str] = []
    assert current_hardware(remeasure=remeasure, say=said.append, bytes_per_s=reads) is known
    assert asked == measured
    assert len(said) == len(measured) - 1
