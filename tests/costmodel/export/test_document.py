"""Exports as shell text: a shell parses them back to the same arguments and files."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from plans import STRATEGIES, plan_of, tables

from magicdec.costmodel.export.document import Export, Options, command_text, comment_text, script_text
from magicdec.costmodel.export.engines import ENGINES, export_plan

EVERY_KIND = [
    (name, kind) for name, engine in ENGINES.items() for kind, strategy in STRATEGIES.items() if engine.supports(strategy)
]


@pytest.mark.parametrize(("engine", "kind"), EVERY_KIND)
def test_a_shell_reads_the_command_as_its_arguments(engine: str, kind: str) -> None:
    export = export_plan(plan_of(STRATEGIES[kind]), engine, Options(replay_acceptance=True))
    words = [word for word in shlex.split(command_text(export)) if word != "\n"]
    assert words == [*(f"{name}={value}" for name, value in export.environment.items()), *export.arguments]
    json.dumps(asdict(export))


def test_a_script_writes_its_files_and_starts_the_program_in_its_environment(tmp_path: Path) -> None:
    export = Export(
        "none", ("env", "--", "sh", "-c", 'echo "$WORD"; cat "a file.txt"'), {"a file.txt": "it's $HOME\n"}, {"WORD": "a b"}
    )
    script = comment_text(Export("none", (), notes=("No 'END' here.",))) + script_text(export)
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "a b\nit's $HOME\n"


def test_files_of_real_exports_survive_the_script(tmp_path: Path) -> None:
    policy = tables("eagle3")["falling"]
    for engine in ("sglang", "tensorrt-llm", "transformers"):
        plan = plan_of(STRATEGIES["eagle3"], policy) if engine != "transformers" else plan_of(STRATEGIES["model"])
        export = export_plan(plan, engine)
        files = script_text(export).removesuffix(command_text(export))
        subprocess.run(["bash", "-euc", files], cwd=tmp_path, check=True)
        assert export.files
        assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in export.files} == export.files


def test_every_engine_runs_autoregressive_decoding_without_speculation() -> None:
    for engine in ENGINES:
        export = export_plan(plan_of(STRATEGIES["none"]), engine)
        assert not any("speculative-config" in word for word in export.arguments)
        assert any(note.startswith("No speculation") for note in export.notes)
