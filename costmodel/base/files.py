"""Reading text files that users name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from .errors import bad
from .limits import MAX_DOCUMENT_BYTES

STDIN = "standard input"


def read_text(path: str | Path, what: str, *, encoding: str = "utf-8", max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """Return the text of a file. Line breaks become `\\n`.

    Args:
        path: The file.
        what: What the file should be, for the error message, such as "plan file".
        encoding: Text encoding; `utf-8-sig` also accepts a byte order mark.
        max_bytes: The largest size that is read. [bytes]

    Raises:
        InputError: The file cannot be read, is too large, or is not text in this encoding.
    """
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise bad("path", "", f"a readable {what}", repr(path))
    try:
        with open(path, "rb") as file:
            return _read(file, str(path), what, encoding, max_bytes)
    except (OSError, UnicodeEncodeError) as error:
        raise bad(path, "", f"a readable {what}", getattr(error, "strerror", None) or error) from None


def read_stdin(what: str, *, encoding: str = "utf-8", max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    """Return the text of standard input; arguments and errors as for `read_text`."""
    return _read(sys.stdin.buffer, STDIN, what, encoding, max_bytes)


def _read(file: BinaryIO, where: str, what: str, encoding: str, max_bytes: int) -> str:
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise bad(where, "", f"a {what} of at most {max_bytes / 2**20:,.0f} MiB", "a larger one")
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise bad(where, "", f"a readable {what} in UTF-8", f"byte {error.start} is not") from None
