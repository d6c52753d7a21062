"""Planning needs neither torch nor pandas nor matplotlib; what needs one of them says in one sentence how to install it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import magicdec

WHERE = "--model llama-3.1-8b --hardware h100-sxm --num-gpus 8"
PLANNING = """
predict {where} --batch-size 64 --context-len 32k --json
predict --scenarios {folder}/in.csv
plan {where} --batch-size 64 --context-len 32k --sweep --kv-policy streaming_llm -o {folder}/plan.yaml
plan --model reference --hardware l4 --batch-size 1 --context-len 2k
export {folder}/plan.yaml --to vllm-vegas
regimes {where}
calibrate --from-published h100
profiles
models
environment
"""
RUNNING = [
    ("torch", "run", "run plan.yaml --prompts -"),
    ("safetensors", "run", "acceptance"),
    ("tokenizers", "run", "demo --folder {folder}/demo"),
]
RUNNER = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from magicdec.cli.group import main
for line in {commands!r}:
    try:
        main(line.split())
    except SystemExit as end:
        if end.code:
            print("FAILED", line, file=sys.stderr)
            raise
print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}} & {missing!r}))
"""


def without(missing: set[str], *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a process of its own, in which these libraries cannot be imported."""
    code = RUNNER.format(missing=missing, commands=list(commands))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_planning_works_without_them(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("hardware,target,batch_size,context_len\nh100-sxm,llama-3.1-8b,8,32000\n")
    commands = [line.format(folder=tmp_path, where=WHERE) for line in PLANNING.strip().splitlines()]
    done = without({"torch", "pandas", "matplotlib", "safetensors", "tokenizers", "tqdm"}, *commands)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("LOADED")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "extra", "command"),
    [
        ("torch", "run", "calibrate"),
        ("matplotlib", "plot", "report -o {folder}/report"),
        ("pandas", "plot", "report -o {folder}/report"),
        ("matplotlib", "plot", "validate --figure {folder}/figure"),
        *(case for case in RUNNING if case[2].split()[0] in magicdec.__all__),
    ],
)
def test_a_command_that_needs_a_missing_library_names_the_extra(library: str, extra: str, command: str, tmp_path: Path) -> None:
    done = without({library}, command.format(folder=tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    message = next(line for line in done.stderr.splitlines() if line != "loading PyTorch")  # progress of the demo
    assert message == f"error: this needs {library}, which is not installed: pip install 'magicdec[{extra}]'"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_only_a_data_frame_loads_pandas() -> None:
    """In a process that may import everything."""
    code = """
import sys, magicdec
where = {"model": "llama-3.1-8b", "hardware": "h100-sxm", "num_gpus": 8}
found = [
    magicdec.predict(**where, batch_size=[1, 64], context_len=32000),
    magicdec.plan(**where, batch_size=64, context_len=32000, sweep=True),
    magicdec.regimes(**where),
    magicdec.profiles(),
    magicdec.models(),
]
for one in found:
    str(one), repr(one), one._repr_html_(), one.to_dict(), one.rows()
assert not {"torch", "pandas", "matplotlib"} & set(sys.modules)
found[0].to_dataframe()
assert "pandas" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
