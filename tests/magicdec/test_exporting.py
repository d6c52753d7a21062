"""The export command: its text, its JSON, its files, and one clear message for what cannot be exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from command_line import main

from magicdec.costmodel.export.engines import ENGINES

PLAN = (
    "plan --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 64 --context-len 32k --gamma 3 --kv-budget 512".split()
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    assert CliRunner().invoke(main, [*PLAN, "-o", str(path)]).exit_code == 0
    return path


@pytest.fixture
def draft_plan(plan: Path) -> Path:
    document = yaml.safe_load(plan.read_text(encoding="utf-8"))
    changed = {"draft_kind": "eagle3", "kv_policy": "full", "kv_budget": None}
    document["strategy"] |= changed
    plan.write_text(yaml.safe_dump(document), encoding="utf-8")
    return plan


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)], catch_exceptions=False)


def test_the_command_is_on_stdout_and_what_it_loses_on_stderr(plan: Path) -> None:
    result = call(plan, "--to", "vllm-vegas")
    assert result.exit_code == 0
    assert result.stdout.startswith("vllm serve meta-llama/Llama-3.1-8B-Instruct ")
    assert '"sparse_attn_min_tokens": 512' in result.stdout
    assert "note:" not in result.stdout
    assert "note: Its only attention sinks are the 16 tokens of block 0" in result.stderr
    assert "; --model-dir sets its checkpoint" in result.stderr, "options are called by their flags"


def test_json_is_one_document_with_the_notes_in_it(plan: Path) -> None:
    result = call(plan, "--to", "vllm-vegas", "--json")
    document = json.loads(result.stdout)
    assert set(document) == {"engine", "engine_version", "arguments", "files", "environment", "python", "priced", "notes"}
    assert document["arguments"][:2] == ["vllm", "serve"]
    assert document["python"]["speculative_config"]["method"] == "sparse_attn"
    assert document["notes"]


def test_what_an_engine_cannot_run_is_one_message_that_names_one_that_can(plan: Path) -> None:
    result = call(plan, "--to", "vllm")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: --to: expected an engine that supports a draft of the plan (")
    assert "vllm-vegas" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_engine_and_an_unreadable_plan_are_refused(plan: Path) -> None:
    for arguments in (
        (plan, "--to", "tgi"),
        (plan.parent / "gone.yaml", "--to", "vllm"),
        (plan, "--to", "vllm", "--json", "-o", "-"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""


def test_one_file_is_a_script_and_a_folder_gets_the_files(draft_plan: Path, tmp_path: Path) -> None:
    assert call(draft_plan, "--to", "tensorrt-llm", "-o", tmp_path / "new" / "start.sh").exit_code == 0
    script = (tmp_path / "new" / "start.sh").read_text(encoding="utf-8")
    assert script.startswith("#!/usr/bin/env bash\n# ")
    assert "cat > trtllm.yaml <<'END'" in script
    assert call(draft_plan, "--to", "tensorrt-llm", "-o", f"{tmp_path}/folder/").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["start.sh", "trtllm.yaml"]
    config = yaml.safe_load((tmp_path / "folder" / "trtllm.yaml").read_text(encoding="utf-8"))
    assert config["speculative_config"]["max_draft_len"] == 3
    assert "<<" not in (tmp_path / "folder" / "start.sh").read_text(encoding="utf-8")


def test_a_dash_writes_the_script_with_its_notes_to_stdout(draft_plan: Path) -> None:
    result = call(draft_plan, "--to", "sglang", "--draft-dir", "head", "-o", "-")
    assert result.stdout.startswith("#!/usr/bin/env bash\n# ")
    assert result.stdout.count("--speculative-algorithm EAGLE3") == 1


def test_the_replay_uses_the_rate_of_the_plan(draft_plan: Path) -> None:
    rate = yaml.safe_load(draft_plan.read_text(encoding="utf-8"))["prediction"]["predicted_acceptance_rate"]
    document = json.loads(call(draft_plan, "--to", "vllm", "--replay-acceptance", "--json").stdout)
    rates = document["python"]["speculative_config"]["synthetic_acceptance_rates"]
    assert rates == pytest.approx([rate, rate**2, rate**3], abs=1e-5)


def test_help_names_every_engine() -> None:
    words = " ".join(call("--help").stdout.split())
    assert all(engine in words for engine in ENGINES)
