"""The record of a run: every field from a hand-made log, and timing against a clock that a test moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from magicdec.costmodel.plans.measurement import Measurement, load_measurements, render_measurement
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.round_log import Completion, RoundLog, RoundRecord
from magicdec.executor.measuring import timing
from magicdec.executor.measuring.measurement import RunDescription, RunOutcome, environment, processor_name, summarise
from magicdec.executor.measuring.throughput import achieved
from magicdec.executor.measuring.timing import median_time_s

MODEL = tiny_model()
RUN = RunDescription(Workload(2, 100, 5), Strategy("self", "streaming_llm", 16, 2), "cpu", "aa")


def one(
    draft_s: float, verify_s: float, round_s: float, emitted: int, context_len: float, accepted: tuple[int, ...], *done: Completion
) -> RoundRecord:
    return RoundRecord(draft_s, verify_s, round_s, emitted, sum(accepted), len(accepted) - 1, context_len, accepted, done)


SPECULATIVE = RoundLog(
    [
        one(0.2, 1.0, 1.3, 4, 100.0, (1, 0, 1)),
        one(0.4, 3.0, 3.5, 3, 102.0, (1, 1, 0), Completion(0, [7] * 4, 4.8)),
        one(0.6, 2.0, 2.8, 3, 104.0, (0, 0, 1), Completion(1, [7] * 6, 7.6)),
    ]
)
AUTOREGRESSIVE = RoundLog(
    [
        one(0.0, 0.5, 0.6, 2, 100.0, (2,)),
        one(0.0, 0.6, 0.7, 2, 101.0, (2,), Completion(0, [7] * 2, 2.0)),
        one(0.0, 0.7, 0.9, 1, 102.0, (1,), Completion(1, [7] * 3, 6.0)),
    ]
)
OUTCOME = RunOutcome(SPECULATIVE, 0.25, AUTOREGRESSIVE, True, 10, 0.125)
SINGLE_PROCESS = RunOutcome(SPECULATIVE, 0.25)


def record(outcome: RunOutcome = OUTCOME, run: RunDescription = RUN) -> Measurement:
    return summarise(MODEL, run, outcome)


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
    assert (found.workload, found.strategy) == (RUN.workload, RUN.strategy)
    assert (found.target, found.draft, found.prefill_s) == ("aa", None, 0.25)
    assert (found.outputs_identical, found.tokens_compared) == (True, 10)


def test_without_an_autoregressive_run_what_needs_one_is_left_open() -> None:
    found = record(SINGLE_PROCESS)
    assert found.measured_target_step_s is found.measured_autoregressive_tpot_s is found.measured_speedup is None
    assert found.outputs_identical is None
    assert found.measured_verify_step_s == 2.0


def test_without_a_draft_what_needs_one_is_left_open() -> None:
    found = record(RunOutcome(AUTOREGRESSIVE, 0.25), replace(RUN, strategy=NO_SPECULATION))
    assert found.measured_draft_step_s is found.measured_gamma_draft_step_s is found.acceptance_rate is None
    assert found.acceptance_by_position == []
    assert found.mean_acceptance_length == 1.0


def test_a_run_that_switched_strategies_has_no_one_draft_step() -> None:
    other = one(0.0, 3.0, 3.5, 2, 102.0, (2,), Completion(0, [7] * 3, 4.8))
    switched = record(replace(OUTCOME, log=RoundLog([SPECULATIVE.rounds[0], other, SPECULATIVE.rounds[2]])))
    assert switched.measured_draft_step_s is switched.measured_gamma_draft_step_s is None
    assert switched.acceptance_rate == 4 / 5
    assert record().measured_draft_step_s == 0.2


def test_rates_are_those_of_the_targets_passes_and_memory_that_of_the_process() -> None:
    found = record()
    assert (found.measured_verify_bytes_per_s, found.measured_verify_flop_per_s) == achieved(MODEL, SPECULATIVE)
    assert (found.measured_target_bytes_per_s, found.measured_target_flop_per_s) == achieved(MODEL, AUTOREGRESSIVE)
    assert record(SINGLE_PROCESS).measured_target_bytes_per_s is record(SINGLE_PROCESS).measured_target_flop_per_s is None
    assert found.measured_select_step_s == 0.125
    assert 1e7 < found.measured_peak_memory_bytes < 1e12


def test_a_position_that_was_never_reached_has_no_rate() -> None:
    never = RoundLog([one(0.1, 1.0, 1.2, 1, 9.0, (1, 0, 0), Completion(0, [7], 1.2))])
    assert record(RunOutcome(never, 0.25)).acceptance_by_position == [0.0, None]


def test_a_measurement_is_one_json_line_that_reads_back_as_it_was(tmp_path: Path) -> None:
    found = [record(), record(SINGLE_PROCESS)]
    (tmp_path / "measured.jsonl").write_text("".join(render_measurement(one) + "\n" for one in found))
    assert load_measurements(tmp_path / "measured.jsonl") == found


def test_the_environment_says_what_a_time_depends_on() -> None:
    found = environment()
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.device == processor_name() != ""
    assert found.cuda is found.gpu_kernel is None
    assert found.processes == 1
    assert found.date.endswith("+00:00")


def test_timing_leaves_out_the_warm_up_and_answers_with_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    durations = iter([50.0, 40.0, 3.0, 1.0, 9.0])

    def action() -> None:
        nonlocal clock
        clock += next(durations)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    assert median_time_s(action, repeats=3, warm_up=2) == 3.0
    assert next(durations, None) is None, "every warm-up and every repeat ran, and no more"
