"""How right `magicdec demo` is on this machine: predicted beside measured, chosen beside three rivals, longest silence.

`python benchmarks/demo_accuracy.py` runs ten quick demos and five full ones, every second one while another process reads memory,
and prints a table. `one` makes a single demo and adds it to a file, `rivals` runs those of the first one without, `table` prints
all.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import magicdec.cli.group  # noqa: F401 (sets how threads wait, before torch is loaded)
from magicdec.render.tables import text_table

QUICK_RUNS, FULL_RUNS, TURNS = 10, 5, 6
RUNS = [(True, i % 2 == 1) for i in range(QUICK_RUNS)] + [(False, i % 2 == 1) for i in range(FULL_RUNS)]  # quick, background


@dataclass(frozen=True)
class Run:
    """One demo.

    Attributes:
        quick, background: What was run.
        strategy: What the demo chose.
        predicted, low, high, measured: Speedup, and the interval of the prediction. [ratio]
        plan: The plan file that the demo wrote.
        rivals: Time per token of the chosen strategy over that of each rival; above 1 the rival is faster. [ratio]
        silence_s, seconds: Longest time without output, and time of the whole demo. [s]
    """

    quick: bool
    background: bool
    strategy: str
    predicted: float
    low: float
    high: float
    measured: float
    silence_s: float
    seconds: float
    plan: str
    rivals: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Of the prediction. [ratio]"""
        return self.predicted / self.measured - 1


def read_memory() -> None:
    """Read a gigabyte again and again, with one thread."""
    import numpy as np

    values = np.ones(2**27)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with it, however that ends
        values.sum()


@contextmanager
def background(wanted: bool) -> Iterator[None]:
    """Another process that reads memory meanwhile, if wanted."""
    other = multiprocessing.get_context("spawn").Process(target=read_memory, daemon=True)
    if wanted:
        other.start()
    try:
        yield
    finally:
        if wanted:
            other.kill()
            other.join()


def run_demo(folder: Path, *, quick: bool) -> tuple[dict[str, Any], float, float]:
    """(JSON document, longest silence, time of the whole) of a demo whose output goes to pipes. [s]"""
    command = [sys.executable, "-m", "magicdec", "demo", "--folder", str(folder), "--json", *(["--quick"] if quick else [])]
    started_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: Queue[str] = Queue()
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = process.stderr

    def read() -> None:
        for line in stderr:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    silence_s, last_s = 0.0, started_s
    while process.poll() is None:
        try:
            lines.get(timeout=0.05)
        except Empty:
            continue
        silence_s, last_s = max(silence_s, time.monotonic() - last_s), time.monotonic()
    ended_s = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return json.loads(process.stdout.read()), max(silence_s, ended_s - last_s), ended_s - started_s


def rivals_of(plan_text: str) -> dict[str, float]:
    """Time per token of the planned strategy over that of three rivals, which all take turns on the demo's prompts."""
    from magicdec.api.demo import real_requests
    from magicdec.costmodel.plans.plan import parse_plan
    from magicdec.executor.decode_loop import decode
    from magicdec.executor.drafting.factory import make_policy
    from magicdec.executor.engine.round_log import RoundLog
    from magicdec.executor.engine.settings import GenerationSettings
    from magicdec.executor.generate import make_batch
    from magicdec.running.checkpoints import load_models

    plan = parse_plan(plan_text, where="plan.yaml")
    chosen, workload = plan.strategy, plan.workload
    budget = chosen.kv_budget or 0
    other = budget * 2 if budget < 512 else budget // 2
    contenders = {
        "chosen": chosen,
        f"gamma {max(chosen.gamma - 1, 1)}": replace(chosen, gamma=max(chosen.gamma - 1, 1)),
        f"gamma {chosen.gamma + 1}": replace(chosen, gamma=chosen.gamma + 1),
        f"budget {other}": replace(chosen, kv_budget=other),
    }
    models = load_models(plan, model_dir=None, draft_dir=None, device="cpu")
    requests = real_requests(models.tokenizer, workload.batch_size, workload.context_len)
    widest = max(contenders.values(), key=lambda strategy: strategy.gamma)
    batch = make_batch(models.target, requests, widest, GenerationSettings(workload.output_len))
    batch.prefill()
    tpot_s: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, strategy in contenders.items():
            batch.rewind()
            tpot_s[name].append(RoundLog(list(decode(batch, make_policy(strategy, batch, None)))).tpot_s)
    median_s = {name: statistics.median(times) for name, times in tpot_s.items()}
    return {name: median_s["chosen"] / time_s for name, time_s in median_s.items() if name != "chosen"}


def one_run(*, quick: bool, other: bool) -> Run:
    """One demo, whose rivals have not run yet."""
    with tempfile.TemporaryDirectory() as folder, background(other):
        found, silence_s, seconds = run_demo(Path(folder), quick=quick)
        plan = (Path(folder) / "plan.yaml").read_text(encoding="utf-8")
        chosen = found["strategy"]
        strategy = f"budget {chosen['kv_budget']}, gamma {chosen['gamma']}"
    return Run(
        quick=quick,
        background=other,
        strategy=strategy,
        predicted=found["predicted_speedup"],
        low=found["predicted_speedup_low"],
        high=found["predicted_speedup_high"],
        measured=found["measured_speedup"],
        silence_s=silence_s,
        seconds=seconds,
        plan=plan,
    )


def table(runs: list[Run]) -> str:
    """The runs, and how often each promise was kept."""
    rows = []
    for run in runs:
        rival, ratio = max(run.rivals.items(), key=lambda item: item[1], default=("", math.nan))
        rows.append(
            [
                "quick" if run.quick else "full",
                "yes" if run.background else "no",
                run.strategy,
                f"{run.predicted:.2f} ({run.low:.2f} to {run.high:.2f})",
                f"{run.measured:.2f}",
                f"{run.error:+.0%}",
                f"{rival}: {ratio:.2f}",
                f"{run.silence_s:.1f} s of {run.seconds:.0f} s",
            ]
        )
    count: Callable[[Callable[[Run], bool]], str] = lambda kept: f"{sum(map(kept, runs))} of {len(runs)}"  # noqa: E731
    heads = ["demo", "other load", "strategy", "predicted", "measured", "error", "best rival", "longest silence"]
    facts = [
        f"within 10 %: {count(lambda run: abs(run.error) <= 0.1)}, within 20 %: {count(lambda run: abs(run.error) <= 0.2)}",
        f"in the interval: {count(lambda run: run.low <= run.measured <= run.high)}",
        f"no rival more than 5 % faster: {count(lambda run: max(run.rivals.values(), default=math.nan) <= 1.05)}",
    ]
    return "\n".join([text_table(heads, rows), "", *facts])


def load(file: str) -> list[Run]:
    """The runs of a file; none if there is no such file."""
    lines = Path(file).read_text(encoding="utf-8").splitlines() if Path(file).is_file() else []
    return [Run(**json.loads(line)) for line in lines]


def save(runs: list[Run], file: str) -> None:
    """Keep runs, a line each."""
    Path(file).write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs), encoding="utf-8")


def run_rivals(file: str) -> None:
    """Run the rivals of the first demo of a file that has none yet."""
    runs = load(file)
    number, run = next((number, run) for number, run in enumerate(runs) if not run.rivals)
    with background(run.background):
        save([*runs[:number], replace(run, rivals=rivals_of(run.plan)), *runs[number + 1 :]], file)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "one", "rivals", "table"), default="all")
    parser.add_argument("--quick", action="store_true", help="one: the quick demo")
    parser.add_argument("--background", action="store_true", help="one: while another process reads memory")
    parser.add_argument("--file", default="demo_accuracy.jsonl", help="where runs are kept, a line each")
    given = parser.parse_args()
    for quick, other in {"all": RUNS, "one": [(given.quick, given.background)]}.get(given.what, []):
        save([*load(given.file), one_run(quick=quick, other=other)], given.file)
        if given.what == "all":
            run_rivals(given.file)
    if given.what == "rivals":
        run_rivals(given.file)
    print(table(load(given.file)))


if __name__ == "__main__":
    main()
