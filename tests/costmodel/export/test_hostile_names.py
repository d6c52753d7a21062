"""No code from a plan: whatever a name says, exported scripts pass it on and do nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from plans import plan_of

from magicdec.costmodel.base.errors import InputError
from magicdec.costmodel.base.names import MAX_NAME_LENGTH, is_name, one_line
from magicdec.costmodel.export.document import Options, comment_text, script_text
from magicdec.costmodel.export.engines import ENGINES, export_plan
from magicdec.costmodel.plans.plan import PlannedModel, load_plan, render_plan
from magicdec.costmodel.plans.strategy import Strategy

# Text that would leave its place in a shell, in Python, in YAML or in a comment. `touch` makes a file that must not be there.
PRINTABLE = (
    "a'; touch broken; '",
    'b"; touch broken; "',
    "$(touch broken)",
    "`touch broken`",
    "x && touch broken",
    "x' + __import__('os').system('touch broken') + '",
    '" + str(open("broken", "w")) + "',
    "END",
    "name: [evil, {a: 1}]",
    "# not a comment",
    "\\",
    "%s{0}{name}",
    "émodèle/模型-7B",
)
UNPRINTABLE = (
    "a\ntouch broken",
    "a\rtouch broken",
    "a\u2028b",
    "a\u2029b",
    "a\x00b",
    "a\x1b[2Jb",
    "a\ud800b",
    "a\u200bb",
    "a\x85b",
)
TOO_LONG_OR_EMPTY = ("", "x" * (MAX_NAME_LENGTH + 1), "--config=/etc/passwd")
STUB = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
"""


def drafts() -> list[Strategy]:
    return [Strategy("model", "full", None, 3, "small"), Strategy("self", "streaming_llm", 256, 3), Strategy("ngram", gamma=3)]


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder with every program that an export may start; each notes its arguments and ends."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for program in ("vllm", "torchrun", "python", "python3", "trtllm-serve", "llama-server", "magicdec"):
        file = folder / program
        file.write_text(STUB.format(python=sys.executable, log=str(tmp_path / "log.jsonl")))
        file.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", PRINTABLE)
def test_an_exported_script_passes_a_hostile_name_on_and_creates_nothing(name: str, stubs: Path, tmp_path: Path) -> None:
    ran = 0
    for engine, entry in ENGINES.items():
        for strategy in filter(entry.supports, drafts()):
            plan = plan_of(strategy)
            plan = replace(plan, target=replace(plan.target, name=name))
            if strategy.draft_model and plan.draft:
                plan = replace(plan, strategy=replace(strategy, draft_model=name), draft=replace(plan.draft, name=name))
            export = export_plan(plan, engine, Options(model_dir=name))
            folder = tmp_path / f"run{ran}"
            folder.mkdir()
            script = "set -eu\n" + comment_text(export) + script_text(export)
            environment = {**os.environ, "PATH": f"{stubs}:/usr/bin:/bin"}
            subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=True, input="", text=True, timeout=30)
            assert {path.name for path in folder.iterdir()} == set(export.files), (engine, strategy)
            for file, text in export.files.items():
                assert (folder / file).read_text() == text
                if file.endswith(".py"):
                    compile(text, file, "exec")
            ran += 1
    calls = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(calls) == ran >= len(ENGINES)
    assert any(name in argument for call in calls for argument in call)


@pytest.mark.parametrize("name", [*UNPRINTABLE, *TOO_LONG_OR_EMPTY])
def test_names_that_are_no_names_are_refused_wherever_they_come_from(name: str, tmp_path: Path) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="printable"):
        PlannedModel(name=name, fingerprint="0" * 16)
    with pytest.raises(InputError, match="printable"):
        Strategy("model", "full", None, 3, name)
    for key in ("engine_version", "model_dir", "draft_dir"):
        with pytest.raises(InputError, match=key):
            Options(**{key: name})  # type: ignore[arg-type]
    file = tmp_path / "plan.yaml"
    text = render_plan(plan_of(Strategy("self", "streaming_llm", 256, 3)))
    hostile = json.dumps(name)
    file.write_text("\n".join(f"  name: {hostile}" if line.startswith("  name: ") else line for line in text.splitlines()))
    with pytest.raises(InputError, match=r"plan\.yaml"):
        load_plan(file)


def test_notes_are_comments_of_one_line_each() -> None:
    export = export_plan(plan_of(Strategy("self", "streaming_llm", 256, 3)), "vllm-vegas", Options())
    noted = replace(export, notes=("first\ntouch broken", "second\u2028touch broken\x00"))
    lines = comment_text(noted).split("\n")
    assert lines == ["# first touch broken", "# second touch broken\N{REPLACEMENT CHARACTER}", ""]
    assert one_line("a\tb\x1bc") == "a b\N{REPLACEMENT CHARACTER}c"


def test_a_file_may_have_the_line_that_ends_a_here_document(tmp_path: Path) -> None:
    export = export_plan(plan_of(Strategy("self", "streaming_llm", 256, 3)), "vllm-vegas", Options())
    text = "a\nEND\ntouch broken\nEND_\n"
    script = script_text(replace(export, arguments=("true",), environment={}, files={"config.txt": text}))
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, timeout=30)
    assert [path.name for path in tmp_path.iterdir()] == ["config.txt"]
    assert (tmp_path / "config.txt").read_text() == text
