"""MkDocs hooks: the command-line reference is generated from the commands themselves, so it cannot drift."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "<!-- commands -->"


def on_page_markdown(markdown: str, **context: object) -> str:
    """Replace the placeholder by the help of every command."""
    if PLACEHOLDER not in markdown:
        return markdown
    return markdown.replace(PLACEHOLDER, "\n".join(command_reference()))


def command_reference() -> Iterator[str]:
    """A section per command: its help text, as `--help` prints it at 80 columns."""
    sys.path.insert(0, str(ROOT))
    from magicdec.cli.group import main

    parent = click.Context(main, info_name="magicdec", terminal_width=80, help_option_names=["-h", "--help"])
    for name in main.list_commands(parent):
        command = main.get_command(parent, name)
        assert command is not None
        with click.Context(command, info_name=name, parent=parent, terminal_width=80) as context:
            yield f"## magicdec {name}\n\n```text\n{command.get_help(context)}\n```\n"
