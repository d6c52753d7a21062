"""Export to llama.cpp: options of `llama-server`, with their current names (not the removed `--draft` and `--draft-max`).

Source:
    docs/speculative.md and common/arg.cpp of llama.cpp, late 2026.
"""

from __future__ import annotations

from ..plans.plan import Plan
from ..plans.strategy import Strategy
from . import schedule
from .document import Export, Options

TYPES = {"model": "draft-simple", "self": "draft-simple", "eagle3": "draft-eagle3", "mtp": "draft-mtp", "ngram": "ngram-simple"}
KV_TYPES = {None: None, "int8": "q8_0", "int4": "q4_0"}


def supports(strategy: Strategy) -> bool:
    """Everything except sparse KV; a self draft with int8 or int4 KV cache or weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype in KV_TYPES
    return strategy.draft_kind in TYPES


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `llama-server` command."""
    served = schedule.draft_schedule(plan, options, supports)
    target, notes = schedule.target_path(plan, options)
    notes += schedule.column_notes(plan, options)
    gamma, gamma_notes = schedule.one_gamma(served, "llama.cpp")
    notes += gamma_notes
    arguments = ["llama-server", "--model", target]
    if gamma:
        path, path_notes = schedule.draft_path(plan, served.strategy, options)
        flags, flag_notes = _flags(served.strategy, path, gamma)
        arguments += flags
        notes += [*path_notes, *flag_notes, "llama.cpp loads GGUF files."]
        if options.replay_acceptance:
            rate, replay_notes = schedule.replayed(plan, served)
            notes += replay_notes
            if rate is not None:
                arguments += ["--spec-synth-rates", ",".join(map(str, schedule.unconditional_rates(rate, gamma)))]
    else:
        arguments += ["--spec-type", "none"]
        notes.append("No speculation.")
    names = schedule.names_note("llama.cpp's documentation of late 2026", options)
    return Export("llama.cpp", tuple(arguments), notes=(*served.notes, *notes, names))


def _flags(strategy: Strategy, path: str | None, gamma: int) -> tuple[list[str], list[str]]:
    flags = ["--spec-type", TYPES[strategy.draft_kind]]
    if strategy.draft_kind == "ngram":
        note = "The plan does not specify the length of n-gram matches; the default of llama.cpp applies."
        return [*flags, "--spec-ngram-simple-size-m", str(gamma)], [note]
    if path is not None:
        flags += ["--spec-draft-model", path]
    flags += ["--spec-draft-n-max", str(gamma), "--spec-draft-p-min", "0.0"]
    kv_type = KV_TYPES.get(strategy.kv_dtype)
    if kv_type is not None:
        flags += ["--spec-draft-type-k", kv_type, "--spec-draft-type-v", kv_type]
    return flags, ["--spec-draft-p-min 0.0 prevents llama.cpp from shortening drafts with low confidence."]
