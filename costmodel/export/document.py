"""Result of an export: a command with its files and environment, and notes on what the engine cannot express."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..base.errors import bad
from ..base.json_types import JsonObject
from ..base.names import NAME_RULE, is_name, one_line
from ..plans.strategy import Strategy


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
class Served:
    """What one command runs, as the cost model prices it.

    Attributes:
        strategy: The draft as the engine runs it; `NO_SPECULATION` for none.
        copies_target: A self draft that runs as a second copy of the target, with weights and a cache of its own.
        batch_size: Sequences over all replicas.
        tensor_parallel, replicas: GPUs of one replica, and replicas.
        max_len: Longest sequence that the server accepts, draft tokens included. [tokens]
        weight_dtype, kv_dtype: Of the target; None for those of its checkpoint.
        draft_kv_dtype: Of a draft's own KV cache; None for its checkpoint's.
        draft_tensor_parallel: GPUs that share a draft model; None for as many as suit it.
        allocates_longest: Every sequence has room for the longest one, whether it needs it or not.
    """

    strategy: Strategy
    copies_target: bool
    batch_size: int
    tensor_parallel: int
    replicas: int
    max_len: int
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    draft_kv_dtype: str | None = None
    draft_tensor_parallel: int | None = None
    allocates_longest: bool = False


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
        served: What the command runs, to price it.
        servers: Copies of the command to start, each with GPUs and a port of its own.
        port: Port of the first one, and the option that sets it; None for a program that does not listen.
    """

    engine: str
    arguments: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    python: JsonObject = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    served: Served | None = None
    servers: int = 1
    port: tuple[str, int] | None = None


def command_text(export: Export) -> str:
    """Format the command for a shell, one option per line; several servers as several commands in the background."""
    if export.servers == 1 or export.served is None:
        return _command(export.environment, export.arguments)
    gpus = export.served.tensor_parallel
    parts = []
    for server in range(export.servers):
        devices = ",".join(str(server * gpus + gpu) for gpu in range(gpus))
        port = [export.port[0], str(export.port[1] + server)] if export.port else []
        command = _command({"CUDA_VISIBLE_DEVICES": devices} | export.environment, [*export.arguments, *port])
        parts.append(command.rstrip("\n") + " &\n")
    return "".join([*parts, "wait\n"])


def _command(environment: Mapping[str, str], arguments: Sequence[str]) -> str:
    words = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    lines: list[str] = []
    for word in (*words, *map(shlex.quote, arguments)):
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
