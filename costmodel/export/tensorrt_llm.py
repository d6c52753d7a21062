"""A plan for TensorRT-LLM: the YAML file of `trtllm-serve --config`.

The draft length by batch size, `draft_len_schedule`, changed its meaning: up to 1.2 its keys are the least batch sizes, from 1.3
on the most. In both the smallest key must hold the largest draft length, so that a plan which drafts less at the
smallest batches is off at batch size 1, and only there.

Source:
    tensorrt_llm/llmapi/llm_args.py, docs/source/features/speculative-decoding.md.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..base.errors import bad
from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options

CONFIG_FILE = "trtllm.yaml"
DEFAULT_VERSION = "1.3"
UPPER_BOUNDS_SINCE = (1, 3)
DECODING_TYPES = {"model": "Draft_Target", "self": "Draft_Target", "ngram": "NGram", "eagle3": "Eagle3", "mtp": "MTP"}
OLDER_DECODING_TYPES = DECODING_TYPES | {"model": "DraftTarget", "self": "DraftTarget"}
NO_OVERLAP = ("model", "self", "ngram")
# Draft kinds that could not change their draft length before 1.3.
FIXED_BEFORE = ("mtp",)


def supports(strategy: Strategy) -> bool:
    """Everything but self-speculation with sparse or quantised KV; quantised weights run as a second model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in DECODING_TYPES


def export(plan: Plan, options: Options) -> Export:
    """The plan as `trtllm-serve` takes it."""
    served = schedule.draft_schedule(plan, options, supports)
    target, notes = schedule.target_path(plan, options)
    notes += schedule.column_notes(plan, options)
    newer = _newer(options)
    config: dict[str, Any] = {"tensor_parallel_size": plan.hardware.tensor_parallel}
    environment: dict[str, str] = {}
    if served.strategy == NO_SPECULATION:
        notes.append("Plain decoding: TensorRT-LLM needs no speculative_config.")
    else:
        speculative, gamma, config_notes = _speculative(plan, served, options, newer)
        notes += config_notes
        if gamma:
            config["speculative_config"] = speculative
            if served.strategy.draft_kind in NO_OVERLAP:
                config["disable_overlap_scheduler"] = True
        if gamma and options.replay_acceptance:
            environment, replay_notes = _replay(plan, served, gamma, newer)
            notes += replay_notes
    version = options.engine_version or DEFAULT_VERSION
    notes.append(f"Written for TensorRT-LLM {version}; draft_len_schedule meant something else before 1.3: --engine-version.")
    files = {CONFIG_FILE: yaml.safe_dump(config, sort_keys=False)}
    arguments = ("trtllm-serve", target, "--config", CONFIG_FILE)
    return Export("tensorrt-llm", arguments, files, environment, notes=(*served.notes, *notes))


def _newer(options: Options) -> bool:
    version = options.engine_version or DEFAULT_VERSION
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if match is None:
        raise bad("--engine-version", "", "a version such as 1.3.0", repr(version))
    return (int(match[1]), int(match[2])) >= UPPER_BOUNDS_SINCE


def _speculative(
    plan: Plan, served: schedule.DraftSchedule, options: Options, newer: bool
) -> tuple[dict[str, Any], int, list[str]]:
    """The speculative_config, the draft length at the plan's batch size (or the largest), and what is lost."""
    strategy = served.strategy
    path, notes = schedule.draft_path(plan, strategy, options)
    config: dict[str, Any] = {"decoding_type": (DECODING_TYPES if newer else OLDER_DECODING_TYPES)[strategy.draft_kind]}
    gamma = served.max_gamma
    bounds: dict[str, Any] = {}
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
        notes.append("TensorRT-LLM spells the decoding type Draft_Target in its source, DraftTarget in older documentation.")
    if strategy.draft_kind == "mtp":
        notes.append("The checkpoint's number of MTP layers bounds the draft length of some models.")
    return config | bounds, served.gamma(served.batch_size) or gamma, notes


def _bounds(served: schedule.DraftSchedule, newer: bool) -> tuple[dict[str, Any], list[str]]:
    """Draft lengths by batch size: `max_concurrency` where it is on and then off, else a schedule."""
    rows, largest, notes = list(served.rows), served.max_gamma, []
    if len(rows) == 2 and rows[1][2] == 0:
        return {"max_concurrency": rows[0][1]}, []
    if rows[0][2] != largest:
        notes.append(
            f"TensorRT-LLM drafts most at the smallest batch sizes: at batch 1 it drafts {largest}, planned is {rows[0][2]}."
        )
        _, most, gamma = rows.pop(0)
        rows = [(1, 1, largest), *([(2, most, gamma)] if most > 1 else []), *rows]
    if not newer:
        return {"draft_len_schedule": {least: gamma for least, _, gamma in rows}}, notes
    end, last = rows[-1][1:]
    if last:
        notes.append(f"Above batch {end}, where the plan's table ends, TensorRT-LLM decodes plainly.")
    return {"draft_len_schedule": {most: gamma for _, most, gamma in rows}}, notes


def _replay(plan: Plan, served: schedule.DraftSchedule, gamma: int, newer: bool) -> tuple[dict[str, str], list[str]]:
    rate, notes = schedule.replayed(plan, served)
    if rate is None:
        return {}, notes
    accepted = schedule.replayed_length(rate, gamma) - 1  # the bonus token is not counted
    if served.varies:
        notes.append(f"The forced number of accepted tokens is that of gamma {gamma}, whatever the draft length.")
    if not newer:
        notes.append(f"Before 1.3 the number of accepted tokens is whole: {accepted:.4g} becomes {round(accepted)}.")
    value = f"{accepted:.4g}" if newer else str(round(accepted))
    return {"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS": value}, notes
