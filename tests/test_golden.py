"""Answers of the command line, compared number by number with recorded ones.

A change of layout, names or wording must not change any of them. Where a prediction is meant to change, record the answers
anew with `RECORD_GOLDEN=1 scripts/test tests/test_golden.py` and say in the commit why they moved.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from magicdec.cli.group import main

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "golden"
H100 = "--model llama-3.1-8b --hardware h100-sxm --num-gpus 8"
QWEN = "predict --model qwen3-8b --batch-size 8 --context-len 16k"
TRACE = "prompt_len,output_len\n500,100\n16000,200\n64000,50\n32000,400\n"
# Prose, versions and file digests: they may change without a prediction changing.
PROSE = {"notes", "description", "sources", "data", "provenance", "engine_version", "sha256", "schema_version"}

COMMANDS = {
    "predict_self": f"predict {H100} --batch-size 64 --context-len 32k --json",
    "predict_gamma_given": f"predict {H100} --batch-size 128 --context-len 64k --gamma 3 --kv-budget 1k --json",
    "predict_snapkv": f"predict {H100} --batch-size 32 --context-len 100k --kv-policy snapkv --kv-budget 2049 --json",
    "predict_topk": f"predict {H100} --batch-size 32 --context-len 64k --kv-policy topk --kv-budget 512 --gamma 4 --json",
    "predict_quest": f"predict {H100} --batch-size 8 --context-len 64k --kv-policy quest --kv-budget 1024 --json",
    "predict_small_draft": (
        "predict --model llama-2-7b-32k --hardware a100-sxm-80gb --num-gpus 8 --batch-size 16 --context-len 8k "
        "--draft tinyllama-1.1b --acceptance-rate 0.7 --json"
    ),
    "predict_none": "predict --model qwen3-8b --hardware l40s --batch-size 4 --context-len 8k --draft none --json",
    "predict_rates_by_position": f"predict {H100} --batch-size 8 --context-len 8k --gamma 3 --acceptance-rate 0.9,0.8,0.7 --json",
    "predict_mean_length": f"predict {H100} --batch-size 8 --context-len 8k --gamma 3 --mean-acceptance-length 2.5 --json",
    "predict_unknown_acceptance": f"{QWEN} --hardware b200-sxm --draft ngram --json",
    "predict_eagle3": f"{QWEN} --hardware h200-sxm --draft eagle3 --acceptance-rate 0.7 --json",
    "predict_moe": "predict --model qwen3-30b-a3b --hardware h100-sxm --num-gpus 2 --batch-size 16 --context-len 16k --json",
    "predict_latent_mtp": (
        "predict --model deepseek-v3 --hardware b200-sxm --num-gpus 8 --batch-size 32 --context-len 8k --draft mtp --gamma 1 --json"
    ),
    "predict_windows": "predict --model gpt-oss-120b --hardware h200-sxm --num-gpus 2 --batch-size 32 --context-len 32k --json",
    "predict_compressed": (
        "predict --model llama-3.1-70b --hardware h100-sxm --num-gpus 8 --batch-size 16 --context-len 32k --weight-dtype fp8 "
        "--kv-dtype fp8 --draft-kv-dtype int4 --acceptance-rate 0.9 --json"
    ),
    "predict_per_token": f"predict {H100} --batch-size 16 --context-len 32k --verify-kernel per_token --json",
    "predict_does_not_fit": "predict --model llama-3.1-70b --hardware l40 --batch-size 64 --context-len 100k --json",
    "predict_replicas": (
        "predict --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --tensor-parallel 2 --batch-size 64 --context-len 32k --json"
    ),
    "predict_reference": "predict --model reference --hardware h100-sxm --batch-size 16 --context-len 8k --json",
    "regimes": f"regimes {H100} --small-draft llama-3.2-1b --json",
    "validate": "validate --json",
    "profile_file": "profiles h100-sxm --json",
    "profile_datasheet": "profiles rtx-3090 --json",
    "models": "models --json",
}
PLANS = {
    "plan_batches": f"plan {H100} --batch-size 16,64,128 --context-len 32k --max-tpot 15ms",
    "plan_sweep": f"plan {H100} --sweep --max-tpot 20ms",
    "plan_trace": f"plan {H100} --batch-size 32 --trace {{trace}} --objective throughput",
    "plan_drafts": (
        "plan --model llama-2-7b-32k --hardware a100-sxm-80gb --num-gpus 8 --batch-size 4,32 --context-len 16k --output-len 256 "
        "--draft self --draft tinyllama-1.1b --draft ngram --objective cost --gpu-price 2 --acceptance-rate 0.8"
    ),
    "plan_plain": "plan --model llama-3.1-8b --hardware h100-sxm --batch-size 1 --context-len 1k",
    "plan_small_draft": (
        "plan --model llama-3.1-70b --hardware h100-sxm --num-gpus 8 --batch-size 8 --context-len 4k --draft llama-3.2-1b "
        "--acceptance-rate 0.75 --sweep"
    ),
}
ENGINES = ("vllm", "vllm-vegas", "sglang", "tensorrt-llm", "transformers", "llama.cpp")


def run(command: str) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.stdout


def exported(command: str) -> Any:
    """An export; of one that the engine cannot express, only that it is refused."""
    result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
    return json.loads(result.stdout) if result.exit_code == 0 else {"exit_code": result.exit_code}


def answers(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every recorded answer as it is today, by name."""
    trace = folder / "trace.csv"
    trace.write_text(TRACE, encoding="utf-8")
    for name, command in COMMANDS.items():
        yield name, json.loads(run(command))
    scenarios = ROOT / "costmodel/published/magicdec_timings.csv"
    yield "scenarios", list(csv.DictReader(run(f"predict --scenarios {scenarios}").splitlines()))
    for name, command in PLANS.items():
        plan = folder / f"{name}.yaml"
        run(command.format(trace=trace) + f" -o {plan}")
        yield name, yaml.safe_load(plan.read_text(encoding="utf-8"))
        for engine in ENGINES:
            yield f"{name}_to_{engine}", exported(f"export {plan} --to {engine} --json")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _without_comments(text: str) -> str:
    return re.sub(r"(?m)^\s*#.*\n?", "", text)


def differences(recorded: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where two answers differ by more than rounding; keys that were added are no difference."""
    if path.rsplit(".", 1)[-1] in PROSE:
        return
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in recorded:
            if key in found:
                yield from differences(recorded[key], found[key], f"{path}.{key}")
            elif key not in PROSE:
                yield f"{path}.{key}: missing"
    elif isinstance(recorded, list) and isinstance(found, list):
        if len(recorded) != len(found):
            yield f"{path}: {len(recorded)} entries, now {len(found)}"
        for index, (left, right) in enumerate(zip(recorded, found, strict=False)):
            yield from differences(left, right, f"{path}.{index}")
    else:
        left, right = _number(recorded), _number(found)
        if left is not None and right is not None:
            if not math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-15):
                yield f"{path}: {recorded}, now {found}"
        elif isinstance(recorded, str) and isinstance(found, str):
            if _without_comments(recorded) != _without_comments(found):
                yield f"{path}: {recorded!r}, now {found!r}"
        elif recorded != found:
            yield f"{path}: {recorded!r}, now {found!r}"


@pytest.mark.slow
def test_every_recorded_answer_is_given_again(tmp_path: Path) -> None:
    found = dict(answers(tmp_path))
    if os.environ.get("RECORD_GOLDEN"):
        for name, answer in found.items():
            (RECORDED / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    recorded = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in RECORDED.glob("*.json")}
    assert len(recorded) > 50
    assert found.keys() == recorded.keys()
    moved = [f"{name}{line}" for name in recorded for line in differences(recorded[name], found[name])]
    assert not moved, "\n".join(moved[:40])


def test_a_changed_number_is_noticed() -> None:
    assert list(differences({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 2 + 1e-6}]}))
    assert list(differences({"a": 1}, {}))
    assert not list(differences({"a": 1.0, "notes": ["x"]}, {"a": 1.0 + 1e-13, "notes": ["y"], "new": 1}))
