"""Build the record of a run: median step times, acceptance, achieved rates and the environment."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
import torch.distributed as dist

from magicdec.costmodel.plans.measurement import Environment, Measurement
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload

from ..engine.round_log import RoundLog
from ..kernels import build
from ..kv.attention import gpu_kernel
from ..model.transformer import Transformer
from ..system.machine import peak_memory_bytes as peak_memory_of_host
from ..system.machine import processor_name
from .throughput import achieved


@dataclass(frozen=True)
class RunDescription:
    """What was run.

    Attributes:
        workload: Batch size, longest prompt and output length.
        strategy: How tokens were drafted.
        hardware: Profile that describes the machine.
        target, draft: Fingerprints of the models.
    """

    workload: Workload
    strategy: Strategy
    hardware: str
    target: str
    draft: str | None = None


@dataclass(frozen=True)
class RunOutcome:
    """What was observed.

    Attributes:
        log: Rounds of the strategy.
        prefill_s: Time of all prefills. [s]
        autoregressive: Rounds of autoregressive decoding, if it ran too.
        outputs_identical: Whether both gave the same tokens, if they were compared.
        tokens_compared: Number of tokens compared for that. [tokens]
        select_step_s: Selecting KV entries for one draft step, timed alone. [s]
    """

    log: RoundLog
    prefill_s: float
    autoregressive: RoundLog | None = None
    outputs_identical: bool | None = None
    tokens_compared: int = 0
    select_step_s: float | None = None


def peak_memory_bytes(device: str = "cpu") -> float:
    """Peak memory of this process, on its GPU or on the host. [bytes]"""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    return peak_memory_of_host()


def environment(device: str = "cpu") -> Environment:
    """Hardware and software that a measurement on `device` depends on."""
    cuda = device.startswith("cuda")
    return Environment(
        device=torch.cuda.get_device_name() if cuda else processor_name(),
        threads=torch.get_num_threads(),
        processes=dist.get_world_size() if dist.is_initialized() else 1,
        torch=torch.__version__,
        cuda=torch.version.cuda if cuda else None,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cpu_kernel=build.kernels() is not None,
        gpu_kernel=gpu_kernel() is not None if cuda else None,
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def summarise(model: Transformer, run: RunDescription, outcome: RunOutcome) -> Measurement:
    """The record of a run. Step times are medians over rounds.

    If a policy table switched strategies during the run, there is no single draft step and none is recorded.

    Args:
        model: The target.
        run: What was run.
        outcome: What was observed.
    """
    log, autoregressive, gamma = outcome.log, outcome.autoregressive, run.strategy.gamma
    drafted, accepted = log.drafted_by_position, log.accepted_by_position
    one_strategy = bool(drafted) and all(one.gamma == gamma for one in log.rounds)
    gamma_draft_s = statistics.median(log.draft_s) if one_strategy else None
    autoregressive_tpot_s = autoregressive.tpot_s if autoregressive else None
    verify_rates = achieved(model, log)
    target_rates = achieved(model, autoregressive) if autoregressive else (None, None)
    device = model.device.type
    return Measurement(
        workload=run.workload,
        strategy=run.strategy,
        hardware=run.hardware,
        target=run.target,
        draft=run.draft,
        measured_target_step_s=statistics.median(autoregressive.round_s) if autoregressive else None,
        measured_verify_step_s=statistics.median(log.verify_s),
        measured_draft_step_s=gamma_draft_s / gamma if gamma_draft_s is not None else None,
        measured_gamma_draft_step_s=gamma_draft_s,
        measured_select_step_s=outcome.select_step_s,
        measured_target_bytes_per_s=target_rates[0],
        measured_target_flop_per_s=target_rates[1],
        measured_verify_bytes_per_s=verify_rates[0],
        measured_verify_flop_per_s=verify_rates[1],
        measured_peak_memory_bytes=peak_memory_bytes(device),
        measured_round_overhead_s=statistics.median(one.round_s - one.draft_s - one.verify_s for one in log.rounds),
        measured_speculative_tpot_s=log.tpot_s,
        measured_autoregressive_tpot_s=autoregressive_tpot_s,
        measured_speedup=autoregressive_tpot_s / log.tpot_s if autoregressive_tpot_s else None,
        throughput_tokens_per_s=log.throughput_tokens_per_s,
        acceptance_rate=log.acceptance_rate,
        acceptance_by_position=[a / d if d else None for a, d in zip(accepted, drafted, strict=True)],
        mean_acceptance_length=log.mean_acceptance_length,
        rounds=len(log.rounds),
        tokens=sum(log.emitted),
        outputs_identical=outcome.outputs_identical,
        tokens_compared=outcome.tokens_compared,
        prefill_s=outcome.prefill_s,
        environment=environment(device),
    )
