"""What an export is: a command, files, environment and keyword arguments for one engine, and what that engine cannot express."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """What a user may choose about an export.

    Attributes:
        engine_version: The engine's version; None for the one whose options are documented here.
        context_len: Context length whose column of the policy table is exported; None for the plan's own. [tokens]
        experimental: Use what is proposed to the engine, yet not merged or not documented.
        replay_acceptance: Make the engine accept draft tokens as often as predicted, whatever they are.
        model_dir: Checkpoint or repository of the target; None for the plan's name.
        draft_dir: Checkpoint or repository of the draft; None for the plan's name.
    """

    engine_version: str | None = None
    context_len: int | None = None
    experimental: bool = False
    replay_acceptance: bool = False
    model_dir: str | None = None
    draft_dir: str | None = None


@dataclass(frozen=True)
class Export:
    """A plan in the words of one engine.

    Attributes:
        engine: Its name.
        arguments: The command line, program first.
        files: Name and text of every file that the command reads.
        environment: Variables the command needs.
        python: Keyword arguments of the engine's Python interface that say the same; empty where there is none.
        notes: Sentences on what the engine cannot express, and on what was collapsed or rounded.
    """

    engine: str
    arguments: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    python: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def command_text(export: Export) -> str:
    """The command as a shell takes it, an option a line."""
    words = [f"{name}={shlex.quote(value)}" for name, value in export.environment.items()]
    lines: list[str] = []
    for word in (*words, *map(shlex.quote, export.arguments)):
        if lines and not word.startswith("--") and len(lines) > len(words):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines) + "\n"


def script_text(export: Export) -> str:
    """Files and command as one text to paste into a shell."""
    files = [f"cat > {shlex.quote(name)} <<'END'\n{text}END\n" for name, text in export.files.items()]
    return "".join([*files, command_text(export)])


def comment_text(export: Export) -> str:
    """The notes as comments for the head of a script."""
    return "".join(f"# {note}\n" for note in export.notes)
