"""Measuring: synchronised timing, the environment it happened in, and the record of a run."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload

from ..drafting.kv_views import Reading
from ..engine.round_log import Trace
from ..kernels import build as compiled
from ..kv.attention import gpu_kernel
from ..kv.gathered_attention import ChosenAttention
from ..model.transformer import Transformer
from ..system.machine import processor_name
from .throughput import achieved

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


@torch.inference_mode()
def select_step_s(reading: Reading, lengths_B: Tensor) -> float | None:
    """Choosing the entries of one draft step in every layer, alone, for random queries; None where steps choose nothing. [s]"""
    attend = reading.attend((lengths_B - 1)[:, None])
    if not isinstance(attend, ChosenAttention):
        return None
    config, cache = reading.model.config, reading.cache.k_LBKSH
    group = config.num_heads // config.num_kv_heads
    q_BKRH = torch.randn(len(lengths_B), config.num_kv_heads, group, config.head_dim, device=cache.device).to(cache.dtype)
    layers = range(config.num_layers)
    return seconds(lambda: [attend.choose(layer, q_BKRH) for layer in layers], repeats=5, device=cache.device)


def peak_memory_bytes(device: str = "cpu") -> float:
    """The most memory that this process ever had: of its GPU, or of the machine. [bytes]"""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a measurement depends on beside its inputs."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else processor_name(),
        "threads": torch.get_num_threads(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu_kernel": compiled.kernels() is not None,
        "gpu_kernel": gpu_kernel() is not None if cuda else None,
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
        measured_select_step_s: Choosing entries for a draft step, alone, where every step chooses; part of the draft step. [s]
        measured_target_bytes_per_s, measured_target_flop_per_s: What plain decoding's passes read and computed, by this process.
        measured_verify_bytes_per_s, measured_verify_flop_per_s: The same of the target's pass over draft tokens.
        measured_peak_memory_bytes: The most memory that this process had. [bytes]
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
    measured_select_step_s: float | None
    measured_target_bytes_per_s: float | None
    measured_target_flop_per_s: float | None
    measured_verify_bytes_per_s: float
    measured_verify_flop_per_s: float
    measured_peak_memory_bytes: float
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
    model: Transformer,
    workload: Workload,
    strategy: Strategy,
    hardware: str,
    target: str,
    draft: str | None,
    outputs_identical: bool | None,
    tokens_compared: int,
    prefill_s: float,
    select_step_s: float | None = None,
) -> Measurement:
    """The record of a run, and of the plain run beside it if there was one. Steps are medians over rounds.

    Where a policy table switched between strategies there is no one draft step, and none is recorded.
    """
    drafted = bool(trace.drafted_by_position) and set(trace.gammas) <= {strategy.gamma}
    gamma_draft_s = statistics.median(trace.draft_s) if drafted else None
    rests = [r - d - v for r, d, v in zip(trace.round_s, trace.draft_s, trace.verify_s, strict=True)]
    plain_tpot_s = plain.tpot_s if plain else None
    device = model.device.type
    verify_rates = achieved(model, trace)
    target_rates = achieved(model, plain) if plain else (None, None)
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
        measured_select_step_s=select_step_s,
        measured_target_bytes_per_s=target_rates[0],
        measured_target_flop_per_s=target_rates[1],
        measured_verify_bytes_per_s=verify_rates[0],
        measured_verify_flop_per_s=verify_rates[1],
        measured_peak_memory_bytes=peak_memory_bytes(device),
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
