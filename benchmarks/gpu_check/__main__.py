"""Measure a GPU with magicdec's executor: kernels, passes, speculation, tests. Made for ten minutes of a bare machine.

Stages run one after the other, those that matter most first, each in a process of its own with a time limit. Every result is
written at once: a stage that fails or is cut off loses nothing of the others. Clocks, power limits and modes of the GPU are left
as they are.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .setting import Setting

GRACE_S = 20.0  # between the time after which a stage begins nothing new and its end by force
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIN_CAPABILITY = (8, 0)
MIN_MEMORY_BYTES = 40e9


@dataclass(frozen=True)
class Stage:
    """A part of the check.

    Attributes:
        name: What `--stages` calls it.
        limit_s: It begins nothing new after this time. [s]
        module: With a function `run`; None for the tests.
    """

    name: str
    limit_s: float
    module: str | None = None


STAGES = (
    Stage("rates", 40, "rates"),
    Stage("tests", 90),
    Stage("attention", 100, "attention"),
    Stage("speculation", 90, "speculation"),
    Stage("passes", 70, "passes"),
    Stage("transformers", 50, "transformers_steps"),
    Stage("training", 100, "training"),
)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("gpu-check"), help="folder of the results  [default: %(default)s]"
    )
    parser.add_argument("--stages", default=",".join(names), help="which, separated by commas  [default: all]")
    parser.add_argument("--seconds", type=float, default=560, help="for all stages together  [default: %(default)s]")
    parser.add_argument("--rehearse", action="store_true", help="every stage on a CPU, with small shapes: is the script in order?")
    parser.add_argument("--report", metavar="HARDWARE", help="print what --output holds, beside predictions for this profile")
    parser.add_argument("--pack", action="store_true", help="download the wheels that a bare machine lacks into --output")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report:
        from .report import report

        print(report(given.output, given.report))
        return 0
    if given.pack:
        return pack(given.output)
    chosen = given.stages.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--stages: expected some of {', '.join(names)}, found {unknown[0]!r}")
    if not given.rehearse and (missing := unfit()):
        print(f"error: {missing}", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    if given.one:
        run_here(next(stage for stage in STAGES if stage.name == given.one), given.output, given.rehearse, given.seconds)
        return 0
    return run_all([stage for stage in STAGES if stage.name in chosen], given.output, given.rehearse, given.seconds)


def unfit() -> str:
    """Why the check cannot run on this machine; empty if it can."""
    instead = "`magicdec run --device cpu` runs anywhere, and --rehearse tries this script"
    if not torch.cuda.is_available():
        return f"torch finds no GPU here; {instead}"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        found = ".".join(map(str, capability))
        return f"expected a GPU of compute capability 8.0 or later, found {found}; `magicdec run --device cuda` uses torch there"
    free = torch.cuda.mem_get_info()[0]
    if free < MIN_MEMORY_BYTES:
        return f"expected {MIN_MEMORY_BYTES / 1e9:.0f} GB of free GPU memory for Llama-3.1-8B, found {free / 1e9:.1f} GB; {instead}"
    try:
        importlib.import_module("triton")
    except ImportError:
        return "Triton is not installed; `magicdec run --device cuda` uses torch without it"
    return ""


def run_all(stages: list[Stage], folder: Path, rehearse: bool, seconds: float) -> int:
    """Run stages in processes of their own; 1 if one of them failed."""
    end_s, failed = time.monotonic() + seconds, []
    for stage in stages:
        left_s = end_s - time.monotonic() - GRACE_S
        if left_s < 10:
            print(f"{stage.name}: left out, no time", flush=True)
            failed.append(stage.name)
            continue
        limit_s = min(stage.limit_s, left_s) if stage is not stages[-1] else left_s
        started_s = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--one", stage.name, "-o", str(folder), "--seconds", str(limit_s)]
        try:
            code = subprocess.run([*command, *(["--rehearse"] if rehearse else [])], timeout=limit_s + GRACE_S).returncode
            words = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            code, words = 1, "cut off; what it had measured is kept"
        print(f"{stage.name}: {words} after {time.monotonic() - started_s:.0f} s", flush=True)
        if code:
            failed.append(stage.name)
    print("all stages done" if not failed else f"not done: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def run_here(stage: Stage, folder: Path, rehearse: bool, seconds: float) -> None:
    """Run one stage in this process."""
    if stage.module is None:
        marked = "gpu" if not rehearse else "gpu or not slow"
        tests = [] if not rehearse else ["-k", "splits or layout"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *tests]
        command += ["tests/executor/test_gpu_attention.py", *([] if rehearse else ["tests/executor/test_losslessness.py"])]
        with (folder / "tests.txt").open("w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds).returncode
        print((folder / "tests.txt").read_text(encoding="utf-8")[-1500:], flush=True)
        raise SystemExit(code)
    importlib.import_module(f"benchmarks.gpu_check.{stage.module}").run(Setting(folder, rehearse, seconds))


def pack(folder: Path) -> int:
    """Download the wheels for Python 3.12 on x86-64 Linux."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    wheels = [f"{name}{version}" for name, version in ((name, _installed(name)) for name in WHEELS)]
    return subprocess.run([*command, "--implementation", "cp", *platforms, "-d", str(folder), *wheels]).returncode


def _installed(name: str) -> str:
    from importlib.metadata import version

    return f"=={version(name)}"


if __name__ == "__main__":
    sys.exit(main())
