"""The record of a run: one JSON line, written by the executor and read by `validate` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from ..base.errors import bad, from_pydantic
from .plan import Plan
from .strategy import Strategy
from .workload import Workload

SCHEMA_VERSION: Literal[1] = 1
CONTEXT_TOLERANCE = 1 / 32  # prompts are as long as they are, not exactly as long as planned

Seconds = pydantic.PositiveFloat
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class Environment(_Record):
    """What a measurement depends on beside its inputs.

    Attributes:
        device: Name of the processor or GPU.
        threads: Threads that torch computes with.
        processes: Processes that share the models by tensor parallelism.
        torch, cuda, python, system: Versions.
        cpu_kernel: The C kernels were loaded.
        gpu_kernel: The Triton kernel was loaded; None without a GPU.
        instructions: Vector instructions that torch uses on the CPU.
        cores: Logical cores of the machine.
        date: Start of the record, in UTC.
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


class Measurement(_Record):
    """What ran and what was measured. `workload` and `strategy` have the keys that they have in a plan.

    Attributes:
        workload: Batch size, longest prompt and output length of the run.
        strategy: How tokens were drafted.
        hardware: Profile that describes the machine.
        target, draft: Fingerprints of the models.
        measured_target_step_s: Autoregressive decoding step, where autoregressive decoding ran too. [s]
        measured_verify_step_s: The target's pass over the draft tokens. [s]
        measured_draft_step_s, measured_gamma_draft_step_s: One draft step, and all of a round. [s]
        measured_select_step_s: Selecting KV entries for a draft step, alone; part of the draft step. [s]
        measured_target_bytes_per_s, measured_target_flop_per_s: Rates of the autoregressive passes of this process.
        measured_verify_bytes_per_s, measured_verify_flop_per_s: Rates of the verification passes.
        measured_peak_memory_bytes: Peak memory of this process. [bytes]
        measured_round_overhead_s: What a round took beside drafting and verification. [s]
        measured_speculative_tpot_s: Seconds per output token and sequence. [s]
        measured_autoregressive_tpot_s: The same without speculation. [s]
        measured_speedup: Autoregressive TPOT / speculative TPOT. [ratio]
        throughput_tokens_per_s: All sequences together, while all of them run. [tokens/s]
        acceptance_rate: Accepted share of the draft tokens whose predecessors were accepted. [0-1]
        acceptance_by_position: The same for each draft position; None where a position was never reached. [0-1]
        mean_acceptance_length: Tokens per verification, bonus token included. [tokens]
        rounds, tokens: How many were measured.
        outputs_identical: Speculative output equals autoregressive output, where both ran.
        tokens_compared: Number of tokens compared for that.
        prefill_s: Reading the prompts. [s]
        environment: Where it ran.
        schema_version: Of this record.
    """

    workload: Workload
    strategy: Strategy
    hardware: str
    target: str
    draft: str | None = None
    measured_target_step_s: Seconds | None = None
    measured_verify_step_s: Seconds
    measured_draft_step_s: Seconds | None = None
    measured_gamma_draft_step_s: Seconds | None = None
    measured_select_step_s: Seconds | None = None
    measured_target_bytes_per_s: float | None = None
    measured_target_flop_per_s: float | None = None
    measured_verify_bytes_per_s: float
    measured_verify_flop_per_s: float
    measured_peak_memory_bytes: float
    measured_round_overhead_s: float
    measured_speculative_tpot_s: Seconds
    measured_autoregressive_tpot_s: Seconds | None = None
    measured_speedup: Seconds | None = None
    throughput_tokens_per_s: pydantic.PositiveFloat
    acceptance_rate: Share | None = None
    acceptance_by_position: list[Share | None] = []
    mean_acceptance_length: float = pydantic.Field(ge=1.0)
    rounds: pydantic.PositiveInt
    tokens: pydantic.PositiveInt
    outputs_identical: bool | None = None
    tokens_compared: pydantic.NonNegativeInt = 0
    prefill_s: float
    environment: Environment
    schema_version: Literal[1] = SCHEMA_VERSION

    def follows(self, plan: Plan) -> bool:
        """Whether the run is the one a plan predicts: same models, machine, strategy and batch, and nearly the same context."""
        planned = plan.workload
        return (
            self.workload.batch_size == planned.batch_size
            and abs(self.workload.context_len / planned.context_len - 1) <= CONTEXT_TOLERANCE
            and self.strategy == plan.strategy
            and self.target == plan.target.fingerprint
            and (self.hardware, self.environment.processes) == (plan.hardware.name, plan.hardware.tensor_parallel)
        )


def render_measurement(measurement: Measurement) -> str:
    """The JSON line of a measurement, without the line break."""
    return json.dumps(measurement.model_dump(mode="json"))


def load_measurements(path: str | Path) -> list[Measurement]:
    """Every measurement of a file of JSON lines.

    Raises:
        InputError: The file cannot be read, or a line is no measurement; each problem names file, line and key.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, "", "a readable file of measurements", getattr(error, "strerror", None) or error) from None
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, where: str) -> Measurement:
    try:
        json.loads(line)
    except ValueError as error:
        raise bad(where, "", "a measurement as JSON, as `magicdec run --measurements` writes it", error) from None
    try:
        return Measurement.model_validate_json(line)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
