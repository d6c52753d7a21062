"""Exported commands read back by the options of each engine: what they run is the plan, or a note says what differs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
import yaml

from magicdec.api.export import export
from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.export.document import Options
from magicdec.costmodel.export.engines import ENGINES, export_plan
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.plans.plan import Plan, PlannedHardware, PlannedModel, PredictedRound, fingerprint
from magicdec.costmodel.plans.strategy import NO_SPECULATION, Strategy
from magicdec.costmodel.plans.workload import Workload

TARGETS = ("Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-32B", "Qwen2.5-7B")
SMALL = {"Llama-3.1-8B": "Llama-3.2-1B", "Llama-3.1-70B": "Llama-3.1-8B", "Qwen3-32B": "Qwen3-0.6B", "Qwen2.5-7B": "Qwen2.5-0.5B"}
KV_WORDS = {"fp8": "fp8", "fp8_e4m3": "fp8", "q8_0": "q8_0", "q4_0": "q4_0"}


def random_plan(draw: random.Random) -> Plan:
    target = draw.choice(TARGETS)
    shared_by = draw.choice((1, 2, 4))
    gamma = draw.randint(1, 8)
    strategy = draw.choice(
        (
            NO_SPECULATION,
            Strategy("self", "streaming_llm", draw.choice((256, 500, 1024)), gamma),
            Strategy("self", "snapkv", 512, gamma),
            Strategy("self", gamma=gamma, kv_dtype="fp8"),
            Strategy("self", gamma=gamma, kv_dtype="int4"),
            Strategy("self", gamma=gamma, weight_dtype="int4"),
            Strategy("model", gamma=gamma, draft_model=SMALL[target]),
            Strategy("model", "streaming_llm", 512, gamma, SMALL[target]),
            Strategy("ngram", gamma=gamma),
            Strategy("eagle3", gamma=gamma),
        )
    )
    numbers = {name: 0.05 for name in PredictedRound.__dataclass_fields__ if name not in ("bound", "breakdown")}
    rate = draw.uniform(0.3, 0.95)
    numbers |= {"predicted_acceptance_rate": rate, "predicted_speedup": 1.6, "predicted_speedup_low": 1.3}
    numbers |= {"predicted_speedup_high": 1.9, "predicted_mean_acceptance_length": sum(rate**i for i in range(strategy.gamma + 1))}
    small = strategy.draft_model
    return Plan(
        workload=Workload(draw.choice((1, 4, 16, 63)), draw.choice((1000, 8000, 32_000)), draw.choice((1, 128, 1024))),
        hardware=PlannedHardware(
            name=draw.choice(("h100-sxm", "h200-sxm", "l40s")), sha256="0" * 64, num_gpus=shared_by * draw.choice((1, 2)),
            tensor_parallel=shared_by,
        ),
        target=PlannedModel(
            name=target,
            fingerprint=fingerprint(resolve_model(target)),
            weight_dtype=draw.choice((None, "fp8", "int8", "int4")),
            kv_dtype=draw.choice((None, "fp8", "int8", "int4", "q8_0")),
        ),
        draft=PlannedModel(name=small, fingerprint=fingerprint(resolve_model(small))) if small else None,
        strategy=strategy,
        prediction=PredictedRound(**numbers, bound="kv", breakdown={}),  # type: ignore[arg-type]
    )  # fmt: skip


def options_of(arguments: tuple[str, ...]) -> dict[str, str]:
    """`--name value` pairs of a command."""
    return {word: after for word, after in zip(arguments, [*arguments[1:], ""], strict=True) if word.startswith("--")}


def read_back(engine: str, arguments: tuple[str, ...], files: dict[str, str]) -> dict[str, Any]:
    """What a command runs, by the options of its engine."""
    flags = options_of(arguments)
    if engine in ("vllm", "vllm-vegas"):
        config = json.loads(flags.get("--speculative-config", "{}"))
        return {
            "checkpoint": arguments[2],
            "converts": flags.get("--quantization"),
            "kv": flags.get("--kv-cache-dtype"),
            "longest": int(flags["--max-model-len"]),
            "sequences": int(flags["--max-num-seqs"]),
            "gpus": int(flags["--tensor-parallel-size"]),
            "replicas": int(flags.get("--data-parallel-size", "1")),
            "gamma": config.get("num_speculative_tokens", 0),
            "draft": config.get("model"),
        }
    if engine == "sglang":
        return {
            "checkpoint": flags["--model-path"],
            "converts": flags.get("--quantization"),
            "kv": flags.get("--kv-cache-dtype"),
            "longest": int(flags["--context-length"]),
            "sequences": int(flags["--max-running-requests"]),
            "gpus": int(flags["--tp-size"]),
            "replicas": int(flags.get("--dp-size", "1")),
            "gamma": int(flags.get("--speculative-num-draft-tokens", "1")) - 1,
            "draft": flags.get("--speculative-draft-model-path"),
        }
    if engine == "tensorrt-llm":
        config = yaml.safe_load(files["trtllm.yaml"])
        speculative = config.get("speculative_config", {})
        return {
            "checkpoint": arguments[1],
            "converts": None,
            "kv": config["kv_cache_config"].get("dtype"),
            "longest": config["max_seq_len"],
            "sequences": config["max_batch_size"],
            "gpus": config["tensor_parallel_size"],
            "replicas": None,
            "gamma": speculative.get("max_draft_len", 0),
            "draft": speculative.get("speculative_model"),
        }
    assert engine == "llama.cpp"
    sequences = int(flags["--parallel"])
    return {
        "checkpoint": flags["--model"],
        "converts": None,
        "kv": flags.get("--cache-type-k"),
        "longest": int(flags["--ctx-size"]) // sequences,
        "sequences": sequences,
        "gpus": None,  # those that it sees
        "replicas": None,
        "gamma": int(flags.get("--spec-draft-n-max", flags.get("--spec-ngram-simple-size-m", "0"))),
        "draft": flags.get("--spec-draft-model"),
    }


def check(plan: Plan, engine: str) -> None:
    exported = export_plan(plan, engine, Options())
    served = exported.served
    assert served is not None
    found, notes, context = read_back(engine, exported.arguments, exported.files), " ".join(exported.notes), (plan, exported)
    where, wanted = plan.hardware, plan.target
    replicas = where.num_gpus // where.tensor_parallel
    assert found["longest"] >= plan.workload.context_len + plan.workload.output_len, context
    assert found["sequences"] == -(-plan.workload.batch_size // replicas), context
    assert found["gpus"] in (None, where.tensor_parallel), context
    assert (found["replicas"] or 1) * exported.servers == replicas, context
    assert found["gamma"] == plan.strategy.gamma == served.strategy.gamma, context
    if wanted.weight_dtype is None:
        assert found["converts"] is None, context
    elif found["converts"] is None:
        named = wanted.weight_dtype in found["checkpoint"].lower() or found["checkpoint"].endswith(".gguf")
        assert named or f"weights are planned in {wanted.weight_dtype}" in notes, context
    if wanted.kv_dtype != KV_WORDS.get(found["kv"] or "", found["kv"]):
        assert f"KV cache in {wanted.kv_dtype}" in notes, context
    if plan.strategy.draft_kind in ("model", "self", "eagle3") and engine != "vllm-vegas":
        assert found["draft"], context
    if plan.strategy.draft_kind == "model" and plan.strategy.kv_policy != "full":
        assert "full KV cache instead of" in notes, context


def test_the_commands_of_500_random_plans_run_what_was_planned_or_say_what_differs() -> None:
    draw, checked = random.Random(7), 0
    for _ in range(500):
        plan = random_plan(draw)
        for name, engine in ENGINES.items():
            if name != "transformers" and (plan.strategy.draft_kind == "none" or engine.supports(plan.strategy)):
                check(plan, name)
                checked += 1
    assert checked > 1000


def test_no_command_that_is_slow_or_does_not_fit_goes_out_unasked() -> None:
    draw, refused = random.Random(8), 0
    for _ in range(40):
        plan = random_plan(draw)
        for name, engine in ENGINES.items():
            if plan.strategy.draft_kind != "none" and not engine.supports(plan.strategy):
                continue
            forced = export(plan, name, force=True)
            assert forced.price is not None
            assert forced.notes[0] == f"This command: {forced.price}."
            if forced.price.fits and forced.price.pays:
                assert export(plan, name).price == forced.price
                continue
            refused += 1
            with pytest.raises(InputError, match=rf"`magicdec plan --engine {name}` searches what it runs"):
                export(plan, name)
    assert refused > 8


@pytest.mark.filterwarnings("ignore:.*is taken for")
def test_a_plan_for_an_engine_is_priced_the_same_as_its_command() -> None:
    import magicdec

    for engine, model, kv, drafts in (
        ("vllm", "llama-3.1-70b", "fp8", ["llama-3.2-1b"]),
        ("sglang", "llama-3.1-70b", None, ["llama-3.2-1b"]),
        ("vllm-vegas", "llama-3.1-8b", None, None),
        ("llama.cpp", "llama-3.1-70b-q4_k_m", "q8_0", ["llama-3.2-1b"]),
    ):
        made = magicdec.plan(
            model, "h100-sxm", num_gpus=8, batch_size=16, context_len=32_000, output_len=512, draft=drafts, engine=engine,
            kv_dtype=kv, acceptance_rate=0.85 if drafts else 0.95,
        )  # fmt: skip
        assert made.strategy.draft_kind != "none"
        found = export(made, engine).price
        assert found is not None
        assert found.speedup == pytest.approx(made.prediction.predicted_speedup, rel=0.01), engine
        assert found.memory_bytes == pytest.approx(made.prediction.predicted_memory_bytes, rel=0.01), engine


def test_another_profile_prices_a_plan_of_a_machine_that_is_not_known() -> None:
    draw = random.Random(1)
    plan = next(plan for plan in iter(lambda: random_plan(draw), None) if plan.strategy.draft_kind == "ngram")
    plan = replace(plan, hardware=replace(plan.hardware, name="mine"))
    with pytest.raises(InputError, match="mine"):
        export(plan, "vllm")
    assert "not priced" in export(plan, "vllm", force=True).notes[0]
    assert export(plan, "vllm", force=True, hardware="h200-sxm").price is not None


@pytest.mark.filterwarnings("ignore:.*is taken for")
def test_predict_says_of_an_exported_command_what_the_export_says() -> None:
    import magicdec

    asked = {"batch_size": 1, "context_len": 16_000, "output_len": 500, "draft": "qwen2.5-0.5b", "engine": "llama.cpp"}
    made = magicdec.plan("qwen2.5-14b-q4_k_m", "rtx-4090", **asked)  # type: ignore[arg-type]
    found = export(made, "llama.cpp").price
    said = magicdec.predict(
        "qwen2.5-14b-q4_k_m",
        "rtx-4090",
        batch_size=1,
        context_len=16_250,
        draft="qwen2.5-0.5b",
        gamma=made.strategy.gamma,
        engine="llama.cpp",
    )
    assert found is not None
    assert found.speedup == pytest.approx(float(said.speedup), rel=0.01)
    assert found.memory_bytes == pytest.approx(said.points[0].memory_bytes, rel=0.01)
