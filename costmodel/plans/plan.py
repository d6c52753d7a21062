"""Plan files: the planner writes what to run, where, and the predicted performance; the executor reads it. Versioned YAML."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

from ..base.errors import InputError, Problem, bad
from ..base.files import read_text
from ..base.limits import MAX_GPUS, MAX_TOKENS
from ..base.names import NAME_RULE, is_name
from ..base.records import STRICT, Limits, NotNegative, Positive, Share, to_document
from ..base.yaml_text import load_mapping, render_yaml
from ..models.transformer import TransformerConfig
from .policy_table import PolicyTable
from .strategy import COMPRESSED_DTYPES, KV_DTYPES, MAX_GAMMA, Strategy
from .workload import Workload

Bound = Literal["compute", "weights", "kv", "communication", "overhead"]  # as in `passes.roofline`
BESIDE = "candidates"  # what `plan --json` prints beside the plan
PASSES = ("target", "draft", "verify")


def fingerprint(model: TransformerConfig) -> str:
    """Hash the architecture of a model, without its name, dtypes and notes, to sixteen hexadecimal digits.

    Fields with default values are left out, so that adding a field does not change existing fingerprints.
    """
    import hashlib  # slow to import

    defaults = {known.name: known.default for known in fields(TransformerConfig)}
    hidden = {"name", "notes", "vision_params", "mtp", "num_mtp", "stored"}
    plain = model.with_dtype(model.dtype)  # layers that differ only in how they are stored are one group
    facts = {
        key: value
        for key, value in asdict(plain).items()
        if key not in hidden and not key.endswith("dtype") and value != defaults[key]
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _check_name(name: str) -> None:
    if not is_name(name):
        raise InputError(Problem("plan", "name", NAME_RULE, repr(name[:80])))


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model of a plan.

    Attributes:
        name: Name that `resolve_model` finds it by.
        fingerprint: Hash of the architecture.
        weight_dtype, kv_dtype: Compressed dtypes; None for the model's own.
        checkpoint: Path or id on the Hub that the user gave; None for a built-in name.
    """

    name: str
    fingerprint: str
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    checkpoint: str | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.checkpoint is not None:
            _check_name(self.checkpoint)
        types = (("weight_dtype", self.weight_dtype, COMPRESSED_DTYPES), ("kv_dtype", self.kv_dtype, KV_DTYPES))
        for key, dtype, known in types:
            if dtype is not None and dtype not in known:
                raise InputError(Problem("plan", key, f"null or {' or '.join(known)}", repr(dtype)))


@dataclass(frozen=True, kw_only=True)
class PlannedHardware:
    """The hardware of a plan.

    Attributes:
        name: Name of the profile.
        sha256: Digest of the profile file.
        num_gpus: Total number of GPUs.
        tensor_parallel: GPUs per replica of the target.
    """

    name: str
    sha256: str
    num_gpus: Annotated[int, Limits(gt=0, le=MAX_GPUS)]
    tensor_parallel: Annotated[int, Limits(gt=0, le=MAX_GPUS)]

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.num_gpus % self.tensor_parallel:
            expected = f"a divisor of num_gpus ({self.num_gpus})"
            raise InputError(Problem("plan", "tensor_parallel", expected, str(self.tensor_parallel)))


@dataclass(frozen=True, kw_only=True)
class PredictedRound:
    """Prediction for one speculative round.

    Attributes:
        predicted_target_step_s: Autoregressive decoding step. [s]
        predicted_verify_step_s: Verification pass. [s]
        predicted_draft_step_s, predicted_gamma_draft_step_s: One draft step; all draft steps of a round. [s]
        predicted_round_overhead_s: Host work per round. [s]
        predicted_mean_acceptance_length: Tokens per round, bonus token included. [tokens]
        predicted_speculative_tpot_s: Time per output token of a sequence. [s]
        predicted_acceptance_rate: Acceptance rate; None if only the mean acceptance length was given. [0-1]
        predicted_speedup, predicted_speedup_low, predicted_speedup_high: Speedup over autoregressive decoding, and its
            interval. [ratio]
        predicted_memory_bytes: Memory of one GPU. [bytes]
        bound: Largest part of an autoregressive step.
        breakdown: Time of each pass by part. [s]
    """

    predicted_target_step_s: Positive
    predicted_verify_step_s: Positive
    predicted_draft_step_s: NotNegative
    predicted_gamma_draft_step_s: NotNegative
    predicted_round_overhead_s: NotNegative
    predicted_mean_acceptance_length: Annotated[float, Limits(ge=1.0, le=MAX_GAMMA + 1)]
    predicted_speculative_tpot_s: Positive
    predicted_acceptance_rate: Share | None
    predicted_speedup: Positive
    predicted_speedup_low: NotNegative
    predicted_speedup_high: Positive
    predicted_memory_bytes: NotNegative
    bound: Bound
    breakdown: dict[str, dict[str, NotNegative]]

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        for name, parts in self.breakdown.items():
            if name not in PASSES or not set(parts) <= set(get_args(Bound)):
                expected = f"times of {', '.join(PASSES)} by {', '.join(get_args(Bound))}"
                raise InputError(Problem("plan", f"breakdown.{name}", expected, ", ".join(parts)))
        if not self.predicted_speedup_low <= self.predicted_speedup <= self.predicted_speedup_high:
            expected = f"an interval from predicted_speedup_low to _high around predicted_speedup ({self.predicted_speedup})"
            found = f"{self.predicted_speedup_low} to {self.predicted_speedup_high}"
            raise InputError(Problem("plan", "", expected, found))


@dataclass(frozen=True, kw_only=True)
class PredictedServing:
    """Prediction for whole requests, prefill included.

    Attributes:
        predicted_ttft_s: Time to first token, without queueing. [s]
        predicted_request_s, predicted_plain_request_s: Time of one request with and without speculation. [s]
        predicted_throughput_tokens_per_s, predicted_plain_throughput_tokens_per_s: End-to-end throughput with and without
            speculation. [tokens/s]
        prefill_share: Share of the time spent on prefill. [0-1]
        predicted_speedup, predicted_speedup_low, predicted_speedup_high: End-to-end throughput over that without speculation,
            and its interval. [ratio]
        cached_share: Share of each prompt whose KV cache is there already. [0-1]
        queue_s: Waiting time before the prefill, in the times above. [s]
        output_len_assumed: The output length was not given.
    """

    predicted_ttft_s: NotNegative
    predicted_request_s: Positive
    predicted_plain_request_s: Positive
    predicted_throughput_tokens_per_s: Positive
    predicted_plain_throughput_tokens_per_s: Positive
    prefill_share: Share
    predicted_speedup: Positive | None = None
    predicted_speedup_low: Positive | None = None
    predicted_speedup_high: Positive | None = None
    cached_share: Share = 0.0
    queue_s: NotNegative = 0.0
    output_len_assumed: bool = False

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """Cost of tokens end to end, on machines that are always busy. [dollars]

    Attributes:
        gpu_price: Of a GPU and hour.
        per_million_tokens: Prompts and outputs counted alike.
        plain_per_million_tokens: The same without speculation.
        per_million_input_tokens, per_million_output_tokens: From the time of prefill and of decoding.
        per_request: From prompt to last token.
        saving: Share of the cost, and of the GPUs for a load, that speculation saves; negative for a loss. [ratio]
    """

    gpu_price: NotNegative
    per_million_tokens: NotNegative
    plain_per_million_tokens: NotNegative
    per_million_input_tokens: NotNegative
    per_million_output_tokens: NotNegative
    per_request: NotNegative
    saving: float

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class PlannedLimits:
    """Limits that the plan holds.

    Attributes:
        max_tpot_s, max_ttft_s: On the time per output token and to the first token; None for no limit. [s]
    """

    max_tpot_s: Positive | None = None
    max_ttft_s: Positive | None = None

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class PlannedMix:
    """Lengths of a trace whose requests are not all equal.

    Attributes:
        mean_context_len: Mean context of a running sequence. [tokens]
        mean_final_len: Mean context after the last token, which a paged cache holds. [tokens]
        longest_len: Context after the last token of the longest request. [tokens]
    """

    mean_context_len: Positive
    mean_final_len: Positive
    longest_len: Annotated[int, Limits(gt=0, le=MAX_TOKENS)]

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """The best strategy of another draft family for the same batch size.

    Attributes:
        strategy: The strategy.
        predicted_speedup: Its speedup. [ratio]
    """

    strategy: Strategy
    predicted_speedup: Positive

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan file.

    Attributes:
        schema_version: Version of this format.
        workload: The planned workload.
        hardware: The planned hardware.
        target, draft: The models; `draft` only for a separate draft model.
        strategy: The chosen strategy.
        prediction: Prediction for one round.
        serving: Prediction for whole requests.
        runner_up: Best strategy of another draft family.
        policy: Strategies for other batch sizes and contexts.
        draft_checkpoint: Path or id of a prediction layer that the user gave.
        cost: What tokens cost, if a price was given.
        limits: Limits that the plan holds.
        mix: Lengths of the trace that was planned for.
        verify_kernel: How verification attention reads the KV cache.
        engine: The serving engine that it was priced for, and that the strategies were restricted to; None for the one that the
            profile was calibrated with.
        task: What is generated, where acceptance was taken for one task.
        notes: Sentences for people.
    """

    schema_version: Literal[1] = 1
    workload: Workload
    hardware: PlannedHardware
    target: PlannedModel
    draft: PlannedModel | None = None
    strategy: Strategy
    prediction: PredictedRound
    serving: PredictedServing | None = None
    runner_up: RunnerUp | None = None
    policy: PolicyTable | None = None
    draft_checkpoint: str | None = None
    cost: PlannedCost | None = None
    limits: PlannedLimits | None = None
    mix: PlannedMix | None = None
    verify_kernel: Literal["shared_kv_splitkv", "shared_kv_no_split", "per_token"] = "shared_kv_splitkv"
    engine: str | None = None
    task: str | None = None
    notes: list[str] = field(default_factory=list)

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        named = self.draft.name if self.draft else None
        if named != self.strategy.draft_model:
            found = f"{named!r} and {self.strategy.draft_model!r}"
            raise InputError(Problem("plan", "", "draft and strategy.draft_model to be the same model", found))
        if self.draft_checkpoint is not None:
            _check_name(self.draft_checkpoint)
        most, length = self.strategy.gamma + 1, self.prediction.predicted_mean_acceptance_length
        if length > most * (1 + 1e-9):
            key = "prediction.predicted_mean_acceptance_length"
            raise InputError(Problem("plan", key, f"at most gamma + 1 ({most})", str(length)))

    def check_model(self, role: Literal["target", "draft"], model: TransformerConfig, where: str) -> None:
        """Check that a loaded model is the planned one.

        Args:
            role: Whether the model is the target or the draft.
            model: The loaded model.
            where: The parameter that names the model, for error messages.

        Raises:
            InputError: The architectures differ.
        """
        planned = self.target if role == "target" else self.draft
        if planned is None:
            return
        found = fingerprint(model)
        if planned.fingerprint != found:
            expected = f"the planned {role} {planned.name} (fingerprint {planned.fingerprint})"
            raise bad(where, "", expected, f"{model.name} (fingerprint {found})")


def render_plan(plan: Plan) -> str:
    """Render a plan as YAML text."""
    return render_yaml(to_document(plan))


def parse_plan(text: str, *, where: str) -> Plan:
    """Parse the YAML text of a plan.

    Args:
        text: Content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    from ..base.validation import validate_mapping  # pydantic is slow to import

    raw = load_mapping(text, where, "a plan, as `magicdec plan -o` writes it")
    return validate_mapping(Plan, {key: value for key, value in raw.items() if key != BESIDE}, where)


def load_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        InputError: The file cannot be read, or is not a plan.
    """
    return parse_plan(read_text(path, "plan file"), where=str(path))
