"""Files that commands write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from magicdec.costmodel.base.errors import bad


@contextmanager
def output_file(path: str | None) -> Iterator[IO[str] | None]:
    """A file to write to, `-` for standard output, None for none; a path that cannot be written is bad input."""
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
