"""The artifact between planner and executor: what to run, where, and what it is predicted to do. YAML, versioned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal

import pydantic
import yaml

from ..base.errors import bad, from_pydantic
from ..base.yaml_text import load_mapping
from ..models.transformer import TransformerConfig
from .policy import PolicyTable
from .strategy import Strategy
from .workload import Workload


def fingerprint(model: TransformerConfig) -> str:
    """What identifies a model's architecture: sixteen hexadecimal digits over its facts, but for name and types.

    Facts that are as they are by default are left out, so that a new one does not change the models that lack it.
    """
    defaults = {known.name: known.default for known in fields(TransformerConfig)}
    hidden = ("name", "dtype", "embedding_dtype", "linear_dtype", "expert_dtype", "kv_dtype")
    facts = {key: value for key, value in asdict(model).items() if key not in hidden and value != defaults[key]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class PlannedModel(_Part):
    """A model by the name it resolves from, the fingerprint of its architecture, and the types it was planned in, if compressed."""

    name: str
    fingerprint: str
    weight_dtype: str | None = None
    kv_dtype: str | None = None


class PlannedHardware(_Part):
    """The machine; `sha256` is that of its profile."""

    name: str
    sha256: str
    num_gpus: pydantic.PositiveInt
    tensor_parallel: pydantic.PositiveInt


class PredictedRound(_Part):
    """Step times [s] and yield [tokens] of a round, and the breakdown of each pass by bound. [s]"""

    predicted_target_step_s: float
    predicted_verify_step_s: float
    predicted_draft_step_s: float
    predicted_gamma_draft_step_s: float
    predicted_round_overhead_s: float
    predicted_mean_acceptance_length: float
    predicted_speculative_tpot_s: pydantic.PositiveFloat
    predicted_acceptance_rate: float | None
    predicted_speedup: float
    predicted_speedup_low: float
    predicted_speedup_high: float
    predicted_memory_bytes: float
    bound: Literal["compute", "weights", "kv", "communication", "overhead"]
    breakdown: dict[str, dict[str, float]]


class PredictedServing(_Part):
    """Whole requests: first token, whole request and plain one [s], all tokens with prompts being read too [tokens/s]."""

    predicted_ttft_s: float
    predicted_request_s: float
    predicted_plain_request_s: float
    predicted_throughput_tokens_per_s: float
    predicted_plain_throughput_tokens_per_s: float
    prefill_share: float


class RunnerUp(_Part):
    """The best strategy of another kind for the same batch, and what it would have gained. [ratio]"""

    strategy: Strategy
    predicted_speedup: float


class Plan(_Part):
    """A plan file; `policy`, where it was asked for, says what to do at other batch sizes and contexts."""

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
    notes: list[str] = []

    @pydantic.model_validator(mode="after")
    def _draft_model_is_named_once(self) -> Plan:
        if (self.draft.name if self.draft else None) != self.strategy.draft_model:
            raise ValueError("draft and strategy.draft_model to be the same model")
        return self

    def check_model(self, role: str, model: TransformerConfig, where: str) -> None:
        """Raise `InputError` unless the model is the one that was planned for. `role` is `target` or `draft`."""
        planned: PlannedModel | None = getattr(self, role)
        if planned is None:
            return
        found = fingerprint(model)
        if planned.fingerprint != found:
            expected = f"the planned {role} {planned.name} (fingerprint {planned.fingerprint})"
            raise bad(where, "", expected, f"{model.name} (fingerprint {found})")


def render_plan(plan: Plan) -> str:
    """The YAML text of a plan."""
    return yaml.safe_dump(plan.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def parse_plan(text: str, *, where: str) -> Plan:
    """The plan that a YAML text holds.

    Raises:
        InputError: All that is wrong with it, key by key.
    """
    raw = load_mapping(text, where, "a plan, as `magicdec plan -o` writes it")
    try:
        return Plan.model_validate_json(json.dumps(raw, default=str))  # as JSON: strict, yet takes mappings for values
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None


def load_plan(path: str | Path) -> Plan:
    """Read a plan file. Raises `InputError` when it cannot be read or is not a plan."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, "", "a readable plan file", getattr(error, "strerror", None) or error) from None
    return parse_plan(text, where=str(path))
