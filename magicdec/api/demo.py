"""The main job on the shipped model: predict, plan, run on real text, compare with autoregressive decoding.

The plan is made from rounds timed just before. The prediction that is shown beside the measurement is for the same strategy, from
rounds of a random model timed before, between and after the turns of the comparison. Nothing that the compared runs measure
enters it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tokenizers import Tokenizer

from magicdec.costmodel.base.json_text import json_line
from magicdec.costmodel.base.units import format_rate, format_seconds
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.plans.measurement import render_measurement
from magicdec.costmodel.plans.plan import Plan, PredictedRound, render_plan
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.settings import GenerationSettings

from ..files.completions import Completion
from ..files.writing import write_text
from ..inputs.checks import whole_number
from ..inputs.cpu_profile import CPU
from ..inputs.names import REFERENCE, find_hardware
from ..inputs.plan_search import PlanSearch
from ..inputs.scenario import Scenario, resolve_scenario
from ..render.progress import Reporter
from ..render.tables import text_table
from ..results.run import RunResult
from ..running.checkpoints import load_models, tokenize_text
from ..running.execution import Job, execute
from ..running.machine_speed import MachineSpeed
from .plan import make_plan

REPEATS = 5  # turns of both ways of decoding; medians are shown
LOOKS = 4  # at the machine's speed before planning
# The policy whose acceptance was measured on the reference model. Without stop tokens every output has its full length; acceptance
# and times are measured on this very model and machine, so what is expected is what to choose by.
SEARCH = PlanSearch(kv_policies=("streaming_llm",), exact_output=True, cautious=False)
OVERVIEW = ((1, 1024), (1, 8192), (4, 8192), (16, 1024), (16, 8192))  # batch size, context
FOLDER = "magicdec-demo"

Say = Callable[[str], None]


def demo(
    *,
    batch_size: int = 16,
    context_len: int = 8192,
    max_new_tokens: int = 64,
    folder: str | Path = FOLDER,
    remeasure: bool = False,
    say: Say = print,
) -> RunResult:
    """Predict, plan, run and compare on the shipped model, this machine and real text.

    Args:
        batch_size: Sequences.
        context_len: Longest prompt. [tokens]
        max_new_tokens: New tokens per sequence. [tokens]
        folder: Where the plan, the completions and the measurement go.
        remeasure: Measure this machine's profile again instead of using the stored one.
        say: Receives what is to be told on the way.

    Raises:
        InputError: The folder cannot be written, or memory does not suffice.
    """
    workload = Workload(
        whole_number("batch_size", batch_size),
        whole_number("context_len", context_len),
        whole_number("max_new_tokens", max_new_tokens),
    )
    with Reporter(say) as reporter:
        return _demo(workload, Path(folder), reporter, remeasure=remeasure)


def _demo(workload: Workload, folder: Path, reporter: Reporter, *, remeasure: bool) -> RunResult:
    with reporter.bar(0, "looking up this machine", "step"):
        find_hardware(CPU, remeasure=remeasure, progress=reporter.say, bar=reporter.bar)
        usual = resolve_scenario(REFERENCE, CPU)
    with reporter.bar(0, "preparing to time this machine", "step"):
        speed = MachineSpeed(usual.deployment.target, workload, usual.deployment.hardware)
    with reporter.bar(LOOKS * speed.shapes.points, "timing this machine", "measurement") as advance:
        for _ in range(LOOKS):
            speed.look(lambda: advance(1))
    with reporter.bar(0, "planning", "step"):
        scenario = _on(usual, speed.now())
        described = (
            f"this machine: {scenario.deployment.hardware.description}, memory at {format_rate(speed.bytes_per_s[1], 'B/s')}"
        )
        reporter.say(f"{described}\n\npredictions for the reference model here:\n{overview(scenario)}\n")
        best = make_plan(scenario, workload, SEARCH)
        planned = make_plan(scenario, workload, replace(SEARCH, must_speculate=True)).plan
    plan_file = folder / "plan.yaml"
    where = f"batch {workload.batch_size}, context {workload.context_len}"
    reporter.say(f"plan for {where} (in {plan_file}): {best.strategy}")
    notes = []
    if not best.strategy.gamma:
        speedup = f"{planned.prediction.predicted_speedup:.2f}x"
        notes.append(f"the best plan is no speculation; the best speculative strategy, predicted at {speedup}, runs beside it")
        reporter.say(notes[0])
    write_text(str(plan_file), render_plan(planned))
    completions: list[Completion] = []
    with reporter.bar(0, "loading the model and the text", "step"):
        models = load_models(planned, model_dir=None, draft_dir=None, device="cpu")
        requests = real_requests(models.tokenizer, workload.batch_size, workload.context_len)
    speed.focus(planned.strategy)
    execution = execute(
        models,
        requests,
        Job(planned.strategy, workload.batch_size, compare=True, repeats=REPEATS, between=speed.look),
        GenerationSettings(workload.output_len),  # without stop tokens: every sequence has the full length
        completions.append,
        reporter.bar,
    )
    with reporter.bar(0, "predicting for the speed of this minute", "step"):
        restated = restate(planned, scenario, speed)
    low, high = (format_rate(bytes_per_s, "B/s") for bytes_per_s in speed.bytes_per_s)
    notes.append(
        f"predicted for the speed of this machine between the turns of the run (memory at {low} to {high}), at which rounds of a "
        f"random model were timed; the plan, made before, said {planned.prediction.predicted_speedup:.2f}x"
    )
    write_text(str(plan_file), render_plan(restated))
    write_text(str(folder / "output.jsonl"), "".join(json_line(asdict(one)) + "\n" for one in completions))
    write_text(str(folder / "measurements.jsonl"), render_measurement(execution.measurement) + "\n")
    return RunResult(restated, execution.measurement, execution.differences, tuple(completions), notes=tuple(notes))


def _on(scenario: Scenario, hardware: HardwareProfile) -> Scenario:
    """The same model on another state of the machine."""
    return replace(scenario, deployment=replace(scenario.deployment, hardware=hardware))


def restate(planned: Plan, scenario: Scenario, speed: MachineSpeed) -> Plan:
    """The plan's strategy and workload, predicted for the speed that the machine had, with its scatter in the interval."""
    strategy = planned.strategy
    budgets = () if strategy.kv_budget is None else (strategy.kv_budget,)
    search = replace(SEARCH, gammas=(strategy.gamma,), kv_budgets=budgets, must_speculate=True)
    found = make_plan(_on(scenario, speed.now()), planned.workload, search).plan
    scatter = 2 * speed.scatter / math.sqrt(REPEATS)  # twice the standard error of the turns' mean
    return replace(found, prediction=widened(found.prediction, scatter))


def widened(prediction: PredictedRound, scatter: float) -> PredictedRound:
    """A prediction whose interval also covers an independent error of this relative size. [0-1]"""
    speedup = prediction.predicted_speedup
    below, above = (
        math.exp(math.hypot(math.log(end / speedup), scatter))
        for end in (prediction.predicted_speedup_low, prediction.predicted_speedup_high)
    )
    return replace(prediction, predicted_speedup_low=speedup / below, predicted_speedup_high=speedup * above)


def overview(scenario: Scenario) -> str:
    """The best strategy at several batch sizes and contexts, as a table."""
    rows = []
    for batch_size, context_len in OVERVIEW:
        found = make_plan(scenario, Workload(batch_size, context_len, 64), SEARCH)
        predicted = found.prediction
        step, speedup = format_seconds(predicted.predicted_target_step_s), f"{predicted.predicted_speedup:.2f}x"
        rows.append([f"{batch_size} x {context_len}", step, predicted.bound, speedup, str(found.strategy)])
    return text_table(["batch x context", "autoregressive step", "bottleneck", "speedup", "best strategy"], rows)


def real_requests(tokenizer: Tokenizer, batch_size: int, context_len: int) -> list[Request]:
    """Prompts of unequal length, at most `context_len`, cut from text that the reference model was not trained on."""
    _, tokens = tokenize_text(tokenizer, None)
    stride = (len(tokens) - context_len) // max(batch_size - 1, 1)
    shorter = context_len // 64
    return [
        Request(f"held-out {row}", list(tokens[row * stride : row * stride + context_len - row * shorter // batch_size]))
        for row in range(batch_size)
    ]
