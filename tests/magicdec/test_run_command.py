"""`magicdec run` on files of prompts: stop texts, sampling, limits of their own, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from magicdec.cli.group import main

PLAN = "plan --model reference --hardware a100-sxm-80gb --batch-size 2 --context-len 64 --output-len 8".split()


def call(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=text, catch_exceptions=False)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of a self draft for batches of eight."""
    file = tmp_path / "plan.yaml"
    assert call(*PLAN, "-o", str(file)).exit_code == 0
    document = yaml.safe_load(file.read_text())
    document["workload"]["batch_size"] = 8
    document["strategy"] = {"draft_kind": "self", "kv_policy": "snapkv", "kv_budget": 16, "gamma": 3, "draft_model": None}
    file.write_text(yaml.safe_dump(document))
    return file


def records(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of an output file by id, each of which is there once."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def write_prompts(file: Path, count: int) -> None:
    words = ["import os", "def first(items):", "class Reader:", "return self", "for x in range(", "if not value:"]
    texts = [f"{words[i % 6]} # {i}\n{words[i // 6 % 6]}" * (1 + i % 5) for i in range(count)]
    file.write_text("".join(json.dumps({"id": f"p{i}", "prompt": text}) + "\n" for i, text in enumerate(texts)))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_as_if_nothing_had_been(plan: Path, tmp_path: Path) -> None:
    prompts, whole, killed = tmp_path / "prompts.jsonl", tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    write_prompts(prompts, 200)
    command = ["run", str(plan), "--prompts", str(prompts), "--max-new-tokens", "12", "--json", "-o"]
    assert call(*command, str(whole)).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "magicdec", *command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (killed.is_file() and killed.read_bytes().count(b"\n") >= 30):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = killed.read_bytes()
    assert 30 <= before.count(b"\n") < 200
    killed.write_bytes(before + b'{"id": "p199", "te')  # torn, as a power cut may leave it
    result = call(*command, str(killed))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompts_skipped"] == before.count(b"\n")
    assert killed.read_bytes().startswith(before), "what was there is kept as it was"
    assert records(killed) == records(whole)
    assert set(records(killed)) == {f"p{i}" for i in range(200)}
    again = json.loads(call(*command, str(killed)).stdout)
    assert (again["tokens"], again["prompts_skipped"]) == (0, 200)


def test_lines_of_other_settings_are_refused_with_what_to_do(plan: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("import os\n")
    command = ["run", str(plan), "--prompts", str(prompts), "-o", str(out)]
    assert call(*command, "--max-new-tokens", "4").exit_code == 0
    for change in (["--max-new-tokens", "5"], ["--max-new-tokens", "4", "--temperature", "1"], ["--stop", "x"]):
        result = call(*command, *change)
        assert result.exit_code == 2
        assert f"{out}: line 1" in result.stderr
        assert "name another file" in result.stderr
    assert call(*command, "--max-new-tokens", "4").exit_code == 0


def test_stop_texts_end_a_text_before_them(plan: Path, tmp_path: Path) -> None:
    prompts, free, stopped, compared = (tmp_path / name for name in ("p.jsonl", "free.jsonl", "stopped.jsonl", "compared.jsonl"))
    write_prompts(prompts, 6)
    command = ["run", str(plan), "--prompts", str(prompts), "--max-new-tokens", "24", "--json", "-o"]
    call(*command, str(free))
    texts = {name: record["text"] for name, record in records(free).items()}
    stop = next(text[9:12] for text in texts.values() if text[9:12] not in text[:11])
    assert call(*command, str(stopped), "--stop", stop).exit_code == 0
    assert {name: record["text"] for name, record in records(stopped).items()} == {
        name: text.split(stop)[0] for name, text in texts.items()
    }
    assert any(records(stopped)[name]["num_tokens"] < records(free)[name]["num_tokens"] for name in texts)
    document = json.loads(call(*command, str(compared), "--stop", stop, "--compare").stdout)
    assert document["outputs_identical"] is True
    assert records(compared).keys() == records(stopped).keys()
    assert [records(compared)[name]["text"] for name in texts] == [records(stopped)[name]["text"] for name in texts]


def test_prompts_may_carry_their_own_limits(plan: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"id": "short", "prompt": "import os", "max_new_tokens": 2},
        {"id": "usual", "prompt": "import os"},
        {"id": "own", "prompt": "import os\nimport sys\n" * 9, "kv_budget": 5, "max_new_tokens": 11, "stop": "no such text"},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert call("run", str(plan), "--prompts", str(prompts), "--max-new-tokens", "6", "-o", str(out)).exit_code == 0
    assert {name: record["num_tokens"] for name, record in records(out).items()} == {"short": 2, "usual": 6, "own": 11}


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"prompt": "x", "max_new_tokens": 0}', "max_new_tokens"),
        ('{"prompt": "x", "max_new_tokens": "9"}', "max_new_tokens"),
        ('{"prompt": "x", "kv_budget": true}', "kv_budget"),
        ('{"prompt": "x", "stop": [""]}', "stop"),
        ('{"prompt": "x", "stop": 3}', "stop"),
        ('{"prompt": "x", "id": 1}\n{"prompt": "y", "id": "1"}', "1 twice"),
    ],
)
def test_bad_limits_of_a_prompt_are_refused_by_key(plan: Path, tmp_path: Path, line: str, key: str) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(line + "\n")
    result = call("run", str(plan), "--prompts", str(prompts))
    assert result.exit_code == 2
    assert key in result.stderr
    assert str(prompts) in result.stderr


def test_samples_follow_the_seed_and_are_not_compared(plan: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, 5)
    command = ["run", str(plan), "--prompts", str(prompts), "--temperature", "0.9", "--top-p", "0.95", "--json"]
    texts = {}
    for name, more in {"a": [], "b": [], "other": ["--seed", "7"], "compared": ["--compare"]}.items():
        out = tmp_path / f"{name}.jsonl"
        result = call(*command, "-o", str(out), *more)
        assert result.exit_code == 0, result.output
        texts[name] = {prompt: record["text"] for prompt, record in records(out).items()}
    assert texts["a"] == texts["b"] == texts["compared"] != texts["other"]
    document = json.loads(result.stdout)
    assert document["outputs_identical"] is None
    assert document["tokens_compared"] == 0
    assert document["measured_speedup"] > 0
    assert "samples" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--temperature", "-1"), ("--top-p", "0"), ("--min-p", "2")])
def test_bad_sampling_is_refused_by_option(plan: Path, option: str, value: str) -> None:
    result = call("run", str(plan), "--prompts", "-", "--temperature", "1", option, value, text="import os\n")
    assert result.exit_code == 2
    assert option in result.stderr


def test_an_interrupted_run_says_that_the_same_command_goes_on(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from magicdec.executor import generate as run

    def interrupted(*models: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "decode", interrupted)
    result = call("run", str(plan), "--prompts", "-", "-o", str(tmp_path / "out.jsonl"), text="import os\n")
    assert result.exit_code == 130
    assert "the same command continues" in result.stderr
    assert "Traceback" not in result.output


def test_the_policy_table_of_a_plan_is_heeded(plan: Path, tmp_path: Path) -> None:
    prompts, plain, steered = tmp_path / "prompts.jsonl", tmp_path / "plain.jsonl", tmp_path / "steered.jsonl"
    write_prompts(prompts, 12)
    command = ["run", str(plan), "--prompts", str(prompts), "--json", "--max-new-tokens", "10", "-o"]
    call(*command, str(plain))
    document = yaml.safe_load(plan.read_text())
    none = {"draft_kind": "none", "kv_policy": "full", "kv_budget": None, "gamma": 0, "draft_model": None}
    document["policy"] = {
        "batch_sizes": [3, 8],
        "context_lens": [4096],
        "strategies": [none, {**none, "draft_kind": "ngram", "gamma": 4}],
        "choice": [[0], [1]],
        "predicted_speedup": [[1.0], [1.2]],
        "hysteresis": 0.0,
    }
    plan.write_text(yaml.safe_dump(document))
    result = call(*command, str(steered))
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert records(steered) == records(plain)
    assert len(measured["acceptance_by_position"]) == 4, "the n-gram draft of the table, not the plan's own strategy"
    assert measured["measured_draft_step_s"] is None
    for index, name in enumerate(("one", "other")):
        document["policy"]["strategies"][index] = {**none, "draft_kind": "model", "gamma": 2, "draft_model": name}
    plan.write_text(yaml.safe_dump(document))
    refused = call(*command, str(steered))
    assert refused.exit_code == 2
    assert "one draft model at most" in refused.stderr


@pytest.mark.parametrize("key", ["weight_dtype", "kv_dtype"])
def test_a_plan_of_a_compressed_target_is_refused(plan: Path, key: str, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    document = yaml.safe_load(plan.read_text())
    document["target"][key] = "int8"
    plan.write_text(yaml.safe_dump(document))
    result = call("run", str(plan), "--prompts", str(tmp_path / "prompts.jsonl"))
    assert result.exit_code == 2
    assert f"{plan}: target.{key}" in result.stderr
    assert "int8" in result.stderr
