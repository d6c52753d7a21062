"""Folder for what is measured or compiled on this machine and kept between runs. Nobody else may write in it."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """The user's cache folder for magicdec: `$XDG_CACHE_HOME/magicdec`, by default `~/.cache/magicdec`.

    It is created with access for the user only. If it cannot be created, is a link, belongs to somebody else or is writable by
    others, a temporary folder of this process stands in; it is removed at the end.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magicdec"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return _temporary_folder()
    return folder if _is_private(folder, stat.S_ISDIR) else _temporary_folder()


def is_private_file(path: Path) -> bool:
    """True for a regular file of this user that nobody else can write; false for links, and if it does not exist."""
    return _is_private(path, stat.S_ISREG)


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """True if the path itself, not what it links to, is of a kind, belongs to this user and is not writable by others."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & WRITABLE_BY_OTHERS


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="magicdec-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
