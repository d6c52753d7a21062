"""Export to vLLM: `vllm serve --speculative-config`, with draft length by batch size and synthetic acceptance.

Source:
    vllm/config/speculative.py at commit 002e77c1, docs/features/speculative_decoding; for the context axis vLLM PR 48944 (open).
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..base.json_types import JsonObject
from ..plans.plan import Plan
from ..plans.strategy import Strategy
from . import schedule
from .document import Export, Options, Served
from .served import MEMORY_SHARE, served_as
from .target import Target, TypeWords, target_of

METHODS = {"model": "draft_model", "self": "draft_model", "ngram": "ngram", "eagle3": "eagle3", "mtp": "mtp"}
KV_CACHE_DTYPES = {None: None, "fp8": "fp8"}
WORDS = TypeWords("vLLM", {"fp8": "fp8"}, dict.fromkeys(("fp8", "int8", "int4"), ("fp8", "fp8")))
PROMPT_LOOKUP = {"prompt_lookup_min": 2, "prompt_lookup_max": 5}
SCHEDULE = "num_speculative_tokens_per_batch_size"
# Methods for which the documentation calls the schedule tested.
SCHEDULE_TESTED = ("eagle3",)


def supports(strategy: Strategy) -> bool:
    """Everything except sparse KV; a self draft with an fp8 KV cache or quantised weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype in KV_CACHE_DTYPES
    return strategy.draft_kind in METHODS


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `vllm serve` command."""
    served = schedule.draft_schedule(plan, options, supports, every_context=options.experimental)
    target = target_of(plan, options, WORDS)
    config, notes = _config(plan, served, options, target)
    runs = served_as(plan, served, served.gamma(served.batch_size) if config else 0, target, options)
    if runs.strategy.draft_kind == "model" or runs.copies_target:
        runs = replace(runs, draft_tensor_parallel=plan.hardware.tensor_parallel)
    one_rank = SCHEDULE in config  # a schedule needs a single data-parallel rank
    python = serve_options(plan, target, runs, data_parallel=not one_rank)
    if config:
        python["speculative_config"] = config
    names = schedule.names_note("vLLM main at commit 002e77c1", options)
    notes = [*served.notes, *target.notes, *notes, names]
    servers = runs.replicas if one_rank else 1
    return Export("vllm", command(python), python=python, notes=tuple(notes), served=runs, servers=servers, port=("--port", 8000))


def serve_options(plan: Plan, target: Target, runs: Served, *, data_parallel: bool) -> JsonObject:
    """Options of a server without its drafts, by their names in Python."""
    found: JsonObject = {"model": target.checkpoint, "tensor_parallel_size": runs.tensor_parallel}
    if data_parallel and runs.replicas > 1:
        found["data_parallel_size"] = runs.replicas
    found |= {
        "max_model_len": runs.max_len,
        "max_num_seqs": schedule.server_batch_size(plan),
        "gpu_memory_utilization": MEMORY_SHARE,
    }
    if target.convert is not None:
        found["quantization"] = target.convert
    if target.kv_word is not None:
        found["kv_cache_dtype"] = target.kv_word
    return found


def command(python: JsonObject) -> tuple[str, ...]:
    """The `vllm serve` command with these options."""
    words = ["vllm", "serve", str(python["model"])]
    for name, value in python.items():
        if name != "model":
            words += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return tuple(words)


def _config(plan: Plan, served: schedule.DraftSchedule, options: Options, target: Target) -> tuple[JsonObject, list[str]]:
    """The speculative config, empty for no speculation; and notes."""
    gamma, rows, notes = _schedule(plan, served, options)
    if not gamma:
        return {}, [*notes, "No speculation: vLLM needs no speculative config."]
    strategy = served.strategy
    path, path_notes = schedule.draft_path(plan, strategy, options, target.checkpoint)
    notes += path_notes
    config: JsonObject = {"method": METHODS[strategy.draft_kind], "num_speculative_tokens": gamma}
    if path is not None:
        config["model"] = path
    if rows:
        config[SCHEDULE] = rows
    if strategy.draft_kind == "ngram":
        config |= PROMPT_LOOKUP
        notes.append("The plan does not specify the length of matches; prompt_lookup_min and prompt_lookup_max are defaults.")
    if strategy.kv_dtype is not None:
        config["kv_cache_dtype"] = KV_CACHE_DTYPES[strategy.kv_dtype]
    elif target.kv_word is not None and path is not None:
        config["kv_cache_dtype"] = "auto"  # otherwise the draft takes the target's type
    if METHODS[strategy.draft_kind] == "draft_model" and plan.hardware.tensor_parallel > 1:
        config["draft_tensor_parallel_size"] = plan.hardware.tensor_parallel
        notes.append("vLLM runs a draft model on one GPU or on all of the target's: here on all.")
    if options.replay_acceptance:
        rate, replay_notes = schedule.replayed(plan, served)
        notes += replay_notes
        if rate is not None:
            config["rejection_sample_method"] = "synthetic"
            config["synthetic_acceptance_rates"] = schedule.unconditional_rates(rate, gamma)
    return config, notes


def _schedule(plan: Plan, served: schedule.DraftSchedule, options: Options) -> tuple[int, list[list[int]], list[str]]:
    """Return the largest draft length, the rows of the schedule (empty for a constant length), and notes on what is lost."""
    if options.experimental and plan.policy is not None:
        rows = _context_schedule(plan, served.strategy)
        note = f"{SCHEDULE} with context columns needs vLLM PR 48944, which is not merged. Cells with another draft get length 0."
        return max(row[-1] for row in rows), rows, [note]
    notes = schedule.column_notes(plan, options)
    if not served.varies:
        return served.max_gamma, [], notes
    notes += schedule.hysteresis_notes(plan, served)
    notes.append(f"{SCHEDULE} needs a single data-parallel rank; with more, vLLM silently uses the largest draft length.")
    if served.strategy.draft_kind not in SCHEDULE_TESTED:
        notes.append(f"vLLM documents {SCHEDULE} as tested only with EAGLE, EAGLE-3 and DFlash.")
    return served.max_gamma, [list(row) for row in served.rows], notes


def _context_schedule(plan: Plan, strategy: Strategy) -> list[list[int]]:
    """[smallest batch, largest batch, shortest context, longest context, gamma] of every cell of the policy table."""
    table = plan.policy
    assert table is not None
    rows = []
    for least, most, batch_size in schedule.server_ranges(table.batch_sizes, schedule.replicas(plan)):
        above = 0
        for context in table.context_lens:
            cell = table.at(batch_size, context)
            rows.append([least, most, above + 1, context, cell.gamma if cell.family == strategy.family else 0])
            above = context
    return rows
