"""Reading text files that users name."""

from __future__ import annotations

from pathlib import Path

from .errors import bad


def read_text(path: str | Path, what: str, *, encoding: str = "utf-8") -> str:
    """Return the text of a file.

    Args:
        path: The file.
        what: What the file should be, for the error message, such as "plan file".
        encoding: Text encoding; `utf-8-sig` also accepts a byte order mark.

    Raises:
        InputError: The file cannot be read, or is not text in this encoding.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, "", f"a readable {what}", getattr(error, "strerror", None) or error) from None
