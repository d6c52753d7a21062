"""Prompts files: one prompt a line, or JSON lines with `id` and `prompt` and what is particular to a prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenizers import Tokenizer

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.executor.engine.request import Request


@dataclass(frozen=True)
class PromptText:
    """A prompt as a file has it.

    Attributes:
        id: Its `id`, else its line number.
        text: What is to be continued.
        max_new_tokens, kv_budget: Its own limits; None for those of the run. [tokens]
        stop: Texts that end its continuation, beside those of the run.
    """

    id: str
    text: str
    max_new_tokens: int | None = None
    kv_budget: int | None = None
    stop: tuple[str, ...] = ()


def read_prompts(source: str, stdin: IO[str]) -> list[PromptText]:
    """Every prompt of a file; `-` is standard input.

    Raises:
        InputError: The file cannot be read or holds no prompt, a JSON line lacks one, or two have one id.
    """
    where = "standard input" if source == "-" else source
    try:
        text = stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise bad(source, "", "a readable text file of prompts", getattr(error, "strerror", None) or error) from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise bad(where, "", "one prompt a line, or JSON lines with id and prompt", "nothing")
    if not lines[0][1].lstrip().startswith("{"):
        return [PromptText(str(number), line) for number, line in lines]
    prompts = [_json_prompt(line, f"{where}: line {number}", str(number)) for number, line in lines]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise bad(where, "id", "an id of its own for every prompt", f"{prompt.id} twice")
        seen.add(prompt.id)
    return prompts


def _json_prompt(line: str, where: str, default_id: str) -> PromptText:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise bad(where, "", "a JSON object", error) from None
    if not isinstance(record, dict):
        raise bad(where, "", "a JSON object", record)
    text, stop = record.get("prompt"), record.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    problems = []
    if not isinstance(text, str) or not text:
        problems.append(Problem(where, "prompt", "a text", repr(text)))
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        problems.append(Problem(where, "stop", "a text or a list of texts, none empty", repr(stop)))
    numbers = [key for key in ("max_new_tokens", "kv_budget") if not _positive_or_missing(record.get(key))]
    problems += [Problem(where, key, "a positive whole number", repr(record[key])) for key in numbers]
    if problems:
        raise InputError(*problems)
    return PromptText(
        str(record.get("id", default_id)), str(text), record.get("max_new_tokens"), record.get("kv_budget"), tuple(stops)
    )


def _positive_or_missing(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def encode(tokenizer: Tokenizer, prompts: Sequence[PromptText], stop: Sequence[str] = ()) -> list[Request]:
    """Token ids of every prompt, with the stop texts of the run beside its own."""
    encodings = tokenizer.encode_batch([prompt.text for prompt in prompts])
    return [
        Request(prompt.id, encoding.ids, prompt.max_new_tokens, tuple(dict.fromkeys((*stop, *prompt.stop))), prompt.kv_budget)
        for prompt, encoding in zip(prompts, encodings, strict=True)
    ]
