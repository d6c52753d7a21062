"""The completions of a run as JSON lines, in a file that survives any interruption: the same command continues it.

Each line carries a digest of everything that its completion depends on, so lines made with other settings are noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from magicdec.costmodel.base.errors import InputError, bad
from magicdec.costmodel.base.json_text import json_line, load_json_object
from magicdec.costmodel.base.limits import MAX_DATA_BYTES

LINE_START = '{"id": '
ADVICE = "name another file with `output`, or remove this one"


def digest(*facts: object) -> str:
    """Twelve hexadecimal digits over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt.

    Attributes:
        id: Of the prompt.
        text: The completion, without its stop string.
        num_tokens: Tokens decoded for it. [tokens]
    """

    id: str
    text: str
    num_tokens: int


class CompletionFile:
    """Where completions go: a file that is continued, `-` for standard output, None for nowhere.

    Args:
        path: The file.
        digests: By prompt id, a digest of everything that its completion depends on.

    Attributes:
        present: Ids of the prompts whose completions the file has.

    Raises:
        InputError: The file cannot be written, or has something else than completions of these prompts with these settings.
    """

    def __init__(self, path: str | None, digests: Mapping[str, str]):
        self.path, self.digests = path, digests
        self.present: set[str] = set()
        self._file: IO[str] | None = sys.stdout if path == "-" else None
        if path is not None and path != "-":
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.isfile(path):
                    self._continue(Path(path))
            except BlockingIOError:
                self.__exit__()
                raise bad(path, "", "a file that no other run is writing", "one that is being written") from None
            except OSError as error:
                self.__exit__()
                raise bad(path, "", "a file that can be written", error.strerror) from None
            except InputError:
                self.__exit__()
                raise

    def append(self, completion: Completion) -> None:
        """Append a completion and sync it to disk, unless the file has it.

        Raises:
            InputError: The disk is full.
        """
        if self._file is None or completion.id in self.present:
            return
        record = {
            "id": completion.id,
            "text": completion.text,
            "num_tokens": completion.num_tokens,
            "digest": self.digests[completion.id],
        }
        try:
            self._file.write(json_line(record) + "\n")
            self._file.flush()
            if self.path is not None and os.path.isfile(self.path):  # not standard output, a device or a pipe
                os.fsync(self._file.fileno())
        except BrokenPipeError:
            raise
        except OSError as error:
            kept = f"the {len(self.present)} before it are kept, and the same command continues"
            raise bad(self.path or "", "", f"room for the completion of prompt {completion.id}; {kept}", error.strerror) from None
        self.present.add(completion.id)

    def _continue(self, path: Path) -> None:
        """Note what the file has, and drop a last line that an interruption tore."""
        content = path.read_bytes()
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        try:
            lines, start = whole.decode().split("\n")[:-1], torn[: len(LINE_START)].decode()
        except UnicodeDecodeError:
            raise bad(path, "", "completions that `magicdec run` wrote", f"something else: {ADVICE}") from None
        for number, line in enumerate(lines, start=1):
            self.present.add(self._id_of(line, number))
        if not LINE_START.startswith(start):
            raise bad(path, f"line {len(lines) + 1}", "a completion that `magicdec run` wrote", f"something else: {ADVICE}")
        if torn:
            os.truncate(path, len(whole))

    def _id_of(self, line: str, number: int) -> str:
        path, where = self.path or "", f"line {number}"
        try:
            record = load_json_object(line, path, "a completion", max_text_length=MAX_DATA_BYTES)
            prompt_id, found = record["id"], record["digest"]
            if not isinstance(prompt_id, str):
                raise TypeError
        except (InputError, TypeError, KeyError):
            raise bad(path, where, "a completion that `magicdec run` wrote", f"something else: {ADVICE}") from None
        if prompt_id not in self.digests:
            raise bad(path, where, "a completion of one of these prompts", f"prompt {prompt_id}: {ADVICE}")
        if found != self.digests[prompt_id]:
            other = f"one of prompt {prompt_id} made with another model, prompt, limit, stop string or sampling: {ADVICE}"
            raise bad(path, where, "a completion made with these settings", other)
        if prompt_id in self.present:
            raise bad(path, where, "every prompt once", f"prompt {prompt_id} again: {ADVICE}")
        return prompt_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; standard output stays open. Each line was synced when it was written, so closing loses nothing."""
        if self._file is not None and self.path != "-":
            with suppress(OSError):
                self._file.close()
