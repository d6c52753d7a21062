"""Result of an export: a command with its files and environment, and notes on what the engine cannot express."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from ..base.errors import bad
from ..base.json_types import JsonObject
from ..base.names import NAME_RULE, is_name, one_line


@dataclass(frozen=True)
class Options:
    """Choices of the user about an export.

    Attributes:
        engine_version: Version of the engine; None for the one documented in the engine's module.
        context_len: Context length whose column of the policy table is exported; None for the plan's own. [tokens]
        experimental: Whether to use engine features that are proposed but not merged or not documented.
        replay_acceptance: Whether to make the engine simulate the predicted acceptance.
        model_dir: Checkpoint or repository of the target; None for the plan's name.
        draft_dir: Checkpoint or repository of the draft; None for the plan's name.
    """

    engine_version: str | None = None
    context_len: int | None = None
    experimental: bool = False
    replay_acceptance: bool = False
    model_dir: str | None = None
    draft_dir: str | None = None

    def __post_init__(self) -> None:
        """Check that nothing can leave its place in a command or script.

        Raises:
            InputError: A name or a version has a line break or another unprintable character.
        """
        for name in ("engine_version", "model_dir", "draft_dir"):
            value = getattr(self, name)
            if value is not None and not is_name(value):
                raise bad(name, "", NAME_RULE, repr(value[:80]))


@dataclass(frozen=True)
class Export:
    """A plan as options of one engine.

    Attributes:
        engine: Name of the engine.
        arguments: The command, program first.
        files: Files that the command reads: text by name.
        environment: Environment variables of the command.
        python: Equivalent keyword arguments of the engine's Python API; empty if there is none.
        notes: Sentences on what the engine cannot express, and on what was rounded or dropped.
    """

    engine: str
    arguments: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    python: JsonObject = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def command_text(export: Export) -> str:
    """Format the command for a shell, one option per line."""
    words = [f"{name}={shlex.quote(value)}" for name, value in export.environment.items()]
    lines: list[str] = []
    for word in (*words, *map(shlex.quote, export.arguments)):
        if lines and not word.startswith("--") and len(lines) > len(words):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines) + "\n"


def script_text(export: Export) -> str:
    """Format files and command as one shell script."""
    return "".join([*(_here_document(name, text) for name, text in export.files.items()), command_text(export)])


def _here_document(name: str, text: str) -> str:
    """Shell lines that write a file. The end mark is a line that the text does not have."""
    mark = "END"
    while mark in text.splitlines():
        mark += "_"
    return f"cat > {shlex.quote(name)} <<'{mark}'\n{text}{mark}\n"


def comment_text(export: Export) -> str:
    """Format the notes as shell comments, one line each."""
    return "".join(f"# {one_line(note)}\n" for note in export.notes)
