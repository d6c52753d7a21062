"""Export to llama.cpp: options of `llama-server`, with their current names (not the removed `--draft` and `--draft-max`).

Source:
    docs/speculative.md and common/arg.cpp of llama.cpp, late 2026.
"""

from __future__ import annotations

from dataclasses import replace

from ..plans.plan import Plan
from ..plans.strategy import Strategy
from . import schedule
from .document import Export, Options, Served
from .served import served_as
from .target import Target, TypeWords, target_of

TYPES = {"model": "draft-simple", "self": "draft-simple", "eagle3": "draft-eagle3", "mtp": "draft-mtp", "ngram": "ngram-simple"}
# Types of ggml for those of a plan: what the cost model calls the type, and llama.cpp's word.
WEIGHTS = {"fp8": ("q8_0", "Q8_0"), "int8": ("q8_0", "Q8_0"), "int4": ("q4_k", "Q4_K_M")}
WORDS = TypeWords(
    "llama.cpp",
    {},
    {
        "fp8": ("q8_0", "q8_0"),
        "int8": ("q8_0", "q8_0"),
        "int4": ("q4_0", "q4_0"),
        "q8_0": ("q8_0", "q8_0"),
        "q4_0": ("q4_0", "q4_0"),
    },
)
KV_TYPES = {None: None, "int8": "q8_0", "int4": "q4_0"}


def supports(strategy: Strategy) -> bool:
    """Everything except sparse KV; a self draft with int8 or int4 KV cache or weights runs as a separate model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype in KV_TYPES
    return strategy.draft_kind in TYPES


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a `llama-server` command."""
    served = schedule.draft_schedule(plan, options, supports)
    target = _target(plan, options)
    notes = [*target.notes, *schedule.column_notes(plan, options)]
    gamma, gamma_notes = schedule.one_gamma(served, "llama.cpp")
    notes += gamma_notes
    runs = replace(served_as(plan, served, gamma, target, options), allocates_longest=True)
    arguments = _server(plan, target, runs)
    if plan.hardware.tensor_parallel > 1:
        notes.append("llama.cpp calls its tensor parallelism, --split-mode tensor, experimental.")
    if gamma:
        path, path_notes = schedule.draft_path(plan, served.strategy, options, target.checkpoint)
        if path is not None and served.strategy.draft_kind != "eagle3":
            runs = replace(runs, draft_tensor_parallel=runs.tensor_parallel, draft_kv_dtype=KV_TYPES.get(served.strategy.kv_dtype))
        if path is not None and options.draft_dir is None and path != target.checkpoint and not path.startswith("PATH"):
            path = gguf(served.strategy.draft_model or plan.target.name, WEIGHTS.get(served.strategy.weight_dtype or ""))
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
    notes = [*served.notes, *notes, names]
    return Export("llama.cpp", tuple(arguments), notes=tuple(notes), served=runs, servers=runs.replicas, port=("--port", 8080))


def gguf(name: str, weights: tuple[str, str] | None) -> str:
    """Name of the file of a model in GGUF."""
    name = name.rpartition("/")[2]
    return name if name.lower().endswith(".gguf") else f"{name}-{weights[1]}.gguf" if weights else f"{name}.gguf"


def _target(plan: Plan, options: Options) -> Target:
    """The GGUF file of the target, and the types of ggml nearest to the planned ones."""
    found = target_of(plan, options, WORDS)
    wanted = plan.target.weight_dtype
    weights = WEIGHTS[wanted] if wanted else None
    given = options.model_dir or (plan.target.checkpoint if (plan.target.checkpoint or "").lower().endswith(".gguf") else None)
    file = given or gguf(plan.target.name, weights)
    notes = [note for note in found.notes if "KV cache" in note]
    if given is None:
        notes.append(f"{file} stands for the target in GGUF; `model_dir` sets the file.")
    if weights is not None and wanted != weights[0]:
        notes.append(f"llama.cpp has no {wanted} weights: {weights[1]} is meant.")
    return replace(found, checkpoint=file, convert=None, weight_dtype=weights[0] if weights else None, notes=notes)


def _server(plan: Plan, target: Target, runs: Served) -> list[str]:
    """The command without its drafts; llama.cpp divides its context among the sequences."""
    sequences = schedule.server_batch_size(plan)
    arguments = ["llama-server", "--model", target.checkpoint, "--ctx-size", str(sequences * runs.max_len)]
    arguments += ["--parallel", str(sequences), "--n-gpu-layers", "999"]
    if runs.tensor_parallel > 1:
        arguments += ["--split-mode", "tensor"]
    if target.kv_word is not None:
        arguments += ["--cache-type-k", target.kv_word, "--cache-type-v", target.kv_word, "--flash-attn", "on"]
    return arguments


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
