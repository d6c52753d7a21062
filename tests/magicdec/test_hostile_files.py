"""Files from strangers on the command line: right, or refused in one short message with file and key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import WHERE, call, refused

from magicdec.costmodel.base.errors import MAX_MESSAGE_LENGTH
from magicdec.costmodel.models.catalog import builtin_configs
from magicdec.executor.reference_model import reference_model_dir

POINT = ["--batch-size", 4, "--context-len", 1000]
HUGE = 10**400
Change = Callable[[dict[str, Any]], object]


def message(*arguments: object) -> str:
    found = refused(*arguments)
    assert len(found) <= MAX_MESSAGE_LENGTH + 100
    assert found.replace("\n", "").isprintable()
    return found


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan for the reference model, as the command line writes it."""
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    given = ["--hardware", "h100-sxm", "--batch-size", 2, "--context-len", 64, "--output-len", 4]
    assert call("plan", "--model", "reference", *given, "-o", file).exit_code == 0
    document = yaml.safe_load(file.read_text())
    assert isinstance(document, dict)
    return document


def changed(document: dict[str, Any], change: Change) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    change(copy)
    return copy


PLANS: dict[str, tuple[Change, str]] = {
    "7 GPUs, 8 to a replica": (lambda p: p["hardware"].update(num_gpus=7, tensor_parallel=8), "hardware.tensor_parallel"),
    "an acceptance rate of 17": (lambda p: p["prediction"].update(predicted_acceptance_rate=17), "predicted_acceptance_rate"),
    "99 tokens per round": (lambda p: p["prediction"].update(predicted_mean_acceptance_length=99.0), "mean_acceptance_length"),
    "more tokens per round than drafted": (
        lambda p: (p["strategy"].update(draft_kind="ngram", gamma=1), p["prediction"].update(predicted_mean_acceptance_length=2.5)),
        "predicted_mean_acceptance_length: expected at most gamma + 1 (2), found 2.5",
    ),
    "a negative time": (lambda p: p["prediction"].update(predicted_target_step_s=-1.0), "prediction.predicted_target_step_s"),
    "a step of no time": (lambda p: p["prediction"].update(predicted_speculative_tpot_s=0.0), "predicted_speculative_tpot_s"),
    "an interval beside the speedup": (lambda p: p["prediction"].update(predicted_speedup_low=9.0), "predicted_speedup_low"),
    "a batch of 10^30": (lambda p: p["workload"].update(batch_size=10**30), "workload.batch_size"),
    "10^18 GPUs": (lambda p: p["hardware"].update(num_gpus=10**18), "hardware.num_gpus"),
    "a name of two lines": (lambda p: p["target"].update(name="a\nb"), "target.name"),
    "a part of no pass": (lambda p: p["prediction"]["breakdown"].update(magic={"kv": 1.0}), "prediction.breakdown.magic"),
    "a text of 100,000 characters": (lambda p: p.update(notes=["x" * 100_000]), "notes.0"),
}


@pytest.mark.parametrize(("change", "key"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("command", ["export", "run", "report"])
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, plan: dict[str, Any], change: Change, key: str, command: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(changed(plan, change)))
    more = {"export": ["--to", "vllm"], "run": ["--prompts", file], "report": ["-o", tmp_path / "out"]}[command]
    found = message(command, file, *more)
    assert f"{file}: " in found
    assert key in found


CONFIGS: dict[str, tuple[Change, str]] = {
    "10^400 heads": (
        lambda c: c.update(num_attention_heads=HUGE),
        "num_attention_heads: expected a whole number of at most",
    ),
    "10^18 layers": (lambda c: c.update(num_hidden_layers=10**18), "num_hidden_layers: expected"),
    "a vocabulary of 10^18": (lambda c: c.update(vocab_size=10**18), "vocab_size: expected"),
    "no layers": (lambda c: c.update(num_hidden_layers=0), "num_hidden_layers: expected"),
    "a surrogate": (lambda c: c.update(model_type="\ud800"), "model_type: expected Unicode text"),
    "a norm of infinity": (lambda c: c.update(rms_norm_eps=float("inf")), "rms_norm_eps: expected"),
    "a rope factor of infinity": (
        lambda c: c.update(rope_scaling={"rope_type": "linear", "factor": float("inf")}),
        "rope_scaling.factor: expected",
    ),
}


@pytest.mark.parametrize(("change", "key"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, change: Change, key: str) -> None:
    config = json.loads(builtin_configs()["Llama-3.1-8B"].read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed(config, change)))
    found = message("predict", "--model", file, *WHERE[2:], *POINT)
    assert f"{file}: {key}" in found


PROMPTS = {
    "half a surrogate pair": ('{"prompt": "x\\ud800y"}', "line 1: prompt"),
    "a NUL": ('{"prompt": "x\\u0000y"}', "line 1: prompt"),
    "a NUL in plain text": ("a\0b", "line 1"),
    "an id that is a mapping": ('{"id": {"a": 1}, "prompt": "x"}', "line 1: id"),
    "an id that is null": ('{"id": null, "prompt": "x"}', "line 1: id"),
    "an id that is true": ('{"id": true, "prompt": "x"}', "line 1: id"),
    "an id of 5,000 digits": ('{"id": ' + "9" * 5000 + ', "prompt": "x"}', "line 1: id"),
    "10^30 new tokens": ('{"prompt": "x", "max_new_tokens": ' + str(10**30) + "}", "line 1: max_new_tokens"),
    "2^62 KV entries": ('{"prompt": "x", "kv_budget": ' + str(2**62) + "}", "line 1: kv_budget"),
    "no number of tokens": ('{"prompt": "x", "max_new_tokens": NaN}', "line 1: max_new_tokens"),
    "a stop text of half a pair": ('{"prompt": "x", "stop": "\\udc00"}', "line 1: stop"),
    "a key twice": ('{"prompt": "x", "prompt": "y"}', "line 1"),
    "deep nesting": ('{"id": ' + "[" * 3000 + "]" * 3000 + ', "prompt": "x"}', "line 1"),
}


@pytest.mark.parametrize(("text", "key"), PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_that_cannot_be_tokenized_is_refused(tmp_path: Path, plan: dict[str, Any], text: str, key: str) -> None:
    plan_file, prompts = tmp_path / "plan.yaml", tmp_path / "prompts.jsonl"
    plan_file.write_text(json.dumps(plan))
    prompts.write_text(text)
    assert f"{prompts}: {key}" in message("run", plan_file, "--prompts", prompts)


def test_ids_with_line_separators_stay_on_their_line_and_are_found_again(tmp_path: Path, plan: dict[str, Any]) -> None:
    plan_file, prompts, output = tmp_path / "plan.yaml", tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    plan_file.write_text(json.dumps(plan))
    prompts.write_text("".join(json.dumps({"id": name, "prompt": "def f"}) + "\n" for name in ("a\u2028b", "c\nd", "\x85")))
    arguments = ["run", plan_file, "--prompts", prompts, "--max-new-tokens", 2, "-o", output]
    assert call(*arguments).exit_code == 0
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["a\u2028b", "c\nd", "\x85"]
    assert "all 3 completions" in call(*arguments).stderr


@pytest.mark.parametrize("name", ["$\\frac$", "cost $5 and $6", "<script>alert(1)</script>", "模型 👍", "x" * 1000, "_hidden"])
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    profile = yaml.safe_load(Path("hardware_profiles/l4.yaml").read_text())
    profile["sources_read"] = str(profile["sources_read"])
    file = tmp_path / "profile.yaml"
    file.write_text(json.dumps({**profile, "name": name}, ensure_ascii=False))
    small = ["--batch-sizes", "1,2", "--context-lens", "1000,2000"]
    result = call("report", "--model", "llama-3.1-8b", "--hardware", file, *small, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert page.count("<svg") == page.count("</svg>") > 0


def test_a_plan_for_a_model_that_nobody_knows_names_the_plan(tmp_path: Path, plan: dict[str, Any]) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(changed(plan, lambda p: p["target"].update(name="no-such-model"))))
    assert f"{file}: target.name: expected a built-in name" in message("report", file, "-o", tmp_path / "out")


def test_a_tokenizer_that_panics_is_refused(tmp_path: Path, plan: dict[str, Any]) -> None:
    for file in reference_model_dir().iterdir():
        (tmp_path / file.name).symlink_to(file)
    broken = json.loads((reference_model_dir() / "tokenizer.json").read_text())
    broken["model"]["vocab"] = dict.fromkeys(broken["model"]["vocab"], 2**40)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    plan_file, prompts = tmp_path / "plan.yaml", tmp_path / "prompts.txt"
    plan_file.write_text(json.dumps(plan))
    prompts.write_text("def f\n")
    assert "tokenizer.json: expected a readable tokenizer.json" in message(
        "run", plan_file, "--prompts", prompts, "--model-dir", tmp_path
    )


SCENARIOS = "hardware,target,batch_size,context_len"
ROWS = {
    "a column twice": (f"{SCENARIOS},batch_size\nh100-sxm,llama-3.1-8b,4,1000,9\n", "batch_size: expected every column once"),
    "a cell too many": (f"{SCENARIOS}\nh100-sxm,llama-3.1-8b,4,1000,9\n", "line 2: expected 4 cells"),
    "a cell too few": (f"{SCENARIOS}\nh100-sxm,llama-3.1-8b,4\n", "line 2: expected 4 cells"),
    "a column misspelt": (f"{SCENARIOS},gama\nh100-sxm,llama-3.1-8b,4,1000,9\n", "gama: expected the column gamma"),
    "a NUL": (f"{SCENARIOS}\nh100\0,llama-3.1-8b,4,1000\n", "line 2: expected text, found a NUL"),
    "a line separator": (f"{SCENARIOS},note\nh100-sxm,llama-3.1-8b,4,1000,a\u2028b\n", "line 2: note"),
    "only rows that cannot be": (
        f"{SCENARIOS}\nh100-sxm,{'a' * 300},4,1000\n",
        "found none; the first says: target: expected a built-in name",
    ),
}


@pytest.mark.parametrize(("text", "words"), ROWS.values(), ids=ROWS)
def test_scenarios_that_are_no_table_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "in.csv"
    file.write_text(text, encoding="utf-8")
    result = call("predict", "--scenarios", file, "-o", tmp_path / "out.csv")
    assert result.exit_code == 2
    assert words in result.stderr
    assert str(file) in result.stderr


@pytest.mark.parametrize(
    ("column", "value"), [("gamma", "1e18"), ("acceptance_rate", "1.5"), ("hardware", "x" * 300), ("batch_size", "0")]
)
def test_a_row_that_cannot_be_does_not_stop_the_others(tmp_path: Path, column: str, value: str) -> None:
    good = {
        "hardware": "h100-sxm",
        "target": "llama-3.1-8b",
        "batch_size": "4k",
        "context_len": "32k",
        "gamma": "3",
        "acceptance_rate": "0.8",
    }
    rows = [good, {**good, column: value}, good]
    file = tmp_path / "in.csv"
    file.write_text("\n".join([",".join(good), *(",".join(row.values()) for row in rows)]))
    result = call("predict", "--scenarios", file, "--json")
    assert result.exit_code == 0, result.output
    assert [bool(row["error"]) for row in json.loads(result.stdout)] == [False, True, False]


@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.35])
def test_an_interruption_ends_with_130_wherever_it_comes(wait_s: float) -> None:
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{handler}\nfrom magicdec.cli import main\nprint('up', flush=True)\nmain()"
    arguments = [sys.executable, "-c", code, "plan", *WHERE, "--batch-size", "64", "--context-len", "32k", "--sweep"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in ((130,) if wait_s < 0.3 else (0, 130))
    assert "Traceback" not in errors
