"""Export to SGLang: options of `sglang.launch_server`, with an adaptive configuration if the draft length varies.

Source:
    docs/advanced_features/speculative_decoding.md and adaptive_speculative_decoding of SGLang.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options, Served
from .served import served_as
from .target import Target, TypeWords, target_of

# MTP layers run as EAGLE (alias NEXTN).
ALGORITHMS = {"model": "STANDALONE", "self": "STANDALONE", "ngram": "NGRAM", "eagle3": "EAGLE3", "mtp": "EAGLE"}
ADAPTIVE = ("EAGLE", "EAGLE3")
WORDS = TypeWords("SGLang", {"fp8": "fp8"}, dict.fromkeys(("fp8", "int8", "int4"), ("fp8", "fp8_e4m3")))
STATIC_SHARE = 0.9  # of memory for weights and KV cache; activations and CUDA graphs come on top
ADAPTIVE_FILE = "adaptive.json"


def supports(strategy: Strategy) -> bool:
    """Everything except sparse or quantised KV; a self draft with quantised weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in ALGORITHMS


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `sglang.launch_server` command."""
    served = schedule.draft_schedule(plan, options, supports)
    target = target_of(plan, options, WORDS)
    notes = [*target.notes, *schedule.column_notes(plan, options)]
    files: dict[str, str] = {}
    environment: dict[str, str] = {}
    gamma, gamma_notes = _gamma(served, options)
    notes += gamma_notes
    runs = served_as(plan, served, gamma, target, options)
    arguments = _server(plan, target, runs)
    if gamma:
        path, path_notes = schedule.draft_path(plan, served.strategy, options, target.checkpoint)
        if path is not None:
            runs = replace(runs, draft_kv_dtype=target.kv_dtype, draft_tensor_parallel=runs.tensor_parallel)
            notes += ["The draft's KV cache has the type of the target's."] if target.kv_word else []
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
    return Export("sglang", tuple(arguments), files, environment, notes=(*served.notes, *notes, names), served=runs)


def _server(plan: Plan, target: Target, runs: Served) -> list[str]:
    """The command without its drafts."""
    options: dict[str, str | int | float] = {"model-path": target.checkpoint, "tp-size": runs.tensor_parallel}
    if runs.replicas > 1:
        options["dp-size"] = runs.replicas
    options |= {
        "context-length": runs.max_len,
        "max-running-requests": schedule.server_batch_size(plan),
        "mem-fraction-static": STATIC_SHARE,
    }
    if target.convert is not None:
        options["quantization"] = target.convert
    if target.kv_word is not None:
        options["kv-cache-dtype"] = target.kv_word
    return [
        "python",
        "-m",
        "sglang.launch_server",
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    ]


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
