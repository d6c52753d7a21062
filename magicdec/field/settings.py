"""The deployment and the draft that a row of a file of measurements is about."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.engines.catalog import engine_named
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.speculation.drafts import Draft, Tree, prediction_head

from ..inputs.names import find_draft, find_model
from ..inputs.scenario import Scenario, resolve_scenario
from .columns import Cells, cell, first, hardware_of, model_of, whole

USUAL_CONTEXT = 1000  # where a file does not say: short questions and their answers [tokens]
WEIGHTS_SHARE = 0.85  # of the memory that weights may take, where a file does not say how many GPUs there were
TASK_WORDS = (
    ("code", "code"),
    ("coding", "code"),
    ("humaneval", "code"),
    ("swe", "code"),
    ("gsm8k", "reasoning"),
    ("math", "reasoning"),
    ("gpqa", "reasoning"),
    ("aime", "reasoning"),
    ("reason", "reasoning"),
    ("mt_bench", "chat"),
    ("mtbench", "chat"),
    ("chat", "chat"),
    ("cnn", "summary"),
    ("summ", "summary"),
    ("financeqa", "summary"),
    ("prose", "prose"),
)
LONG_PROMPT = 3000  # where prompts are timed beside the answer, they are documents [tokens]
ASSUMED = Path(__file__).parent / "assumed"  # models whose config was not found, with dimensions that fit what is known of them
GGUF_TYPES, GGUF_SHARE = ("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_S", "Q2_K"), 0.92
GGUF = re.compile(r"(?i)\b(?:i?q\d(?:_[a-z0-9]+)*|mxfp4)\b")


@dataclass(frozen=True)
class Setting:
    """What a row is about.

    Attributes:
        scenario: Model, machine and engine.
        batch_size: Sequences decoded together.
        context_len: Tokens in the KV cache, per sequence. [tokens]
    """

    scenario: Scenario
    batch_size: int
    context_len: int


def setting_of(row: Cells, said: Mapping[str, str], *, window: bool) -> Setting:
    """Resolve a row.

    Args:
        row: The cells, by column.
        said: What the name of the file says.
        window: The context of the file is the server's window, not what was in it.

    Raises:
        InputError: The row names no model or machine that is known.
    """
    model, hardware = model_of(row), hardware_of(row, said)
    if (assumed := ASSUMED / f"{model}.json").is_file():
        model = str(assumed)
    for name, value in (("model", model), ("gpu", hardware)):
        if not value:
            raise bad(name, "", "a name in this column", "nothing")
    engine = engine_named(cell(row, "engine")) or engine_named(said.get("engine", ""))
    if engine is None and (GGUF.search(cell(row, "quant")) or GGUF.search(cell(row, "model"))):
        engine = "llama.cpp"
    if (found := re.fullmatch(r"tp(\d+)", cell(row, "tensor_parallel"))) is not None:
        gpus = int(found[1])
    else:
        gpus = whole(row, "num_gpus") or 0
    scenario = _scenario(model, hardware, gpus, cell(row, "split"), engine)
    task = task_of(row)
    if task is not None:
        scenario = replace(scenario, deployment=replace(scenario.deployment, task=task))
    if "concurrency" in row and not cell(row, "batch"):
        raise bad("concurrency", "", "the number of requests that were served at once", "nothing")
    context = None if window and not row.get("prompt_len") else whole(row, "context")
    return Setting(scenario, whole(row, "batch") or 1, USUAL_CONTEXT if context is None else context)


def task_of(row: Cells) -> str | None:
    """What a row generated, one of the tasks that acceptance is known for; None if it does not say."""
    text = row.get("task", "").lower()
    found = next((task for fragment, task in TASK_WORDS if fragment in text), None)
    long_prompt = (whole(row, "context") or 0) >= LONG_PROMPT and any(name.startswith("ttft") for name in row)
    return found or ("summary" if long_prompt else None)


@lru_cache(maxsize=512)
def _scenario(model: str, hardware: str, gpus: int, split: str, engine: str | None) -> Scenario:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if engine == "llama.cpp":
            model = _gguf_type(model, hardware, max(gpus, 1))
        if not gpus:
            gpus = _fewest(find_model(model).config, hardware)
        if split == "layer" and gpus > 1:
            return resolve_scenario(model, ",".join([hardware] * gpus), engine=engine)
        return resolve_scenario(model, hardware, num_gpus=gpus, engine=engine)


def _gguf_type(model: str, hardware: str, gpus: int) -> str:
    """The model in the type that a file for llama.cpp has: of four bits and fewer the widest that fits, if no type is named."""
    vague = re.sub(r"(?i)-q4$", "", model)
    if vague == model and (GGUF.search(model.replace("-", " ")) or find_model(model).config.linear_dtype is not None):
        return model
    if re.search(r"(?i)-(?:bf16|f16|iq\d\w*|ud-\w+)$", vague) or model.endswith(" in 16 bits"):
        return model
    room = GGUF_SHARE * resolve_profile(hardware).peak.memory_bytes * gpus
    types = [f"{vague}-{name}" for name in GGUF_TYPES]
    return next((name for name in types if _read_bytes(find_model(name).config) <= room), types[-1])


def _read_bytes(model: TransformerConfig) -> float:
    """Size of the matrices; the embedding stays in the memory of the host. [bytes]"""
    return sum(matrix.bytes for matrix in model.matrices())


def _fewest(model: TransformerConfig, hardware: str) -> int:
    """As few GPUs as hold the weights."""
    room = WEIGHTS_SHARE * resolve_profile(hardware).peak.memory_bytes
    return next((gpus for gpus in (1, 2, 4) if model.weight_bytes_per_gpu(gpus) <= room), 8)


def draft_of(row: Cells, scenario: Scenario, context_len: int) -> tuple[Draft, float]:
    """The draft of a row, and how many KV entries it reads: inf for all.

    Raises:
        InputError: Nothing is known of such a draft.
    """
    text, target = cell(row, "draft").lower(), scenario.deployment.target
    budget = _budget(row, context_len)
    tree = _tree(row)
    if not text:
        text = "mtp" if target.mtp else "self streaming_llm"
    if "mtp" in text or "nextn" in text:
        return _named("mtp", scenario, tree), float("inf")
    if "dflash" in text or "dspark" in text:
        return replace(_named("eagle3", scenario, None), one_pass=True, head=block_head(target)), float("inf")
    if "eagle" in text:
        draft = _named("eagle3", scenario, tree)
        if re.search(r"eagle[12]?\b", text) and "eagle3" not in text and "eagle-3" not in text:
            draft = replace(draft, head=replace(prediction_head(target, "eagle3"), vocab_size=target.vocab_size))
        return draft, float("inf")
    if "ngram" in text or "suffix" in text or "replay" in text or "lookup" in text:
        return Draft("ngram"), float("inf")
    if "streaming" in text or text == "self":
        return find_draft("self", "streaming_llm", scenario.deployment), budget
    if "vegas" in text or "snapkv" in text:
        return find_draft("self", "snapkv", scenario.deployment), budget
    raise bad("draft", "", "none, mtp, eagle, eagle3, dflash, ngram, suffix, streaming_llm or vegas", repr(text))


def _budget(row: Cells, context_len: int) -> float:
    share, given = first(row, ("kv_ratio",)), whole(row, "kv_budget")
    return float(given) if given else max(256.0, share * context_len) if share else 512.0


def _tree(row: Cells) -> Tree | None:
    width, tokens = whole(row, "topk"), whole(row, "tree_tokens")
    return Tree(width, tokens) if width and width > 1 and tokens else None


def _named(name: str, scenario: Scenario, tree: Tree | None) -> Draft:
    return replace(find_draft(name, None, scenario.deployment), tree=tree)


def block_head(target: TransformerConfig) -> TransformerConfig:
    """A network that drafts a block in one pass: five dense layers of the target's width, with its head.

    Source:
        DFlash and DSpark drafts as published for models of 4 to 30 billion parameters have four to six layers.
    """
    layer = prediction_head(target, "eagle3")
    return replace(layer, name=f"{target.name} block head", num_layers=5, vocab_size=target.vocab_size)
