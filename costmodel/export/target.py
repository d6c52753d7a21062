"""The target in an engine's terms: its checkpoint, and the types of its weights and KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..plans.plan import Plan
from .checkpoints import quantised, repository
from .document import Options


@dataclass(frozen=True)
class TypeWords:
    """The types of an engine.

    Attributes:
        engine: What it is called in sentences.
        converted: Weight types that the engine makes from a 16-bit checkpoint as it loads it, by its own word.
        kv: KV cache types by planned type: the type that runs, and the engine's word for it.
    """

    engine: str
    converted: Mapping[str, str]
    kv: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Target:
    """The target in an engine's terms.

    Attributes:
        checkpoint: Path or repository.
        convert: The engine's word for the type that it makes of the weights while loading; None for the checkpoint's.
        kv_word: The engine's word for the type of the KV cache; None for the model's.
        weight_dtype, kv_dtype: What runs; None for the checkpoint's.
        notes: Sentences on what differs from the plan.
    """

    checkpoint: str
    convert: str | None
    kv_word: str | None
    weight_dtype: str | None
    kv_dtype: str | None
    notes: list[str]


def target_of(plan: Plan, options: Options, words: TypeWords) -> Target:
    """The target's checkpoint and types in an engine's terms."""
    planned = plan.target
    wanted = planned.weight_dtype
    notes: list[str] = []
    convert = words.converted.get(wanted) if wanted else None
    given = options.model_dir or planned.checkpoint
    named = given is not None and wanted is not None and wanted in given.lower()  # a checkpoint that says it has the type
    known = quantised(planned.name, wanted) if wanted else None
    checkpoint = given or repository(planned.name) or planned.name
    if wanted and (named or (options.model_dir and convert is None)):
        convert = None
        notes.append(f"{checkpoint} must have its weights in {wanted}, as planned.")
    elif wanted and convert is None:
        checkpoint = known or f"PATH_TO_{wanted.upper()}_COPY_OF_{planned.name.rpartition('/')[2]}"
        notes.append(
            f"The weights are planned in {wanted}: {checkpoint} has them; `model_dir` sets another checkpoint."
            if known
            else f"{checkpoint} is a placeholder; `model_dir` sets a checkpoint with weights in {wanted}."
        )
    elif given is None:
        notes.append(f"The target has the name in the plan, {planned.name}; `model_dir` sets its checkpoint.")
    if convert is not None:
        notes.append(f"{words.engine} converts the weights to {wanted} while it loads them.")
    kv_dtype, kv_word = words.kv.get(planned.kv_dtype, (None, None)) if planned.kv_dtype else (None, None)
    if planned.kv_dtype and kv_dtype is None:
        notes.append(f"{words.engine} cannot keep the KV cache in {planned.kv_dtype}: it has the type of the model.")
    elif planned.kv_dtype is not None and planned.kv_dtype != kv_dtype:
        notes.append(f"{words.engine} has no KV cache in {planned.kv_dtype}: it is in {kv_word}.")
    return Target(checkpoint, convert, kv_word, wanted, kv_dtype, notes)
