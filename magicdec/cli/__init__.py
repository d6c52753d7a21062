"""The command line: one small module a command, each an API call and its views."""

from __future__ import annotations

import sys


def main() -> None:
    """The `magicdec` command. It can be interrupted at any time, also while libraries are loaded."""
    try:
        from .group import main as group

        group()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
