"""Load the checkpoints, tokenizers and texts that a run needs. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.files import read_text
from magicdec.costmodel.plans.plan import Plan
from magicdec.executor.generate import check_runnable
from magicdec.executor.model.checkpoint import checkpoint_digest, load_model, stop_tokens
from magicdec.executor.model.tensor_parallel import SINGLE_PROCESS, Ranks
from magicdec.executor.model.tokenizer import load_tokenizer
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model.corpus import held_out_documents

from ..inputs.names import find_model

HELD_OUT = "Python standard library, held out"


@dataclass(frozen=True)
class LoadedModels:
    """Checkpoints in memory.

    Attributes:
        target: The target.
        draft: The draft model, if there is one.
        tokenizer: The target's.
        stop_tokens: Ids that end a completion.
        digests: Of the checkpoints, the target's first.
        ranks: This process's place among those that share the models.
    """

    target: Transformer
    draft: Transformer | None
    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    digests: tuple[str, ...] = ()
    ranks: Ranks = SINGLE_PROCESS


def load_models(
    plan: Plan, *, model_dir: str | None, draft_dir: str | None, device: str, ranks: Ranks = SINGLE_PROCESS
) -> LoadedModels:
    """Load the models of a plan, from the given directories or from where their names lead.

    Raises:
        InputError: A directory is no checkpoint, a model is not the planned one, or the executor cannot run the plan.
    """
    _refuse_compressed(plan)
    folder = _folder("model_dir", plan.target.name, model_dir)
    target = load_model(folder, device=device, name=plan.target.name, ranks=ranks)
    plan.check_model("target", target.whole, str(folder))
    strategies = (plan.strategy, *(plan.policy.strategies if plan.policy else ()))
    names = sorted({strategy.draft_model for strategy in strategies if strategy.draft_model})
    if len(names) > 1:
        raise bad("plan", "policy.strategies", "one draft model at most", ", ".join(names))
    draft, digests = None, [checkpoint_digest(folder)]
    for name in names:
        draft_folder = _folder("draft_dir", name, draft_dir)
        draft = load_model(draft_folder, device=device, name=name, ranks=ranks)
        plan.check_model("draft", draft.whole, str(draft_folder))
        digests.append(checkpoint_digest(draft_folder))
    for strategy in strategies:
        check_runnable(strategy, target, draft)
    return LoadedModels(target, draft, load_tokenizer(folder), stop_tokens(folder), tuple(digests), ranks)


def load_checkpoint(name: str, *, where: str = "model_dir", device: str = "cpu") -> LoadedModels:
    """Load a checkpoint without a plan; `where` is the parameter that names it.

    Raises:
        InputError: It is no checkpoint directory.
    """
    folder = _folder(where, name, None)
    return LoadedModels(load_model(folder, device=device, name=name), None, load_tokenizer(folder), stop_tokens(folder))


def tokenize_text(tokenizer: Tokenizer, file: str | None) -> tuple[str, Sequence[int]]:
    """Name and tokens of a text file; without one, of standard library text that the reference model was not trained on.

    Raises:
        InputError: The file cannot be read.
    """
    if file is None:
        texts = [document.text for document in held_out_documents()]
        return HELD_OUT, [token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids]
    return Path(file).name, tokenizer.encode(read_text(file, "text file")).ids


def _refuse_compressed(plan: Plan) -> None:
    """The executor runs weights and caches in the types of the checkpoint."""
    for role, model in (("target", plan.target), ("draft", plan.draft)):
        for key, dtype in (("weight_dtype", model.weight_dtype), ("kv_dtype", model.kv_dtype)) if model else ():
            if dtype is not None:
                expected = "null: checkpoints run in their own types here; serving engines compress them (`magicdec export`)"
                raise bad("plan", f"{role}.{key}", expected, dtype)


def _folder(where: str, name: str, given: str | None) -> Path:
    if given is not None:
        if not os.path.isdir(given):
            raise bad(where, "", "a checkpoint directory", repr(given))
        return Path(given)
    found = find_model(name)
    if found.folder is None:
        raise bad(where, "", f"the checkpoint directory of {name}, whose weights are not shipped", "nothing")
    return found.folder
