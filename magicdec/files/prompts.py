"""Prompts files: one prompt a line, or JSON lines with `id`, `prompt` and settings of a prompt's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from magicdec.costmodel.base.errors import InputError, Problem, bad
from magicdec.costmodel.base.files import STDIN, read_stdin, read_text
from magicdec.costmodel.base.json_text import load_json_object
from magicdec.costmodel.base.limits import MAX_DATA_BYTES, MAX_TOKENS, is_unicode
from magicdec.costmodel.base.names import MAX_NAME_LENGTH
from magicdec.executor.engine.request import Request


@dataclass(frozen=True)
class PromptText:
    """A prompt before it is tokenized.

    Attributes:
        id: Its `id`, else its line number.
        text: The prompt.
        max_new_tokens, kv_budget: Limits of its own; None for those of the run. [tokens]
        stop: Strings that end its completion, in addition to those of the run.
    """

    id: str
    text: str
    max_new_tokens: int | None = None
    kv_budget: int | None = None
    stop: tuple[str, ...] = ()


def read_prompts(source: str) -> list[PromptText]:
    """Read a prompts file; `-` is standard input.

    Raises:
        InputError: The file cannot be read or has no prompt, a JSON line is wrong, or two prompts have one id.
    """
    where, what = STDIN if source == "-" else source, "text file of prompts"
    if source == "-":
        text = read_stdin(what, encoding="utf-8-sig", max_bytes=MAX_DATA_BYTES)
    else:
        text = read_text(source, what, encoding="utf-8-sig", max_bytes=MAX_DATA_BYTES)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise bad(where, "", "one prompt a line, or JSON lines with id and prompt", "nothing")
    if not lines[0][1].lstrip().startswith("{"):
        return [PromptText(str(number), plain_text(line, f"{where}: line {number}")) for number, line in lines]
    return check_ids([_json_prompt(line, f"{where}: line {number}", str(number)) for number, line in lines], where)


def plain_text(text: object, where: str) -> str:
    """A text that a tokenizer takes.

    Raises:
        InputError: It is empty or no text, has a NUL character, or half of a surrogate pair.
    """
    if not isinstance(text, str) or not text or "\0" in text or not is_unicode(text):
        raise bad(where, "", "a text without NUL and without unpaired surrogates", repr(text)[:80])
    return text


def check_ids(prompts: Sequence[PromptText], where: str) -> list[PromptText]:
    """The prompts, if each has an id of its own.

    Raises:
        InputError: Two have one id.
    """
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise bad(where, "id", "an id of its own for every prompt", f"{prompt.id} twice")
        seen.add(prompt.id)
    return list(prompts)


def _json_prompt(line: str, where: str, default_id: str) -> PromptText:
    return _prompt(load_json_object(line, where, "a prompt", max_text_length=MAX_DATA_BYTES), where, default_id)


def _prompt(record: Mapping[str, object], where: str, default_id: str) -> PromptText:
    text, stop = record.get("prompt"), record.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    limits = {key: record.get(key) for key in ("max_new_tokens", "kv_budget")}
    prompt_id = record.get("id", default_id)
    problems = []
    if isinstance(prompt_id, bool) or not isinstance(prompt_id, str | int) or not 0 < len(str(prompt_id)) <= MAX_NAME_LENGTH:
        problems.append(Problem(where, "id", f"a text of at most {MAX_NAME_LENGTH} characters or a whole number", repr(prompt_id)))
    if not isinstance(text, str) or not text:
        problems.append(Problem(where, "prompt", "a text", repr(text)))
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        problems.append(Problem(where, "stop", "a text or a list of texts, none empty", repr(stop)))
    for key, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS):
            problems.append(Problem(where, key, "a positive whole number", repr(value)))
    if problems or not isinstance(stops, list):
        raise InputError(*problems)
    max_new_tokens, kv_budget = (value if isinstance(value, int) else None for value in limits.values())
    return PromptText(str(prompt_id), str(text), max_new_tokens, kv_budget, tuple(stops))


def encode(tokenizer: Tokenizer, prompts: Sequence[PromptText], stop: Sequence[str] = ()) -> list[Request]:
    """Tokenize prompts; the stop strings of the run join those of each prompt."""
    encodings = tokenizer.encode_batch([prompt.text for prompt in prompts])
    return [
        Request(prompt.id, encoding.ids, prompt.max_new_tokens, tuple(dict.fromkeys((*stop, *prompt.stop))), prompt.kv_budget)
        for prompt, encoding in zip(prompts, encodings, strict=True)
    ]
