"""The public Python functions: what they predict, plan and refuse."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import magicdec
from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.speculation.deployment import Deployment
from magicdec.inputs.cpu_profile import CPU
from magicdec.inputs.names import REFERENCE, executed, find_draft, find_model
from magicdec.results.plan import PlanResult

POINT: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "hardware": "h100-sxm",
    "num_gpus": 8,
    "batch_size": 64,
    "context_len": 32_000,
}


def test_predict_takes_a_grid() -> None:
    batches, contexts = np.array([[1], [32], [128]]), np.array([4000, 32000])
    grid = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=batches, context_len=contexts)
    assert grid.round.speedup.shape == (3, 2)
    point = magicdec.predict("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=128, context_len=32000)
    assert float(point.round.speedup) == grid.round.speedup[2, 1]


def test_plan_chooses_speculation_where_decoding_is_kv_bound_and_not_elsewhere() -> None:
    large = magicdec.plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=64, context_len=32000)
    assert large.strategy.draft_kind == "self"
    assert large.prediction.predicted_speedup_low > 1
    small = magicdec.plan("llama-3.1-8b", "h100-sxm", num_gpus=8, batch_size=1, context_len=1000)
    assert small.strategy.draft_kind == "none"


def test_a_model_is_priced_in_the_types_it_runs_in() -> None:
    """A CPU whose profile has a rate for them keeps matrices in 16 bits, unless sharded; a GPU runs a checkpoint as it is."""
    config, gpu = find_model(REFERENCE).config, resolve_profile("h100-sxm")
    cpu = replace(gpu, name=CPU)
    in_torch = replace(cpu, peak=replace(cpu.peak, flop_per_s={"float32": 1e12}))
    found = [executed(config, *where) for where in ((gpu,), (cpu,), (cpu, 2), (in_torch,))]
    assert [one.dtype for one in found] == ["float16", "float32", "float32", "float32"]
    assert [one.linear_dtype for one in found] == [one.embedding_dtype for one in found] == [None, "float16", None, None]
    draft = find_draft(REFERENCE, None, Deployment(executed(config, cpu, 2), cpu, 2, 2))
    assert draft.model == executed(config, cpu, 2)


# Python can ask what the command line can.


@pytest.mark.parametrize("objective", ["thruput", "Latency", "", 5])
def test_an_unknown_objective_is_refused(objective: Any) -> None:
    """It once optimised latency."""
    with pytest.raises(InputError, match="objective: expected latency or throughput or cost"):
        magicdec.plan(**POINT, objective=objective)


def test_one_value_is_as_good_as_a_list_of_one() -> None:
    """`draft="self"` once was four drafts of one letter each."""
    listed = {"draft": ("self",), "kv_policy": ["snapkv"], "kv_budget": [1024], "gamma": np.array([3]), "batch_size": [64]}
    alone = {name: value[0] for name, value in listed.items()}
    for found in (magicdec.plan, magicdec.explore):
        where = {**POINT, "context_len": 32_000}
        assert found(**{**where, **alone}).to_dict() == found(**{**where, **listed}).to_dict()  # type: ignore[arg-type]
    assert magicdec.plan(**POINT, draft="self").to_dict() == magicdec.plan(**POINT, draft=("self",)).to_dict()


TYPES: list[dict[str, str]] = [
    {"weight_dtype": "int8"},
    {"kv_dtype": "fp8"},
    {"verify_kernel": "per_token"},
    {"weight_dtype": "fp8", "kv_dtype": "int4", "verify_kernel": "shared_kv_no_split"},
]


@pytest.mark.parametrize("types", TYPES)
def test_types_and_verify_kernel_reach_every_question_alike(types: dict[str, Any]) -> None:
    """Two output tokens: a plan's mean context is one more than its prompt."""
    strategy: dict[str, Any] = {"draft": "self", "kv_policy": "streaming_llm", "kv_budget": 512, "gamma": 3}
    point = {**POINT, "context_len": 32_001}
    predicted, usual = magicdec.predict(**point, **strategy, **types), magicdec.predict(**point, **strategy)
    planned = magicdec.plan(**POINT, output_len=2, **strategy, **types)
    (drafted,) = [one for one in planned.candidates if one.strategy.draft_kind == "self"]
    for name, value in predicted.points[0].steps.items():
        assert drafted.steps[name] == pytest.approx(value, rel=1e-9), name
    assert drafted.steps != usual.points[0].steps
    where = {"model": POINT["model"], "hardware": POINT["hardware"], "num_gpus": POINT["num_gpus"]}
    for found in (magicdec.explore(**where, **types), magicdec.regimes(**where, **types)):
        assert found.scenario.deployment == predicted.scenario.deployment
    assert predicted.scenario.deployment != usual.scenario.deployment


# What is refused, by the name of the parameter.

FILES: dict[str, Any] = {"output": "nowhere", "scenarios": "missing.csv", "from_aiconfigurator": "nowhere", "system": "h100_sxm"}
FLAGS = {"sweep", "experimental", "replay_acceptance"}


def cases() -> list[tuple[str, str]]:
    """Every public function that resolves names, with every parameter that is not a mere switch."""
    functions = ["predict", "plan", "explore", "regimes", "export", "report", "validate", "predict_scenarios", "calibrate"]
    found = [(name, parameter) for name in functions for parameter in inspect.signature(getattr(magicdec, name)).parameters]
    return [case for case in found if case[1] not in FLAGS]


@pytest.fixture(scope="module")
def made() -> PlanResult:
    return magicdec.plan(**POINT)


@pytest.mark.parametrize("wrong", [object(), [object()]], ids=["object", "list"])
@pytest.mark.parametrize(("function", "parameter"), cases())
def test_a_value_of_a_wrong_type_is_refused_by_name(function: str, parameter: str, wrong: object, made: PlanResult) -> None:
    known = inspect.signature(getattr(magicdec, function)).parameters
    values = {**POINT, **FILES, "plan": made, "to": "vllm-vegas"}
    asked = {name: value for name, value in values.items() if name in known and (function, name) != ("calibrate", "system")}
    if parameter in ("system", "profile"):
        asked["system"] = "h100_sxm"
    if function == "calibrate" and parameter == "from_published":
        del asked["from_aiconfigurator"]
    if parameter == "acceptance_by_position":
        asked.pop("acceptance_rate", None)
    with pytest.raises(InputError) as caught:
        getattr(magicdec, function)(**{**asked, parameter: wrong})
    assert {problem.where for problem in caught.value.problems} == {parameter}


@pytest.mark.parametrize(
    ("function", "parameter", "value"),
    [
        ("predict", "batch_size", 0),
        ("predict", "batch_size", "many"),
        ("predict", "batch_size", True),
        ("predict", "acceptance_by_position", [0.9, 1.1]),
        ("predict", "kv_policy", "best"),
        ("predict", "verify_kernel", "magic"),
        ("predict", "kv_dtype", "bf16"),
        ("predict", "num_gpus", 1.5),
        ("plan", "batch_size", [64, 0]),
        ("plan", "context_len", 0),
        ("plan", "output_len", 0),
        ("plan", "gamma", [1, 2.5]),
        ("plan", "kv_budget", -1),
        ("plan", "max_tpot_s", "50ms"),
        ("plan", "max_tpot_s", 0),
        ("plan", "gpu_price", float("nan")),
        ("plan", "acceptance_rate", 1.5),
        ("plan", "acceptance_by_position", []),
        ("plan", "weight_dtype", "int3"),
        ("explore", "context_len", [0]),
        ("regimes", "speedup", 0.5),
        ("regimes", "small_draft", "gpt-9"),
        ("report", "num_gpus", 0),
        ("report", "ridges", "h1000"),
        ("calibrate", "from_published", "h1000"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(function: str, parameter: str, value: object) -> None:
    known = inspect.signature(getattr(magicdec, function)).parameters
    asked = {name: POINT[name] for name in POINT if name in known} | ({"output": "nowhere"} if function == "report" else {})
    with pytest.raises(InputError) as caught:
        getattr(magicdec, function)(**{**asked, parameter: value})
    assert {problem.where for problem in caught.value.problems} == {parameter}


def test_a_path_is_as_good_as_a_name(tmp_path: Path, made: PlanResult) -> None:
    made.save(tmp_path / "plan.yaml")
    assert magicdec.export(tmp_path / "plan.yaml", "vllm-vegas").to_dict() == magicdec.export(made, "vllm-vegas").to_dict()
    profile = Path(__file__).parents[2] / "hardware_profiles" / "h100-sxm.yaml"
    assert magicdec.plan(**{**POINT, "hardware": profile}).to_dict() == made.to_dict()
