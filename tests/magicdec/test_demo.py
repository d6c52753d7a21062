"""The main job at a small size, with a profile of this machine measured and kept."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from magicdec.api import demo as demo_module
from magicdec.api.demo import SEARCH, demo, restate, widened
from magicdec.api.plan import make_plan
from magicdec.costmodel.calibration.engine_fit import with_values
from magicdec.costmodel.plans.measurement import Measurement
from magicdec.costmodel.plans.strategy import NO_SPECULATION
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.measuring import cpu_probe
from magicdec.executor.measuring.loop_probe import LoopShapes, LoopTimes, RoundTimes
from magicdec.executor.measuring.measurement import environment
from magicdec.inputs import cpu_profile
from magicdec.inputs.scenario import Scenario, resolve_scenario
from magicdec.reports.runs import read_runs
from magicdec.results.run import RunResult
from magicdec.running.machine_speed import MachineSpeed

SMALL = ["demo", "--batch-size", "4", "--context-len", "1024", "--max-new-tokens", "8"]


@pytest.fixture
def quick_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a probe that takes a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_profile, "TRIES", 1)  # other tests use memory meanwhile
    monkeypatch.setattr(cpu_probe, "SHAPES", LoopShapes((1, 4), (512, 1024), (64, 128), (1, 4), 2))
    return tmp_path / "cache"


@pytest.mark.slow
def test_where_plain_decoding_is_best_the_demo_says_so_and_runs_the_best_draft_beside_it(
    tmp_path: Path, quick_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sequence of 64 tokens: the weights are all there is to read."""
    # Twelve drafts as dear as a target step never pay, however much memory differs between two looks.
    monkeypatch.setattr(demo_module, "SEARCH", replace(SEARCH, gammas=(12,)))
    said: list[str] = []
    found = demo(batch_size=1, context_len=64, max_new_tokens=6, folder=tmp_path / "demo", say=said.append)
    assert found.plan.strategy.gamma > 0
    assert found.measurement is not None
    assert found.measurement.strategy == found.plan.strategy
    sentence = next(words for words in said if "the best plan is no speculation" in words)
    assert sentence == found.notes[0]
    assert f"note: {sentence}" in str(found)


@pytest.mark.slow
def test_demo_measures_plans_runs_and_keeps_its_files_and_is_never_silent_for_three_seconds(tmp_path: Path) -> None:
    """In a process of its own, whose progress goes to a pipe; nothing is there yet."""
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    folder, output = tmp_path / "demo", tmp_path / "output.json"
    command = [sys.executable, "-m", "magicdec", *SMALL, "--folder", str(folder), "--json"]
    silences, last = [], time.monotonic()
    with (
        output.open("w") as stdout,
        subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=variables) as process,
    ):
        assert process.stderr is not None
        for _ in process.stderr:
            silences.append(time.monotonic() - last)
            last = time.monotonic()
    assert process.returncode == 0
    assert max(silences) < 3.0
    assert len(silences) > 20

    document = json.loads(output.read_text())
    assert document["outputs_identical"] is True
    assert document["tokens_compared"] == 32
    assert document["predicted_speedup_low"] < document["predicted_speedup"] < document["predicted_speedup_high"]
    assert document["measured_speedup"] > 0
    assert document["mean_acceptance_length"] <= 8
    assert len((folder / "output.jsonl").read_text().splitlines()) == 4
    ((run,), _) = read_runs([str(folder / "plan.yaml"), str(folder / "measurements.jsonl")])
    assert {"target step", "draft step", "verify step"} <= set(run.table().index)
    assert len(list((tmp_path / "cache" / "magicdec").glob("cpu-*.yaml"))) == 1


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The reference model on a machine that is at hand everywhere."""
    return resolve_scenario("reference", "l40")


class Speed:
    """What `MachineSpeed` tells, without a machine."""

    def __init__(self, scenario: Scenario, scatter: float):
        self.hardware, self.scatter = scenario.deployment.hardware, scatter

    def now(self) -> object:
        return with_values(self.hardware, {"engine.layer_overhead_s": 1e-3})


def test_a_restated_plan_is_the_same_plan_at_another_speed_with_the_scatter_in_its_interval(scenario: Scenario) -> None:
    planned = make_plan(scenario, Workload(16, 8192, 64), replace(SEARCH, must_speculate=True)).plan
    calm, restless = (restate(planned, scenario, Speed(scenario, scatter)) for scatter in (0.0, 0.2))  # type: ignore[arg-type]
    assert calm.strategy == restless.strategy == planned.strategy
    assert calm.workload == planned.workload
    assert calm.prediction.predicted_target_step_s > planned.prediction.predicted_target_step_s
    assert calm.prediction.predicted_speedup == restless.prediction.predicted_speedup
    assert restless.prediction.predicted_speedup_low < calm.prediction.predicted_speedup_low
    assert restless.prediction.predicted_speedup_high > calm.prediction.predicted_speedup_high


def test_independent_errors_add_up_as_squares(scenario: Scenario) -> None:
    prediction = make_plan(scenario, Workload(16, 8192, 64), replace(SEARCH, must_speculate=True)).plan.prediction
    given = replace(prediction, predicted_speedup=2.0, predicted_speedup_low=2 / math.exp(0.3), predicted_speedup_high=2.0)
    found = widened(given, 0.4)
    assert found.predicted_speedup_low == pytest.approx(2 / math.exp(0.5))
    assert found.predicted_speedup_high == pytest.approx(2 * math.exp(0.4))


def test_the_scatter_is_that_of_the_ratio_and_common_slowness_is_none(scenario: Scenario) -> None:
    def look(plain_s: float, verify_s: float) -> LoopTimes:
        plain = RoundTimes(1, 48, 8, 0, draft_s=0.0, verify_s=plain_s, rest_s=0.0, copy_s=0.0)
        return LoopTimes((plain, RoundTimes(1, 48, 8, 2, draft_s=0.0, verify_s=verify_s, rest_s=0.0, copy_s=0.0)))

    target = replace(resolve_scenario("reference", "l40").deployment.target, dtype="float32", embedding_dtype="float32")
    speed = MachineSpeed(target, Workload(1, 64, 8), scenario.deployment.hardware)
    speed._times = [look(1.0, 2.0), look(3.0, 6.0)]
    assert speed.scatter == 0.0
    speed._times = [look(1.0, 2.0), look(1.0, 1.0)]  # ratios 0.5 and 1
    assert speed.scatter == pytest.approx(math.sqrt(0.125) / 0.75)


def test_a_comparison_of_plain_decoding_with_itself_claims_no_speedup(scenario: Scenario) -> None:
    plan = make_plan(scenario, Workload(16, 8192, 64), SEARCH).plan
    measurement = Measurement(
        workload=plan.workload,
        strategy=NO_SPECULATION,
        hardware=plan.hardware.name,
        target=plan.target.fingerprint,
        measured_target_step_s=0.01,
        measured_verify_step_s=0.01,
        measured_verify_bytes_per_s=1e11,
        measured_verify_flop_per_s=1e12,
        measured_peak_memory_bytes=1e9,
        measured_round_overhead_s=1e-4,
        measured_speculative_tpot_s=0.0103,
        measured_autoregressive_tpot_s=0.01,
        measured_speedup=0.97,
        throughput_tokens_per_s=1550.0,
        mean_acceptance_length=1.0,
        rounds=64,
        tokens=1024,
        outputs_identical=True,
        tokens_compared=1024,
        prefill_s=0.5,
        environment=environment(),
    )
    plain = RunResult(plan, measurement)
    assert "as fast as" not in str(plain)
    assert "their times differ by 3%" in str(plain)
    assert "as fast as" not in plain.headline


def test_a_plan_that_must_speculate_does_so_where_it_does_not_pay(scenario: Scenario) -> None:
    short = Workload(1, 64, 8)
    assert make_plan(scenario, short, SEARCH).strategy == NO_SPECULATION
    forced = make_plan(scenario, short, replace(SEARCH, must_speculate=True))
    assert forced.strategy.gamma > 0
    assert forced.prediction.predicted_speedup < 1
