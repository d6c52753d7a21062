"""Measurement of one run: a line of JSON, written by the executor and read by `validate` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from ..base.files import read_text
from ..base.json_text import load_json_object
from ..base.limits import MAX_DATA_BYTES, MAX_TOKENS
from ..base.validation import Name, StrictModel, validate_mapping
from .plan import Plan
from .strategy import MAX_GAMMA, Strategy
from .workload import Workload

SCHEMA_VERSION: Literal[1] = 1
CONTEXT_TOLERANCE = 1 / 32  # real prompts do not have exactly the planned length

Seconds = Annotated[float, pydantic.Field(gt=0.0, le=1e9)]  # thirty years
Rate = Annotated[float, pydantic.Field(ge=0.0, le=1e24)]
Ratio = Annotated[float, pydantic.Field(gt=0.0, le=1e9)]
Count = Annotated[int, pydantic.Field(ge=0, le=MAX_TOKENS)]
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class Environment(StrictModel):
    """Hardware and software that a measurement depends on.

    Attributes:
        device: Name of the CPU or GPU.
        threads: Compute threads of torch.
        processes: Tensor-parallel processes.
        torch, cuda, python, system: Version numbers.
        cpu_kernel: Whether the C kernels were loaded.
        gpu_kernel: Whether the Triton kernel was loaded; None without a GPU.
        instructions: Vector instruction set that torch uses on the CPU.
        cores: Logical cores of the machine.
        date: Start of the run, in UTC.
    """

    device: str
    threads: int
    processes: int
    torch: str
    cuda: str | None
    python: str
    system: str
    cpu_kernel: bool
    gpu_kernel: bool | None
    instructions: str
    cores: int | None
    date: str


class Measurement(StrictModel):
    """Inputs and results of one run. `workload` and `strategy` have the same keys as in a plan.

    Attributes:
        workload: Batch size, longest prompt and output length.
        strategy: The decoding strategy.
        hardware: Name of the hardware profile.
        target, draft: Fingerprints of the models; see `plan.fingerprint`.
        measured_target_step_s: Autoregressive decoding step, if the run also decoded without speculation. [s]
        measured_verify_step_s: Verification pass of the target. [s]
        measured_draft_step_s, measured_gamma_draft_step_s: One draft step; all draft steps of a round. [s]
        measured_select_step_s: Part of a draft step spent on selecting KV entries. [s]
        measured_target_bytes_per_s, measured_target_flop_per_s: Achieved rates of autoregressive passes, per process.
        measured_verify_bytes_per_s, measured_verify_flop_per_s: Achieved rates of verification passes, per process.
        measured_peak_memory_bytes: Peak memory of this process. [bytes]
        measured_round_overhead_s: Round time minus drafting and verification. [s]
        measured_speculative_tpot_s: Time per output token of a sequence, with speculation. [s]
        measured_autoregressive_tpot_s: Time per output token without speculation. [s]
        measured_speedup: Autoregressive TPOT / speculative TPOT. [ratio]
        throughput_tokens_per_s: Output rate of the full batch. [tokens/s]
        acceptance_rate: Share of draft tokens accepted, among those whose predecessors were accepted. [0-1]
        acceptance_by_position: The same for each draft position; None if a position was never reached. [0-1]
        mean_acceptance_length: Tokens per verification, bonus token included. [tokens]
        rounds, tokens: Number of measured rounds and output tokens.
        outputs_identical: Whether speculative and autoregressive output are equal, if both ran.
        tokens_compared: Tokens compared for `outputs_identical`.
        prefill_s: Prefill time. [s]
        environment: Hardware and software.
        schema_version: Version of this format.
    """

    workload: Workload
    strategy: Strategy
    hardware: Name
    target: Name
    draft: Name | None = None
    measured_target_step_s: Seconds | None = None
    measured_verify_step_s: Seconds
    measured_draft_step_s: Seconds | None = None
    measured_gamma_draft_step_s: Seconds | None = None
    measured_select_step_s: Seconds | None = None
    measured_target_bytes_per_s: Rate | None = None
    measured_target_flop_per_s: Rate | None = None
    measured_verify_bytes_per_s: Rate
    measured_verify_flop_per_s: Rate
    measured_peak_memory_bytes: Rate
    measured_round_overhead_s: Annotated[float, pydantic.Field(ge=-1e9, le=1e9)]
    measured_speculative_tpot_s: Seconds
    measured_autoregressive_tpot_s: Seconds | None = None
    measured_speedup: Ratio | None = None
    throughput_tokens_per_s: Annotated[float, pydantic.Field(gt=0.0, le=1e15)]
    acceptance_rate: Share | None = None
    acceptance_by_position: list[Share | None] = pydantic.Field(default_factory=list)
    mean_acceptance_length: float = pydantic.Field(ge=1.0, le=MAX_GAMMA + 1)
    rounds: Annotated[Count, pydantic.Field(ge=1)]
    tokens: Annotated[Count, pydantic.Field(ge=1)]
    outputs_identical: bool | None = None
    tokens_compared: Count = 0
    prefill_s: Annotated[float, pydantic.Field(ge=0.0, le=1e9)]
    environment: Environment
    schema_version: Literal[1] = SCHEMA_VERSION

    def follows(self, plan: Plan) -> bool:
        """True if the run matches a plan: same model, hardware, strategy and batch size, and nearly the same context."""
        planned = plan.workload
        return (
            self.workload.batch_size == planned.batch_size
            and abs(self.workload.context_len / planned.context_len - 1) <= CONTEXT_TOLERANCE
            and self.strategy == plan.strategy
            and self.target == plan.target.fingerprint
            and (self.hardware, self.environment.processes) == (plan.hardware.name, plan.hardware.tensor_parallel)
        )


def render_measurement(measurement: Measurement) -> str:
    """Render a measurement as one line of JSON, without the line break."""
    return json.dumps(measurement.model_dump(mode="json"))


def load_measurements(path: str | Path) -> list[Measurement]:
    """Read all measurements of a JSON Lines file.

    Raises:
        InputError: The file cannot be read, or a line is not a measurement; each problem names file, line and key.
    """
    lines = read_text(path, "file of measurements", max_bytes=MAX_DATA_BYTES).split("\n")
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, where: str) -> Measurement:
    what = "a measurement, as `magicdec run --measurements` writes it,"
    return validate_mapping(Measurement, load_json_object(line, where, what), where)
