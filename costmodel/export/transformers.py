"""A plan for Hugging Face transformers: assisted generation, as keyword arguments and a script that uses them.

Source:
    transformers 5.23, generation/configuration_utils.py, candidate_generator.py and utils.py; docs assisted_decoding.md.
"""

from __future__ import annotations

from typing import Any

from ..plans.plan import Plan
from ..plans.strategy import NO_SPECULATION, Strategy
from . import schedule
from .document import Export, Options

SCRIPT = "generate.py"
# generate() drafts for one sequence at a time only (transformers issues 29769 and 32165).
BATCH_SIZE = 1
MAX_MATCHING_NGRAM_SIZE = 5


def supports(strategy: Strategy) -> bool:
    """A smaller model, prompt lookup, the target's own MTP layers; a target with quantised weights runs as an assistant."""
    if strategy.draft_kind == "self":
        return schedule.copies_target(strategy) and strategy.kv_dtype is None
    return strategy.draft_kind in ("model", "ngram", "mtp")


def export(plan: Plan, options: Options) -> Export:
    """The plan as `generate` takes it."""
    served = schedule.draft_schedule(plan, options, supports, batch_size=BATCH_SIZE)
    target, notes = schedule.target_path(plan, options)
    notes += schedule.column_notes(plan, options)
    gamma, gamma_notes = schedule.one_gamma(served, "generate()")
    notes += gamma_notes
    strategy = served.strategy if gamma else NO_SPECULATION
    path, path_notes = schedule.draft_path(plan, strategy, options)
    notes += path_notes
    python, setting = _keywords(strategy, gamma)
    notes += setting
    loud = []
    if strategy != NO_SPECULATION and plan.workload.batch_size > BATCH_SIZE:
        loud.append(
            f"ATTENTION: transformers drafts at batch size 1 only and raises ValueError otherwise; the plan's batch size is "
            f"{plan.workload.batch_size}, so its predicted speedup is not to be had here."
        )
    if strategy == NO_SPECULATION:
        notes.append("Plain decoding: generate() needs no arguments.")
    elif options.replay_acceptance:
        notes.append("Acceptance is not replayed: transformers has no synthetic acceptance.")
    names = schedule.names_note("transformers 5.23", options)
    files = {SCRIPT: _script(target, path, python, plan.workload.output_len)}
    return Export("transformers", ("python", SCRIPT), files, python=python, notes=(*loud, *served.notes, *notes, names))


def _keywords(strategy: Strategy, gamma: int) -> tuple[dict[str, Any], list[str]]:
    """Fields of a GenerationConfig: of the assistant's where there is one, else of the call to generate()."""
    if strategy.draft_kind == "none":
        return {}, []
    if strategy.draft_kind == "ngram":
        note = f"The plan says nothing about the length of matches: max_matching_ngram_size {MAX_MATCHING_NGRAM_SIZE} is a choice."
        return {"prompt_lookup_num_tokens": gamma, "max_matching_ngram_size": MAX_MATCHING_NGRAM_SIZE}, [note]
    if strategy.draft_kind == "mtp":
        return {"use_mtp": True}, [f"The draft length is what the model's MTP layers give; gamma {gamma} cannot be set."]
    arguments = {"num_assistant_tokens": gamma, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    return arguments, ["generate() reads these arguments from assistant.generation_config, where the script puts them."]


def _script(target: str, assistant: str | None, python: dict[str, Any], output_len: int) -> str:
    """A program that generates with the exported arguments."""
    lines = [
        "import sys",
        "",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({target!r})",
        f'model = AutoModelForCausalLM.from_pretrained({target!r}, dtype="auto", device_map="auto")',
        "prompt = tokenizer(sys.stdin.read(), return_tensors='pt').to(model.device)",
    ]
    arguments = [f"{name}={value!r}" for name, value in python.items()]
    if assistant is not None:
        lines.append(f'assistant = AutoModelForCausalLM.from_pretrained({assistant!r}, dtype="auto", device_map="auto")')
        lines.append(f"assistant.generation_config.update({', '.join(arguments)})")
        arguments = ["assistant_model=assistant"]
    lines.append(f"output = model.generate({', '.join(['**prompt', f'max_new_tokens={output_len}', *arguments])})")
    lines.append("print(tokenizer.decode(output[0], skip_special_tokens=True))")
    return "\n".join(lines) + "\n"
