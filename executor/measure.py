"""Measuring: synchronised timing, the environment it happened in, and the record of a run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from costmodel.strategy import Strategy
from costmodel.workload import Workload
from executor import cpu_attention
from executor.decode import Trace

SCHEMA_VERSION = 1


def seconds(action: Callable[[], object], *, repeats: int, warm_up: int = 1, device: torch.device | None = None) -> float:
    """Median time of an action, after warming up, with the device drained before each look at the clock. [s]"""

    def drain() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for repeat in range(warm_up + repeats):
        drain()
        started = time.perf_counter()
        action()
        drain()
        if repeat >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def processor_name() -> str:
    """The CPU, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a measurement depends on beside its inputs."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu_kernel": cpu_attention.load() is not None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class Measurement:
    """What a run was and what it did; one JSON line. The workload and strategy keys are those of a plan.

    Attributes:
        workload: What was asked.
        strategy: What was done.
        hardware: Profile that describes the machine it ran on.
        target, draft: Fingerprints of the models.
        measured_target_step_s: Plain decoding step, where plain decoding ran too. [s]
        measured_verify_step_s: The target's pass over draft tokens. [s]
        measured_draft_step_s, measured_gamma_draft_step_s: One draft step, and all of a round. [s]
        measured_round_overhead_s: What a round took beside draft and verification. [s]
        measured_speculative_tpot_s: Per output token and row. [s]
        measured_autoregressive_tpot_s: The same of plain decoding. [s]
        measured_speedup: Their ratio.
        throughput_tokens_per_s: All rows together, while all of them run. [tokens/s]
        acceptance_rate: Of draft tokens whose predecessors were accepted. [0-1]
        acceptance_by_position: The same for each draft position. [0-1]
        mean_acceptance_length: Tokens per verification, bonus included. [tokens]
        rounds, tokens: How many of each were measured.
        outputs_identical: Speculative output equals plain output, where both ran.
        tokens_compared: Over how many tokens.
        prefill_s: Reading the prompts. [s]
        environment: Where it ran.
    """

    workload: dict[str, Any]
    strategy: dict[str, Any]
    hardware: str
    target: str
    draft: str | None
    measured_target_step_s: float | None
    measured_verify_step_s: float
    measured_draft_step_s: float | None
    measured_gamma_draft_step_s: float | None
    measured_round_overhead_s: float
    measured_speculative_tpot_s: float
    measured_autoregressive_tpot_s: float | None
    measured_speedup: float | None
    throughput_tokens_per_s: float
    acceptance_rate: float | None
    acceptance_by_position: list[float | None]
    mean_acceptance_length: float
    rounds: int
    tokens: int
    outputs_identical: bool | None
    tokens_compared: int
    prefill_s: float
    environment: dict[str, Any]
    schema_version: int = SCHEMA_VERSION


def summarise(
    trace: Trace,
    plain: Trace | None,
    *,
    workload: Workload,
    strategy: Strategy,
    hardware: str,
    target: str,
    draft: str | None,
    outputs_identical: bool | None,
    tokens_compared: int,
    prefill_s: float,
    device: str,
) -> Measurement:
    """The record of a run, and of the plain run beside it if there was one. Steps are medians over rounds."""
    drafted = bool(trace.drafted_by_position)
    gamma_draft_s = statistics.median(trace.draft_s) if drafted else None
    rests = [r - d - v for r, d, v in zip(trace.round_s, trace.draft_s, trace.verify_s, strict=True)]
    plain_tpot_s = plain.tpot_s if plain else None
    positions = zip(trace.accepted_by_position, trace.drafted_by_position, strict=True)
    return Measurement(
        workload=asdict(workload),
        strategy=asdict(strategy),
        hardware=hardware,
        target=target,
        draft=draft,
        measured_target_step_s=statistics.median(plain.round_s) if plain else None,
        measured_verify_step_s=statistics.median(trace.verify_s),
        measured_draft_step_s=gamma_draft_s / strategy.gamma if gamma_draft_s is not None else None,
        measured_gamma_draft_step_s=gamma_draft_s,
        measured_round_overhead_s=statistics.median(rests),
        measured_speculative_tpot_s=trace.tpot_s,
        measured_autoregressive_tpot_s=plain_tpot_s,
        measured_speedup=plain_tpot_s / trace.tpot_s if plain_tpot_s else None,
        throughput_tokens_per_s=trace.throughput_tokens_per_s,
        acceptance_rate=trace.acceptance_rate,
        acceptance_by_position=[accepted / reached if reached else None for accepted, reached in positions],
        mean_acceptance_length=trace.mean_acceptance_length,
        rounds=len(trace.round_s),
        tokens=sum(trace.emitted),
        outputs_identical=outputs_identical,
        tokens_compared=tokens_compared,
        prefill_s=prefill_s,
        environment=environment(device),
    )
