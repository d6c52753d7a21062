"""The command line: one small module a command, each an API call and its views."""

from .group import main

__all__ = ["main"]
