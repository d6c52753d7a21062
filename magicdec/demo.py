"""The main job on the shipped model: predict, plan, run on real text against plain decoding, compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from magicdec.costmodel.base.units import format_rate, format_seconds
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.plans.measurement import render_measurement
from magicdec.costmodel.plans.plan import render_plan
from magicdec.costmodel.plans.workload import Workload

from . import text
from .api import ask
from .names import CPU, REFERENCE, find_hardware
from .planning import Wishes, make_plan

REPEATS = 3  # plain and speculative decoding take turns; medians are shown
WISHES = Wishes(kv_policies=("streaming_llm",))  # its acceptance was measured on the reference model
OVERVIEW = ((1, 1024), (1, 8192), (4, 8192), (16, 1024), (16, 8192))


def predictions() -> str:
    """The best strategy at several points of the map, as a table."""
    question = ask(REFERENCE, CPU)
    rows = []
    for batch_size, context_len in OVERVIEW:
        plan = make_plan(question, Workload(batch_size, context_len, 64), WISHES)[0]
        step = format_seconds(plan.prediction.predicted_target_step_s)
        best = text.strategy_words(asdict(plan.strategy))
        rows.append(
            [f"{batch_size} x {context_len}", step, plan.prediction.bound, f"{plan.prediction.predicted_speedup:.2f}x", best]
        )
    return text.table(["batch x context", "plain step", "bound", "speedup", "best strategy"], rows)


def real_prompts(tokenizer: Any, batch_size: int, context_len: int) -> list[Any]:
    """Prompts of unequal length, the longest `context_len`, cut from standard library text that the model never saw."""
    from magicdec.executor.engine.request import Request

    from . import running

    _, tokens = running.real_text(tokenizer, None)
    stride = (len(tokens) - context_len) // max(batch_size - 1, 1)
    shorter = context_len // 64
    return [
        Request(f"held-out {row}", tokens[row * stride : row * stride + context_len - row * shorter // batch_size])
        for row in range(batch_size)
    ]


def memory_change(bytes_per_s: float, profiled_bytes_per_s: float) -> str:
    """How memory differs from what it was when the profile was measured; empty if it does not."""
    from magicdec.executor.measuring.cpu_probe import same_memory

    if same_memory(bytes_per_s, profiled_bytes_per_s):
        return ""
    now, then = format_rate(bytes_per_s, "B/s"), format_rate(profiled_bytes_per_s, "B/s")
    return f"memory gives {now} now and gave {then} when the profile was measured"


def fastest_seen(read_bytes_per_s: float, step_bytes_per_s: float, step_s: float, cache_bytes: float) -> float:
    """Of what memory gave after a run and in it: a step that read more than caches hold had its bytes from there. [bytes/s]"""
    from_memory = step_bytes_per_s * step_s > 4 * cache_bytes
    return max(read_bytes_per_s, step_bytes_per_s) if from_memory else read_bytes_per_s


def hardware_as_it_is(*, remeasure: bool, say: Callable[[str], None], read_rate: Callable[[], float]) -> HardwareProfile:
    """This machine's profile, measured anew if it is asked for or if memory is not what it was."""
    hardware = find_hardware(CPU, remeasure=remeasure, progress=say)
    change = memory_change(read_rate(), hardware.peak.memory_bandwidth_bytes_per_s)
    if remeasure or not change:
        return hardware
    say(change)
    return find_hardware(CPU, remeasure=True, progress=say)


def run_demo(
    *, batch_size: int, context_len: int, max_new_tokens: int, folder: Path, remeasure: bool
) -> tuple[dict[str, Any], str]:
    """The whole path; the JSON document and the text for people. Files go to `folder` as they are made."""
    from magicdec.executor.measuring.cpu_probe import read_rate

    from . import running

    def say(words: str) -> None:
        click.echo(words, err=True)

    hardware = hardware_as_it_is(remeasure=remeasure, say=say, read_rate=read_rate)
    say(f"this machine: {hardware.description}\n\nwhat the planner says of the reference model here:\n{predictions()}\n")
    question = ask(REFERENCE, CPU)
    plan = make_plan(question, Workload(batch_size, context_len, max_new_tokens), WISHES)[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(render_plan(plan), encoding="utf-8")
    say(f"plan for batch {batch_size}, context {context_len} (in {folder / 'plan.yaml'}): {plan.strategy}")
    loaded = running.load(plan, model_dir=None, draft_dir=None, device="cpu")
    prompts = real_prompts(loaded.tokenizer, batch_size, context_len)
    texts: list[str] = []
    execution = running.execute(
        loaded,
        plan.strategy,
        prompts,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        compare=True,
        where="demo",
        write=lambda name, words, count: texts.append(json.dumps({"id": name, "text": words, "num_tokens": count})),
        ignore_stops=True,
        repeats=REPEATS,
    )
    (folder / "output.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    document = running.document(execution, plan)
    record = render_measurement(execution.measurement)
    (folder / "measurements.jsonl").write_text(record + "\n", encoding="utf-8")
    plain = document["measured_target_bytes_per_s"], document["measured_target_step_s"]
    seen_bytes_per_s = fastest_seen(read_rate(), *plain, hardware.peak.l2_cache_bytes)
    change = memory_change(seen_bytes_per_s, hardware.peak.memory_bandwidth_bytes_per_s)
    return document, text.comparison_text(document) + (f"\nnote: {change}: times move with it" if change else "")
