"""`run` and `acceptance` on the command line: plans in, texts, measurements and curves out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import call, refused

from magicdec.costmodel.plans.plan import load_plan, parse_plan
from magicdec.costmodel.speculation.acceptance import parse_curves
from magicdec.executor.reference_model import reference_model_dir

pytest.importorskip("magicdec.cli.run")
pytest.importorskip("magicdec.cli.acceptance")

PLAN = "plan --model reference --hardware a100-sxm-80gb --batch-size 2 --context-len 64 --output-len 8".split()
SIZES = "--kv-budgets 16,64 --context-lens 128,256 --rows 2 --max-new-tokens 12".split()


def test_plan_writes_a_plan_that_run_executes_losslessly(tmp_path: Path) -> None:
    plan, texts, measurements = tmp_path / "plan.yaml", tmp_path / "out.jsonl", tmp_path / "measurements.jsonl"
    made = call(*PLAN, "-o", str(plan), "--json")
    assert made.exit_code == 0
    printed = json.loads(made.stdout)
    assert yaml.safe_load(plan.read_text()) | {"candidates": printed["candidates"]} == printed
    assert parse_plan(made.stdout, where="stdout") == load_plan(plan), "what is printed is a plan file, too"
    speculative = yaml.safe_load(plan.read_text())
    speculative["strategy"] = {"draft_kind": "self", "kv_policy": "streaming_llm", "kv_budget": 24, "gamma": 3, "draft_model": None}
    plan.write_text(yaml.safe_dump(speculative))
    prompts = "import os\ndef first(items): return items[0]\n{x for x in range(3)}\n"
    files = ["-o", str(texts), "--measurements", str(measurements)]
    result = call("run", str(plan), "--prompts", "-", "--compare", "--json", *files, text=prompts)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["outputs_identical"] is True
    assert document["tokens_compared"] == 24
    for key in ("predicted_speedup", "measured_speedup", "acceptance_rate", "mean_acceptance_length", "strategy"):
        assert document[key] is not None
    assert [json.loads(line)["id"] for line in texts.read_text().splitlines()] == ["1", "2", "3"]
    assert json.loads(measurements.read_text())["strategy"].items() >= speculative["strategy"].items()


def test_run_prints_texts_and_takes_json_prompts(tmp_path: Path) -> None:
    plan, prompts = tmp_path / "plan.yaml", tmp_path / "prompts.jsonl"
    call(*PLAN, "-o", str(plan))
    prompts.write_text('{"id": "a", "prompt": "import sys"}\n{"prompt": "class Reader:"}\n')
    result = call("run", str(plan), "--prompts", str(prompts), "--max-new-tokens", "4")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["id"] for record in records] == ["a", "2"]
    assert all(record["num_tokens"] == 4 for record in records)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("gamma: 3", "gamma: 0"), "strategy.gamma"),
        (("kv_budget: 24", "kv_budget: 0"), "strategy.kv_budget"),
        (("batch_size: 2", "batch_size: 0"), "workload.batch_size"),
        (("batch_size: 2", "batch_size: '2'"), "workload.batch_size"),
        (("schema_version: 1", "schema_version: 9"), "schema_version"),
        (("gamma: 3", "gamma: 3\n  colour: green"), "strategy.colour"),
        (("gamma: 3", "gamma: 3\n  gamma: 4"), "given twice"),
        (("fingerprint:", "fingerprint: '0000' #"), "the planned target reference"),
        (("workload:", "workload"), "in YAML"),
    ],
)
def test_a_bad_plan_is_refused_by_key(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    plan = tmp_path / "plan.yaml"
    call(*PLAN, "-o", str(plan))
    document = yaml.safe_load(plan.read_text())
    document["strategy"] = {"draft_kind": "self", "kv_policy": "streaming_llm", "kv_budget": 24, "gamma": 3, "draft_model": None}
    text = yaml.safe_dump(document, sort_keys=False)
    assert change[0] in text
    plan.write_text(text.replace(*change, 1))
    assert expected in refused("run", str(plan), "--prompts", "-", text="import os\n")


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    call(
        "plan",
        *"--model tinyllama-1.1b --hardware l4 --batch-size 1 --context-len 64 --acceptance-rate 0.9".split(),
        "-o",
        str(plan),
    )
    message = refused("run", str(plan), "--prompts", "-", "--model-dir", str(reference_model_dir()), text="import os\n")
    assert "the planned target TinyLlama-1.1B" in message
    assert "--model-dir" in refused("run", str(plan), "--prompts", "-", text="import os\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "one prompt a line"),
        ("\n  \n", "one prompt a line"),
        ('{"id": 1}\n', "line 1: prompt: expected a text"),
        ('{"prompt": "x"}\nnot json\n', "line 2: expected a prompt as JSON"),
        ("word " * 12000, "positions"),
    ],
)
def test_bad_prompts_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    plan, prompts = tmp_path / "plan.yaml", tmp_path / "prompts.txt"
    call(*PLAN, "-o", str(plan))
    prompts.write_text(text)
    message = refused("run", str(plan), "--prompts", str(prompts))
    assert expected in message
    assert str(prompts) in message
    assert "No such file" in refused("run", str(plan), "--prompts", str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("options", "policy", "kv_dtype", "points"),
    [
        ([], "streaming_llm", None, 4),
        pytest.param(["--kv-policy", "topk"], "topk", None, 4, marks=pytest.mark.slow),
        pytest.param(["--kv-dtype", "int4"], "full", "int4", 2, marks=pytest.mark.slow),
    ],
)
def test_acceptance_writes_a_curve_that_planning_reads_and_that_names_what_the_draft_read(
    tmp_path: Path, options: list[str], policy: str, kv_dtype: str | None, points: int
) -> None:
    file = tmp_path / "acceptance.yaml"
    result = call("acceptance", *options, *SIZES, "-o", file, "--json")
    assert result.exit_code == 0, result.output
    (curve,) = parse_curves(file.read_text(), where="test")
    assert (curve.kv_policy, curve.kv_dtype, len(curve.points)) == (policy, kv_dtype, points)
    assert all(0 <= rate <= 1 for _, _, rate in curve.points)


def test_acceptance_of_a_draft_that_is_two_or_none_is_refused() -> None:
    assert "--kv-dtype" in refused("acceptance", "--kv-policy", "topk", "--kv-dtype", "int8", *SIZES)
    assert "--kv-policy" in refused("acceptance", "--kv-policy", "full", *SIZES)


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan, measurements = tmp_path / "plan.yaml", tmp_path / "file" / "m.jsonl"
    call(*PLAN, "-o", str(plan))
    arguments = ["run", str(plan), "--prompts", "-", "--max-new-tokens", "1", "--json", "--measurements", str(measurements)]
    assert str(measurements) in refused(*arguments, text="import os\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    call(*PLAN, "-o", str(plan))
    assert "--device" in refused("run", str(plan), "--prompts", "-", "--device", "cuda", text="import os\n")
