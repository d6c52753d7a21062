"""Write the files that users ask for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from magicdec.costmodel.base.errors import bad


@contextmanager
def output_file(path: str | None) -> Iterator[IO[str] | None]:
    """Open a file for writing and create its folder; `-` is standard output, None is no file.

    Raises:
        InputError: The file cannot be written.
    """
    if path is None:
        yield None
    elif path == "-":
        yield sys.stdout
    else:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise bad(path, "", "a file that can be written", error.strerror) from None
        with file:
            yield file


def write_text(path: str | None, text: str) -> None:
    """Write a text to a file; `-` is standard output, None is no file.

    Raises:
        InputError: The file cannot be written.
    """
    with output_file(path) as file:
        if file is not None:
            file.write(text)


def append_line(path: str, line: str) -> None:
    """Append a line to a file; an empty line only creates the file.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n" if line else "")
    except OSError as error:
        raise bad(path, "", "a file that can be written", error.strerror) from None
