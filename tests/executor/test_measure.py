"""The record of a run: every field from hand-made traces, and timing against a clock that a test moves."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from tiny_models import tiny_model

from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.batch import Prompt
from magicdec.executor.engine.round_log import Trace
from magicdec.executor.generate import run_batch
from magicdec.executor.measuring import measurement as measure
from magicdec.executor.measuring.measurement import Measurement, environment, seconds, summarise
from magicdec.executor.measuring.throughput import achieved
from magicdec.executor.system.machine import processor_name

MODEL = tiny_model()
WORKLOAD = Workload(2, 100, 5)
STRATEGY = Strategy("self", "streaming_llm", 16, 2)
SPECULATIVE = Trace(
    draft_s=[0.2, 0.4, 0.6],
    verify_s=[1.0, 3.0, 2.0],
    round_s=[1.3, 3.5, 2.8],
    emitted=[4, 3, 3],
    active_rows=[2, 2, 1],
    drafted_by_position=[5, 3],
    accepted_by_position=[3, 2],
    row_finish_s=[4.8, 7.6],
    row_tokens=[4, 6],
    gammas=[2, 2, 2],
    contexts=[100.0, 102.0, 104.0],
)
PLAIN = Trace(
    draft_s=[0.0] * 3,
    verify_s=[0.5, 0.6, 0.7],
    round_s=[0.6, 0.7, 0.9],
    emitted=[2, 2, 1],
    active_rows=[2, 2, 1],
    row_finish_s=[2.0, 6.0],
    row_tokens=[2, 3],
    gammas=[0, 0, 0],
    contexts=[100.0, 101.0, 102.0],
)


def record(trace: Trace = SPECULATIVE, plain: Trace | None = PLAIN, strategy: Strategy = STRATEGY) -> Measurement:
    return summarise(
        trace,
        plain,
        model=MODEL,
        workload=WORKLOAD,
        strategy=strategy,
        hardware="cpu",
        target="aa",
        draft=None,
        outputs_identical=True if plain else None,
        tokens_compared=10 if plain else 0,
        prefill_s=0.25,
        select_step_s=0.125,
    )


def test_steps_are_medians_over_rounds() -> None:
    found = record()
    assert found.measured_verify_step_s == 2.0
    assert found.measured_gamma_draft_step_s == 0.4
    assert found.measured_draft_step_s == 0.2  # of gamma = 2
    assert found.measured_target_step_s == 0.7
    assert found.measured_round_overhead_s == pytest.approx(0.1)  # median of 0.1, 0.1 and 0.2


def test_times_per_token_are_means_over_rows_and_the_speedup_is_their_ratio() -> None:
    found = record()
    assert found.measured_speculative_tpot_s == pytest.approx((4.8 / 4 + 7.6 / 6) / 2)
    assert found.measured_autoregressive_tpot_s == pytest.approx((1.0 + 2.0) / 2)
    assert found.measured_speedup == pytest.approx(1.5 / ((4.8 / 4 + 7.6 / 6) / 2))
    assert found.throughput_tokens_per_s == pytest.approx((4 + 3) / (1.3 + 3.5))  # while both rows run


def test_acceptance_is_recorded_as_rate_by_position_and_as_length() -> None:
    found = record()
    assert found.acceptance_rate == 5 / 8
    assert found.acceptance_by_position == [3 / 5, 2 / 3]
    assert found.mean_acceptance_length == 2.0  # 1 + 5 accepted in 5 rounds of a row
    assert (found.rounds, found.tokens) == (3, 10)


def test_what_was_run_is_recorded_as_a_plan_states_it() -> None:
    found = record()
    assert found.workload == {"batch_size": 2, "context_len": 100, "output_len": 5}
    assert found.strategy == asdict(STRATEGY)
    assert (found.target, found.draft, found.prefill_s) == ("aa", None, 0.25)
    assert (found.outputs_identical, found.tokens_compared) == (True, 10)


def test_without_a_plain_run_what_needs_one_is_left_open() -> None:
    found = record(plain=None)
    assert found.measured_target_step_s is found.measured_autoregressive_tpot_s is found.measured_speedup is None
    assert found.outputs_identical is None
    assert found.measured_verify_step_s == 2.0


def test_without_a_draft_what_needs_one_is_left_open() -> None:
    found = record(trace=PLAIN, plain=None, strategy=NO_SPECULATION)
    assert found.measured_draft_step_s is found.measured_gamma_draft_step_s is found.acceptance_rate is None
    assert found.acceptance_by_position == []
    assert found.mean_acceptance_length == 1.0


def test_a_run_that_switched_strategies_has_no_one_draft_step() -> None:
    switched = record(trace=replace(SPECULATIVE, gammas=[2, 0, 2]))
    assert switched.measured_draft_step_s is switched.measured_gamma_draft_step_s is None
    assert switched.acceptance_rate == 5 / 8
    assert record().measured_draft_step_s == 0.2


def test_rates_are_those_of_the_targets_passes_and_memory_that_of_the_process() -> None:
    found = record()
    assert (found.measured_verify_bytes_per_s, found.measured_verify_flop_per_s) == achieved(MODEL, SPECULATIVE)
    assert (found.measured_target_bytes_per_s, found.measured_target_flop_per_s) == achieved(MODEL, PLAIN)
    assert record(plain=None).measured_target_bytes_per_s is record(plain=None).measured_target_flop_per_s is None
    assert found.measured_select_step_s == 0.125
    assert 1e7 < found.measured_peak_memory_bytes < 1e12


@pytest.mark.parametrize(("policy", "chooses"), [("topk", True), ("quest", True), ("snapkv", False), ("streaming_llm", False)])
def test_choosing_is_timed_where_every_draft_step_chooses(policy: str, chooses: bool) -> None:
    prompts = [Prompt("a", list(range(30))), Prompt("b", list(range(20)))]
    strategy = Strategy("self", policy, 8, 2)
    compared = run_batch(MODEL, None, prompts, strategy, max_new_tokens=5, compare=True)
    assert (compared.select_step_s is not None) == chooses
    assert compared.outputs == compared.plain_outputs
    assert not chooses or 0 < compared.select_step_s < 1
    assert run_batch(MODEL, None, prompts, strategy, max_new_tokens=5).select_step_s is None


def test_a_position_that_was_never_reached_has_no_rate() -> None:
    never = Trace([0.1], [1.0], [1.2], [1], [1], [1, 0], [0, 0], [1.2], [1], [2], [9.0])
    assert record(trace=never, plain=None).acceptance_by_position == [0.0, None]


def test_a_measurement_is_one_json_line() -> None:
    found = record()
    line = json.dumps(asdict(found))
    assert "\n" not in line
    read = json.loads(line)
    assert read["schema_version"] == measure.SCHEMA_VERSION
    assert Measurement(**read) == found


def test_the_environment_says_what_a_time_depends_on() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == processor_name() != ""
    assert found["cuda"] is None
    assert found["date"].endswith("+00:00")
    assert {"python", "system", "instructions", "cores"} <= set(found)


def test_timing_leaves_out_the_warm_up_and_answers_with_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    durations = iter([50.0, 40.0, 3.0, 1.0, 9.0])

    def action() -> None:
        nonlocal clock
        clock += next(durations)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock)
    assert seconds(action, repeats=3, warm_up=2) == 3.0
    assert next(durations, None) is None, "every warm-up and every repeat ran, and no more"
