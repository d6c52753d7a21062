"""Where things measured or compiled on this machine are kept between runs."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for magicdec, made private to the user; a temporary one where there is no home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    folder = home / "magicdec"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
