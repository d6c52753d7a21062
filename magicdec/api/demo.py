"""The main job on the shipped model: predict, plan, run on real text, compare with autoregressive decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from magicdec.costmodel.base.json_text import json_line
from magicdec.costmodel.base.units import format_rate, format_seconds
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.plans.measurement import render_measurement
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.engine.request import Request
from magicdec.executor.engine.settings import GenerationSettings
from magicdec.executor.measuring.cpu_probe import read_rate, same_memory

from ..files.completions import Completion
from ..files.writing import write_text
from ..inputs.checks import whole_number
from ..inputs.cpu_profile import CPU
from ..inputs.names import REFERENCE, find_hardware
from ..inputs.plan_search import PlanSearch
from ..inputs.scenario import Scenario, resolve_scenario
from ..render.tables import text_table
from ..results.run import RunResult
from ..running.checkpoints import load_models, tokenize_text
from ..running.execution import Job, execute
from .plan import make_plan

REPEATS = 3  # turns of both ways of decoding; medians are shown
SEARCH = PlanSearch(kv_policies=("streaming_llm",))  # the policy whose acceptance was measured on the reference model
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
    folder = Path(folder)
    workload = Workload(
        whole_number("batch_size", batch_size),
        whole_number("context_len", context_len),
        whole_number("max_new_tokens", max_new_tokens),
    )
    hardware = current_hardware(remeasure=remeasure, say=say, bytes_per_s=read_rate())
    scenario = resolve_scenario(REFERENCE, CPU)
    say(f"this machine: {hardware.description}\n\npredictions for the reference model here:\n{overview(scenario)}\n")
    planned = make_plan(scenario, workload, SEARCH)
    plan_file = folder / "plan.yaml"
    planned.save(plan_file)
    say(f"plan for batch {workload.batch_size}, context {workload.context_len} (in {plan_file}): {planned.strategy}")
    models = load_models(planned.plan, model_dir=None, draft_dir=None, device="cpu")
    completions: list[Completion] = []
    execution = execute(
        models,
        real_requests(models.tokenizer, workload.batch_size, workload.context_len),
        Job(planned.strategy, workload.batch_size, compare=True, repeats=REPEATS),
        GenerationSettings(workload.output_len),  # without stop tokens: every sequence has the full length
        completions.append,
    )
    measured = execution.measurement
    write_text(str(folder / "output.jsonl"), "".join(json_line(asdict(one)) + "\n" for one in completions))
    write_text(str(folder / "measurements.jsonl"), render_measurement(measured) + "\n")
    seen_bytes_per_s = fastest_seen(
        read_rate(),
        measured.measured_target_bytes_per_s or 0.0,
        measured.measured_target_step_s or 0.0,
        hardware.peak.l2_cache_bytes,
    )
    change = memory_change(seen_bytes_per_s, hardware.peak.memory_bandwidth_bytes_per_s)
    notes = (f"{change}: step times change with it",) if change else ()
    return RunResult(planned.plan, measured, execution.differences, tuple(completions), notes=notes)


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


def current_hardware(*, remeasure: bool, say: Say, bytes_per_s: float) -> HardwareProfile:
    """This machine's profile; measured again if asked for, or if memory reads at another rate now. [bytes/s]"""
    hardware = find_hardware(CPU, remeasure=remeasure, progress=say)
    change = memory_change(bytes_per_s, hardware.peak.memory_bandwidth_bytes_per_s)
    if remeasure or not change:
        return hardware
    say(change)
    return find_hardware(CPU, remeasure=True, progress=say)


def memory_change(bytes_per_s: float, profiled_bytes_per_s: float) -> str:
    """How the memory bandwidth differs from that of the profile; empty if it does not."""
    if same_memory(bytes_per_s, profiled_bytes_per_s):
        return ""
    now, then = format_rate(bytes_per_s, "B/s"), format_rate(profiled_bytes_per_s, "B/s")
    return f"memory bandwidth is {now} now and was {then} when the profile was measured"


def fastest_seen(read_bytes_per_s: float, step_bytes_per_s: float, step_s: float, cache_bytes: float) -> float:
    """The higher of the memory bandwidth after a run and that of its steps. [bytes/s]

    Steps count only if they read far more than the caches hold.
    """
    from_memory = step_bytes_per_s * step_s > 4 * cache_bytes
    return max(read_bytes_per_s, step_bytes_per_s) if from_memory else read_bytes_per_s
