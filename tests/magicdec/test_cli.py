"""Every command: its text, its JSON, its files, and one clear message for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from magicdec.cli import main

PREDICT = "predict --model llama-3.1-8b --hardware a100-sxm-80gb --num-gpus 8 --batch-size 128 --context-len 32k --gamma 2".split()
PLAN = "plan --model reference --hardware a100-sxm-80gb --batch-size 2 --context-len 64 --output-len 8".split()


def call(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=text, catch_exceptions=False)


def refused(*arguments: str, text: str | None = None) -> str:
    """The message of a call that must be refused: exit code 2, nothing on stdout, no traceback."""
    result = call(*arguments, text=text)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_help_explains_every_command(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_predict_prints_breakdown_bound_speedup_and_verdict() -> None:
    result = call(*PREDICT, "--kv-policy", "streaming_llm", "--kv-budget", "512", "--draft", "self", "--tensor-parallel", "8")
    assert result.exit_code == 0
    for word in ("target", "draft", "verify", "communication", "bound             kv", "tokens per round", "Speculate:"):
        assert word in result.stdout


def test_predict_json_is_one_document_with_the_speedup_on_top() -> None:
    result = call(*PREDICT, "--json")
    document = json.loads(result.stdout)
    assert document["predicted_speedup_low"] < document["predicted_speedup"] < document["predicted_speedup_high"]
    assert document["bound"] == "kv"
    parts = document["breakdown"]["target"]
    assert sum(parts.values()) == pytest.approx(document["predicted_target_step_s"])
    assert document["strategy"]["kv_budget"] == 512
    assert "Speculate" in result.stderr


def test_predict_without_a_draft_prices_plain_decoding() -> None:
    document = json.loads(call(*PREDICT[:-2], "--draft", "none", "--json").stdout)
    assert document["predicted_speedup"] == 1.0
    assert document["strategy"]["draft_kind"] == "none"


def test_predict_finds_the_best_gamma_when_none_is_given() -> None:
    best = json.loads(call(*PREDICT[:-2], "--json").stdout)
    fixed = [json.loads(call(*PREDICT[:-1], str(gamma), "--json").stdout)["predicted_speedup"] for gamma in (1, 2, 4, 6, 10)]
    assert best["predicted_speedup"] >= max(fixed)


def test_predict_takes_acceptance_from_the_caller() -> None:
    given = json.loads(call(*PREDICT, "--mean-acceptance-length", "3", "--json").stdout)
    assert given["predicted_mean_acceptance_length"] == 3
    rate = json.loads(call(*PREDICT, "--acceptance-rate", "1", "--json").stdout)
    assert rate["predicted_mean_acceptance_length"] == 3
    assert rate["predicted_speedup"] == given["predicted_speedup"]


def test_predict_writes_the_document_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "prediction.json"
    assert call(*PREDICT, "-o", str(file)).exit_code == 0
    assert json.loads(file.read_text())["bound"] == "kv"


def test_plan_writes_a_plan_that_run_executes_losslessly(tmp_path: Path) -> None:
    plan, texts, measurements = tmp_path / "plan.yaml", tmp_path / "out.jsonl", tmp_path / "measurements.jsonl"
    made = call(*PLAN, "-o", str(plan), "--json")
    assert made.exit_code == 0
    assert yaml.safe_load(plan.read_text()) == json.loads(made.stdout)
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


@pytest.mark.parametrize("command", ["profiles", "models", "environment"])
def test_listings_are_text_and_json(command: str) -> None:
    assert call(command).stdout
    assert json.loads(call(command, "--json").stdout)


def test_report_draws_every_figure_and_a_page(tmp_path: Path) -> None:
    result = call("report", "-o", str(tmp_path / "report"), "--batch-sizes", "1,16,64", "--context-lens", "1k,32k", "--json")
    files = {Path(file).name for file in json.loads(result.stdout)["files"]}
    names = ("time_breakdown", "cost_ratios", "speedup_by_batch", "arithmetic_intensity", "speedup_map")
    assert files == {"index.html", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))}
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<svg") == len(names)
    assert "http-equiv" not in page
    assert 'src="' not in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*PREDICT[:1], "--model", "lama-3.1-8b", *PREDICT[3:]], "Llama-3.1-8B"),
        ([*PREDICT[:3], "--hardware", "h1000-sxm", *PREDICT[5:]], "h100-sxm"),
        ([*PREDICT[:-1], "0"], "--gamma"),
        ([*PREDICT, "--kv-budget", "0"], "--kv-budget"),
        ([*PREDICT[:7], "--batch-size", "0", *PREDICT[9:]], "--batch-size"),
        ([*PREDICT, "--kv-budget", "lots"], "'lots'"),
        ([*PREDICT, "--kv-policy", "best"], "streaming_llm"),
        ([*PREDICT, "--kv-policy", "full"], "sparse"),
        ([*PREDICT, "--draft", "gpt-9"], "gpt-9"),
        ([*PREDICT, "--tensor-parallel", "3"], "--tensor-parallel"),
        ([*PREDICT, "--verify-kernel", "magic"], "shared_kv_splitkv"),
        ([*PREDICT, "--mean-acceptance-length", "4"], "gamma + 1 = 3"),
        ([*PLAN, "--max-tpot", "1us"], "--max-tpot"),
        ([*PLAN, "--max-tpot", "fast"], "'fast'"),
        (["plan", "--model", "llama-3.1-70b", "--hardware", "l4", "--batch-size", "1", "--context-len", "1k"], "memory of one GPU"),
    ],
)
def test_bad_input_is_one_message_that_names_it(arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)


def test_a_bad_profile_file_names_file_key_expected_and_found(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    shipped = (Path(__file__).parents[2] / "hardware_profiles" / "h100-sxm.yaml").read_text()
    profile.write_text(shipped.replace("memory_bytes: 8.0e+10", "memory_bytes: 8e10\n  colour: green"))
    message = refused(*PREDICT[:3], "--hardware", str(profile), *PREDICT[5:])
    assert f"{profile}: peak.memory_bytes: expected a valid number (YAML reads" in message
    assert "found '8e10' (str)" in message
    assert "peak.colour: expected no such key" in message


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
        (("workload:", "workload"), "expected YAML"),
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
    from magicdec.executor.reference_model import reference_model_dir

    message = refused("run", str(plan), "--prompts", "-", "--model-dir", str(reference_model_dir()), text="import os\n")
    assert "the planned target TinyLlama-1.1B" in message
    assert "--model-dir" in refused("run", str(plan), "--prompts", "-", text="import os\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "one prompt a line"),
        ("\n  \n", "one prompt a line"),
        ('{"id": 1}\n', "line 1: prompt: expected a text"),
        ('{"prompt": "x"}\nnot json\n', "line 2: expected a JSON object"),
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


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "a file that can be written" in refused(*PREDICT, "-o", str(tmp_path / "file" / "below.json"))


def test_acceptance_measures_a_curve_that_planning_reads(tmp_path: Path) -> None:
    from magicdec.costmodel.speculation.acceptance import parse_curves

    file = tmp_path / "acceptance.yaml"
    sizes = "--kv-budgets 16,64 --context-lens 128,256 --rows 2 --max-new-tokens 12".split()
    result = call("acceptance", *sizes, "-o", str(file), "--json")
    assert result.exit_code == 0, result.output
    (curve,) = parse_curves(file.read_text(), where="test")
    assert len(curve.points) == 4
    assert all(0 <= rate <= 1 for _, _, rate in curve.points)


@pytest.mark.parametrize(
    ("options", "policy", "kv_dtype", "points"),
    [(["--kv-policy", "topk"], "topk", None, 4), (["--kv-dtype", "int4"], "full", "int4", 2)],
)
def test_acceptance_curves_name_what_the_draft_read(
    tmp_path: Path, options: list[str], policy: str, kv_dtype: str | None, points: int
) -> None:
    from magicdec.costmodel.speculation.acceptance import parse_curves

    file = tmp_path / "acceptance.yaml"
    sizes = "--kv-budgets 16,64 --context-lens 128,256 --rows 2 --max-new-tokens 12".split()
    result = call("acceptance", *options, *sizes, "-o", str(file))
    assert result.exit_code == 0, result.output
    (curve,) = parse_curves(file.read_text(), where="test")
    assert (curve.kv_policy, curve.kv_dtype, len(curve.points)) == (policy, kv_dtype, points)
    assert "not both" in refused("acceptance", "--kv-policy", "topk", "--kv-dtype", "int8", *sizes)
    assert "kv_policy" in refused("acceptance", "--kv-policy", "full", *sizes)


def test_calibrate_fits_a_profile_to_published_step_times(tmp_path: Path) -> None:
    from magicdec.costmodel.hardware.catalog import resolve_profile
    from magicdec.costmodel.hardware.profile_file import load_profile

    file = tmp_path / "mine.yaml"
    result = call("calibrate", "--from-published", "h100", "-o", str(file), "--json")
    (engine,) = [fit for fit in json.loads(result.stdout)["calibration"]["fits"] if fit["part"] == "engine"]
    assert engine["num_points"] == 29
    fitted, shipped = load_profile(file), resolve_profile("h100-sxm")
    assert fitted.calibration.attention == shipped.calibration.attention
    assert fitted.calibration.engine.layer_overhead_s == pytest.approx(shipped.calibration.engine.layer_overhead_s, rel=0.02)
    assert "NVLink" in file.read_text(), "what people wrote in the profile is kept"
    assert "a100-sxm-80gb, h100-sxm, l40" in refused("calibrate", "--from-published", "l4")


def test_predict_says_which_option_is_missing() -> None:
    assert "--model" in refused("predict", "--hardware", "h100")


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
