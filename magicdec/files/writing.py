"""Write the files that users ask for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from magicdec.costmodel.base.errors import bad


@contextmanager
def output_file(path: str | None) -> Iterator[IO[str] | None]:
    """Open a file for writing and create its folder; `-` is standard output, None is no file.

    A file is written beside its place and renamed when it is complete, so a full disk or an interruption leaves what was there.

    Raises:
        InputError: The file cannot be written.
    """
    if path is None:
        yield None
    elif path == "-":
        yield sys.stdout
    else:
        try:
            with _replacing(Path(os.path.realpath(path))) as file:
                yield file
        except BrokenPipeError:
            raise
        except OSError as error:
            raise bad(path, "", "a file that can be written", error.strerror) from None


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Open a temporary file that takes the place of `path` at the end; devices and pipes are opened themselves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with open(path, "w", encoding="utf-8") as device:
            yield device
        return
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            import shutil  # slow to import

            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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
