"""Export to TensorRT-LLM: the YAML file of `trtllm-serve --config`.

The keys of `draft_len_schedule` are lower bounds of the batch size up to version 1.2, and upper bounds from 1.3 on. The smallest
key must have the largest draft length. A plan with a shorter draft at small batch sizes is therefore wrong at batch size 1 only.

Source:
    tensorrt_llm/llmapi/llm_args.py, docs/source/features/speculative-decoding.md.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..base.errors import bad
from ..base.yaml_text import render_yaml
from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options
from .served import MEMORY_SHARE, served_as
from .target import Target, TypeWords, target_of

SpeculativeConfig = dict[str, int | str | dict[int, int]]
KvConfig = dict[str, float | str]
WORDS = TypeWords("TensorRT-LLM", {}, dict.fromkeys(("fp8", "int8", "int4"), ("fp8", "fp8")))
CONFIG_FILE = "trtllm.yaml"
DEFAULT_VERSION = "1.3"
UPPER_BOUNDS_SINCE = (1, 3)
DECODING_TYPES = {"model": "Draft_Target", "self": "Draft_Target", "ngram": "NGram", "eagle3": "Eagle3", "mtp": "MTP"}
OLDER_DECODING_TYPES = DECODING_TYPES | {"model": "DraftTarget", "self": "DraftTarget"}
NO_OVERLAP = ("model", "self", "ngram")
# Draft kinds with a fixed draft length before 1.3.
FIXED_BEFORE = ("mtp",)


def supports(strategy: Strategy) -> bool:
    """Everything except sparse or quantised KV; a self draft with quantised weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in DECODING_TYPES


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `trtllm-serve` command and its configuration file.

    Raises:
        InputError: `engine_version` is not a version number.
    """
    served = schedule.draft_schedule(plan, options, supports)
    target = target_of(plan, options, WORDS)
    notes = [*target.notes, *schedule.column_notes(plan, options)]
    newer = _newer(options)
    runs = served_as(plan, served, 0, target, options)
    config: dict[str, int | SpeculativeConfig | KvConfig] = {
        "tensor_parallel_size": plan.hardware.tensor_parallel,
        "max_batch_size": schedule.server_batch_size(plan),
        "max_seq_len": runs.max_len,
        "kv_cache_config": {"free_gpu_memory_fraction": MEMORY_SHARE} | ({"dtype": target.kv_word} if target.kv_word else {}),
    }
    environment: dict[str, str] = {}
    if served.strategy == NO_SPECULATION:
        notes.append("No speculation: TensorRT-LLM needs no speculative_config.")
    else:
        speculative, gamma, config_notes = _speculative(plan, served, options, newer, target)
        notes += config_notes
        if gamma:
            runs = served_as(plan, served, gamma, target, options)
            if served.strategy.draft_kind not in ("ngram", "mtp"):
                runs = replace(runs, draft_kv_dtype=target.kv_dtype, draft_tensor_parallel=runs.tensor_parallel)
                notes += ["The draft's KV cache has the type of the target's."] if target.kv_word else []
            config["speculative_config"] = speculative
            if served.strategy.draft_kind in NO_OVERLAP:
                config["disable_overlap_scheduler"] = True
        if gamma and options.replay_acceptance:
            environment, replay_notes = _replay(plan, served, gamma, newer)
            notes += replay_notes
    version = options.engine_version or DEFAULT_VERSION
    notes.append(f"For TensorRT-LLM {version}. Set `engine_version` for others: draft_len_schedule changed its meaning in 1.3.")
    files = {CONFIG_FILE: render_yaml(config)}
    arguments = ("trtllm-serve", target.checkpoint, "--config", CONFIG_FILE)
    port = ("--port", 8000)
    notes = [*served.notes, *notes]
    return Export("tensorrt-llm", arguments, files, environment, notes=tuple(notes), served=runs, servers=runs.replicas, port=port)


def _newer(options: Options) -> bool:
    version = options.engine_version or DEFAULT_VERSION
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if match is None:
        raise bad("engine_version", "", "a version such as 1.3.0", repr(version))
    return (int(match[1]), int(match[2])) >= UPPER_BOUNDS_SINCE


def _speculative(
    plan: Plan, served: schedule.DraftSchedule, options: Options, newer: bool, target: Target
) -> tuple[SpeculativeConfig, int, list[str]]:
    """Return speculative_config, the draft length at the planned batch size (or the largest), and notes on what is lost."""
    strategy = served.strategy
    path, notes = schedule.draft_path(plan, strategy, options, target.checkpoint)
    config: SpeculativeConfig = {"decoding_type": (DECODING_TYPES if newer else OLDER_DECODING_TYPES)[strategy.draft_kind]}
    gamma = served.max_gamma
    bounds: SpeculativeConfig = {}
    if served.varies and strategy.draft_kind in FIXED_BEFORE and not newer:
        gamma, lost = schedule.one_gamma(served, "MTP before 1.3")
        notes += lost
    elif served.varies:
        bounds, lost = _bounds(served, newer)
        notes += [*lost, *schedule.hysteresis_notes(plan, served)]
    config["max_draft_len" if newer or strategy.draft_kind != "mtp" else "num_nextn_predict_layers"] = gamma
    if path is not None:
        config["speculative_model"] = path
    if config["decoding_type"] in ("DraftTarget", "Draft_Target"):
        notes.append("TensorRT-LLM spells the decoding type Draft_Target in its source and DraftTarget in older documentation.")
    if strategy.draft_kind == "mtp":
        notes.append("For some models the number of MTP layers limits the draft length.")
    return config | bounds, served.gamma(served.batch_size) or gamma, notes


def _bounds(served: schedule.DraftSchedule, newer: bool) -> tuple[SpeculativeConfig, list[str]]:
    """Draft lengths by batch size: `max_concurrency` if speculation ends at some batch size, otherwise a schedule."""
    rows, largest, notes = list(served.rows), served.max_gamma, []
    if len(rows) == 2 and rows[1][2] == 0:
        return {"max_concurrency": rows[0][1]}, []
    if rows[0][2] != largest:
        notes.append(f"TensorRT-LLM needs the largest draft length at batch 1: it is {largest} there, not {rows[0][2]} as planned.")
        _, most, gamma = rows.pop(0)
        rows = [(1, 1, largest), *([(2, most, gamma)] if most > 1 else []), *rows]
    if not newer:
        return {"draft_len_schedule": {least: gamma for least, _, gamma in rows}}, notes
    end, last = rows[-1][1:]
    if last:
        notes.append(f"Above batch {end}, the end of the policy table, TensorRT-LLM does not speculate.")
    return {"draft_len_schedule": {most: gamma for _, most, gamma in rows}}, notes


def _replay(plan: Plan, served: schedule.DraftSchedule, gamma: int, newer: bool) -> tuple[dict[str, str], list[str]]:
    rate, notes = schedule.replayed(plan, served)
    if rate is None:
        return {}, notes
    accepted = schedule.replayed_length(rate, gamma) - 1  # excludes the bonus token
    if served.varies:
        notes.append(f"The simulated number of accepted tokens is that of gamma {gamma} at all batch sizes.")
    if not newer:
        notes.append(f"Before 1.3 the simulated number of accepted tokens is whole: {accepted:.4g} becomes {round(accepted)}.")
    value = f"{accepted:.4g}" if newer else str(round(accepted))
    return {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": value}, notes
