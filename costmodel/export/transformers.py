"""Export to Hugging Face transformers: assisted generation, as keyword arguments and a script.

Source:
    transformers 5.23, generation/configuration_utils.py, candidate_generator.py and utils.py; docs assisted_decoding.md.
"""

from __future__ import annotations

from dataclasses import replace

from ..base.json_types import JsonObject
from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options
from .served import served_as
from .target import Target, TypeWords, target_of

SCRIPT, PROMPTS = "generate.py", "prompts.txt"
# generate() supports drafting only at batch size 1 (transformers issues 29769 and 32165).
BATCH_SIZE = 1
WORDS = TypeWords(
    "transformers",
    {
        "fp8": "FineGrainedFP8Config()",
        "int8": "BitsAndBytesConfig(load_in_8bit=True)",
        "int4": "BitsAndBytesConfig(load_in_4bit=True)",
    },
    {},
)
MAX_MATCHING_NGRAM_SIZE = 5


def supports(strategy: Strategy) -> bool:
    """Draft models, prompt lookup and MTP layers; a self draft with quantised weights runs as an assistant model."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in ("model", "ngram", "mtp")


def export(plan: Plan, options: Options) -> Export:
    """Convert a plan to a Python script that calls `generate`."""
    served = schedule.draft_schedule(plan, options, supports, batch_size=BATCH_SIZE)
    target = target_of(plan, options, WORDS)
    notes = [*target.notes, *schedule.column_notes(plan, options)]
    gamma, gamma_notes = schedule.one_gamma(served, "generate()")
    notes += gamma_notes
    strategy = served.strategy if gamma else NO_SPECULATION
    path, path_notes = schedule.draft_path(plan, strategy, options, target.checkpoint)
    notes += path_notes
    python, setting = _keywords(strategy, gamma)
    notes += setting
    loud = []
    if strategy != NO_SPECULATION and plan.workload.batch_size > BATCH_SIZE:
        loud.append(
            f"ATTENTION: transformers supports drafting only at batch size 1 and raises ValueError otherwise. The planned batch "
            f"size is {plan.workload.batch_size}, so the predicted speedup cannot be reached."
        )
    if strategy == NO_SPECULATION:
        notes.append("No speculation: generate() needs no arguments.")
    elif options.replay_acceptance:
        notes.append("Acceptance is not simulated: transformers does not support it.")
    names = schedule.names_note("transformers 5.23", options)
    runs = served_as(plan, served, gamma, target, options)
    batch_size = BATCH_SIZE if gamma else schedule.server_batch_size(plan)
    runs = replace(
        runs,
        batch_size=batch_size * runs.replicas,
        draft_tensor_parallel=1 if runs.strategy.draft_kind == "model" or runs.copies_target else None,
    )
    files = {SCRIPT: _script(target, path, python, plan, batch_size)}
    gpus = plan.hardware.tensor_parallel
    arguments = (*(("torchrun", "--nproc-per-node", str(gpus)) if gpus > 1 else ("python",)), SCRIPT, PROMPTS)
    notes = [*loud, *served.notes, *notes, names]
    return Export("transformers", arguments, files, python=python, notes=tuple(notes), served=runs, servers=runs.replicas)


def _keywords(strategy: Strategy, gamma: int) -> tuple[JsonObject, list[str]]:
    """Generation options of the assistant if there is one, otherwise of the call to generate(); and notes."""
    if strategy.draft_kind == "none":
        return {}, []
    if strategy.draft_kind == "ngram":
        note = f"The plan does not specify the length of matches; max_matching_ngram_size {MAX_MATCHING_NGRAM_SIZE} is a default."
        return {"prompt_lookup_num_tokens": gamma, "max_matching_ngram_size": MAX_MATCHING_NGRAM_SIZE}, [note]
    if strategy.draft_kind == "mtp":
        return {"use_mtp": True}, [f"The MTP layers of the model determine the draft length; gamma {gamma} cannot be set."]
    arguments: JsonObject = {
        "num_assistant_tokens": gamma,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    return arguments, ["generate() reads these options from assistant.generation_config, which the script sets."]


def _script(target: Target, assistant: str | None, python: JsonObject, plan: Plan, batch_size: int) -> str:
    """Python script that generates with the exported options: a prompt a line, so many at a time."""
    imports = ["AutoModelForCausalLM", "AutoTokenizer"]
    placed = 'tp_plan="auto"' if plan.hardware.tensor_parallel > 1 else 'device_map="auto"'
    loading = ['dtype="auto"', placed]
    if target.convert is not None:
        imports.append(target.convert.partition("(")[0])
        loading.append(f"quantization_config={target.convert}")
    lines = [
        "import os",
        "import sys",
        "",
        f"from transformers import {', '.join(sorted(imports))}",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({target.checkpoint!r}, padding_side='left')",
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token",
        f"model = AutoModelForCausalLM.from_pretrained({target.checkpoint!r}, {', '.join(loading)})",
    ]
    arguments = [f"{name}={value!r}" for name, value in python.items()]
    if assistant is not None:
        lines.append(f'assistant = AutoModelForCausalLM.from_pretrained({assistant!r}, dtype="auto", device_map="auto")')
        lines.append(f"assistant.generation_config.update({', '.join(arguments)})")
        arguments = ["assistant_model=assistant"]
    lines += [
        "prompts = [line.rstrip() for line in open(sys.argv[1], encoding='utf-8') if line.strip()]",
        f"for first in range(0, len(prompts), {batch_size}):",
        f"    inputs = tokenizer(prompts[first : first + {batch_size}], padding=True, return_tensors='pt').to(model.device)",
        f"    output = model.generate({', '.join(['**inputs', f'max_new_tokens={plan.workload.output_len}', *arguments])})",
        "    if os.environ.get('RANK', '0') == '0':",
        "        print(*tokenizer.batch_decode(output, skip_special_tokens=True), sep='\\n')",
    ]
    return "\n".join(lines) + "\n"
