"""Folder for what is measured or compiled on this machine and kept between runs."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for magicdec, created with access for the user only.

    It is `$XDG_CACHE_HOME/magicdec`, by default `~/.cache/magicdec`; below the temporary folder if there is no home directory.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    folder = home / "magicdec"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
