"""Export to SGLang: options of `sglang.launch_server`, with an adaptive configuration if the draft length varies.

Source:
    docs/advanced_features/speculative_decoding.md and adaptive_speculative_decoding of SGLang.
"""

from __future__ import annotations

import json

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options

# MTP layers run as EAGLE (alias NEXTN).
ALGORITHMS = {"model": "STANDALONE", "self": "STANDALONE", "ngram": "NGRAM", "eagle3": "EAGLE3", "mtp": "EAGLE"}
ADAPTIVE = ("EAGLE", "EAGLE3")
ADAPTIVE_FILE = "adaptive.json"


def supports(strategy: Strategy) -> bool:
    """Everything except sparse or quantised KV; a self draft with quantised weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in ALGORITHMS


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `sglang.launch_server` command."""
    served = schedule.draft_schedule(plan, options, supports)
    target, notes = schedule.target_path(plan, options)
    notes += schedule.column_notes(plan, options)
    arguments = ["python", "-m", "sglang.launch_server", "--model-path", target, "--tp-size", str(plan.hardware.tensor_parallel)]
    files: dict[str, str] = {}
    environment: dict[str, str] = {}
    gamma, gamma_notes = _gamma(served, options)
    notes += gamma_notes
    if gamma:
        path, path_notes = schedule.draft_path(plan, served.strategy, options)
        notes += path_notes
        arguments += _flags(served.strategy, path, gamma)
        if _adapts(served):
            files[ADAPTIVE_FILE] = json.dumps(_adaptive(served, options), indent=2) + "\n"
            arguments += ["--speculative-adaptive", "--speculative-adaptive-config", ADAPTIVE_FILE]
            notes += schedule.hysteresis_notes(plan, served)
        if served.strategy.draft_kind == "ngram":
            notes.append("SGLang drafts a tree of n-grams; breadth 1 makes it a chain. Its token count includes the root.")
        if options.replay_acceptance:
            environment, replay_notes = _replay(plan, served, gamma)
            notes += replay_notes
    else:
        notes.append("No speculation: SGLang needs no speculative options.")
    names = schedule.names_note("SGLang's documentation of late 2026", options)
    return Export("sglang", tuple(arguments), files, environment, notes=(*served.notes, *notes, names))


def _adapts(served: schedule.DraftSchedule) -> bool:
    return served.varies and ALGORITHMS[served.strategy.draft_kind] in ADAPTIVE


def _gamma(served: schedule.DraftSchedule, options: Options) -> tuple[int, list[str]]:
    """Initial draft length, and notes on what is lost."""
    if served.strategy == NO_SPECULATION:
        return 0, []
    if not _adapts(served):
        return schedule.one_gamma(served, f"SGLang's {ALGORITHMS[served.strategy.draft_kind]}")
    gamma = served.gamma(served.batch_size)
    if all(row_gamma for *_, row_gamma in served.rows):
        return gamma, []
    if options.experimental:
        return gamma or served.max_gamma, ["Draft length 0 works in recent SGLang sources, but is not documented."]
    return max(gamma, 1), [f"Draft length 0 becomes 1, because SGLang does not document 0. The plan: {served.rows_text}."]


def _flags(strategy: Strategy, path: str | None, gamma: int) -> list[str]:
    flags = ["--speculative-algorithm", ALGORITHMS[strategy.draft_kind]]
    if path is not None:
        flags += ["--speculative-draft-model-path", path]
    if strategy.draft_kind == "ngram":
        return [*flags, "--speculative-num-draft-tokens", str(gamma + 1), "--speculative-ngram-max-bfs-breadth", "1"]
    chain = {"num-steps": gamma, "eagle-topk": 1, "num-draft-tokens": gamma + 1}
    return flags + [word for name, value in chain.items() for word in (f"--speculative-{name}", str(value))]


def _adaptive(served: schedule.DraftSchedule, options: Options) -> dict[str, dict[str, list[int]]]:
    """Adaptive configuration by smallest batch size; one candidate each, so that only the batch size changes the length."""
    floor = 0 if options.experimental else 1
    return {str(least): {"candidate_steps": [max(gamma, floor)]} for least, _, gamma in served.rows}


def _replay(plan: Plan, served: schedule.DraftSchedule, gamma: int) -> tuple[dict[str, str], list[str]]:
    rate, notes = schedule.replayed(plan, served)
    if rate is None:
        return {}, notes
    if _adapts(served):
        notes.append(f"The simulated acceptance length is that of gamma {gamma} at all batch sizes.")
    length = str(schedule.replayed_length(rate, gamma))
    return {"SGLANG_SIMULATE_ACC_LEN": length, "SGLANG_SIMULATE_ACC_METHOD": "match-expected"}, notes
