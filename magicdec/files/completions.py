"""The texts of a run, a JSON line each, in a file that survives any interruption: the same command goes on where it ended.

Each line carries a digest of what determines its text, so that lines made with other settings are noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from magicdec.costmodel.base.errors import InputError, bad

LINE_START = '{"id": '
WHAT_TO_DO = "name another file with -o, or remove this one"


def digest(*facts: Any) -> str:
    """Twelve hexadecimal digits over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Outputs:
    """Where texts go: a file that is continued, `-` for standard output, None for nowhere.

    Args:
        path: The file.
        digests: Of each prompt by its id: what determines its text.

    Attributes:
        done: Ids of the prompts whose texts the file holds already.

    Raises:
        InputError: The file cannot be written, or holds something else than texts of these prompts with these settings.
    """

    def __init__(self, path: str | None, digests: Mapping[str, str]):
        self.path, self.digests = path, digests
        self.done: set[str] = set()
        self._file: IO[str] | None = sys.stdout if path == "-" else None
        if path is not None and path != "-":
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if Path(path).is_file():
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

    def write(self, prompt_id: str, text: str, num_tokens: int) -> None:
        """Append a text and see it on the disk, unless the file holds it already."""
        if self._file is None or prompt_id in self.done:
            return
        record = {"id": prompt_id, "text": text, "num_tokens": num_tokens, "digest": self.digests[prompt_id]}
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
            if self.path != "-":
                os.fsync(self._file.fileno())
        except BrokenPipeError:
            raise
        except OSError as error:
            expected = f"room for the text of prompt {prompt_id}; the {len(self.done)} before it are kept, the same command goes on"
            raise bad(self.path or "", "", expected, error.strerror) from None
        self.done.add(prompt_id)

    def _continue(self, path: Path) -> None:
        """Note what the file holds and drop a last line that was torn by an interruption."""
        content = path.read_bytes()
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        try:
            lines, start = whole.decode().split("\n")[:-1], torn[: len(LINE_START)].decode()
        except UnicodeDecodeError:
            raise bad(path, "", "texts that `magicdec run` wrote", f"something else: {WHAT_TO_DO}") from None
        for number, line in enumerate(lines, start=1):
            self.done.add(self._id_of(line, number))
        if not LINE_START.startswith(start):
            raise bad(path, f"line {len(lines) + 1}", "a text that `magicdec run` wrote", f"something else: {WHAT_TO_DO}")
        if torn:
            os.truncate(path, len(whole))

    def _id_of(self, line: str, number: int) -> str:
        where = f"line {number}"
        try:
            record = json.loads(line)
            prompt_id, found = str(record["id"]), record["digest"]
        except (ValueError, TypeError, KeyError):
            raise bad(self.path or "", where, "a text that `magicdec run` wrote", f"something else: {WHAT_TO_DO}") from None
        if prompt_id not in self.digests:
            raise bad(self.path or "", where, "a text of one of these prompts", f"prompt {prompt_id}: {WHAT_TO_DO}")
        if found != self.digests[prompt_id]:
            other = f"one of prompt {prompt_id} made with another model, prompt, limit, stop or sampling: {WHAT_TO_DO}"
            raise bad(self.path or "", where, "a text made with these settings", other)
        if prompt_id in self.done:
            raise bad(self.path or "", where, "every prompt once", f"prompt {prompt_id} again: {WHAT_TO_DO}")
        return prompt_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; standard output stays open. What could be written is on disk already: a full disk has been told of."""
        if self._file is not None and self.path != "-":
            with suppress(OSError):
                self._file.close()
