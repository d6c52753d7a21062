"""The command line: one small module a command, each an API call and its views."""

from __future__ import annotations

import gc
import sys

OBJECTS_BETWEEN_COLLECTIONS = 50_000  # loading libraries makes many objects that stay: looking for garbage among them is in vain


def main() -> None:
    """The `magicdec` command. It can be interrupted at any time, also while libraries are loaded."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from .group import main as group

        group()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
