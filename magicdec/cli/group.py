"""The `magicdec` command: finds commands by name, and turns bad input into one message and exit code 2."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from magicdec.costmodel.base.notes import Note

from .. import __version__

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for plugins is slow
# Threads that wait for one another sleep after some microseconds instead of milliseconds: where another program takes a core, they
# would keep it from the thread that they wait for, and steps take two to five times longer.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from magicdec.costmodel.base.errors import InputError

# Commands in the order of the help, and their modules: of `magicdec.cli`, or of `magicdec` with a dot. A module is imported when
# its command is used.
COMMANDS = {
    "demo": "demo",
    "predict": "predict",
    "plan": "plan",
    "compare": "fleet.compare_command",
    "capacity": "fleet.capacity_command",
    "regimes": "regimes",
    "run": "run",
    "export": "export",
    "calibrate": "calibrate",
    "acceptance": "acceptance",
    "validate": "validate",
    "import": "importing",
    "report": "report",
    "profiles": "listings",
    "models": "listings",
    "environment": "listings",
}
# Parameters of the API that the command line has under another name.
ALIASES = {"acceptance_by_position": "--acceptance-rate"}
FAILED, INTERRUPTED = 2, 130  # exit codes; 1 says that outputs differ
DEBUG = "MAGICDEC_DEBUG"
FAULT = "a fault of magicdec, not of your input"


class Commands(click.Group):
    """Imports the module of a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        place = COMMANDS[cmd_name]
        module = importlib.import_module(f"magicdec.{place}" if "." in place else f"magicdec.cli.{place}")
        command = getattr(module, "import_" if cmd_name == "import" else cmd_name)
        assert isinstance(command, click.Command)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        with interruption(), short_usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        try:
            with interruption(), short_usage_errors(), warnings.catch_warnings():
                warnings.showwarning = _note
                warnings.simplefilter("always", Note)
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError):  # the reader of our output has gone
                sys.stderr.close()
            elif DEBUG in os.environ:
                raise
            else:
                command = self.get_command(ctx, ctx.invoked_subcommand or "")
                click.echo("\n".join(explained(error, flags(command))), err=True)
            ctx.exit(FAILED)


@contextmanager
def interruption() -> Iterator[None]:
    """Ctrl-C ends a command in one line, with the exit code that shells give it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextmanager
def short_usage_errors() -> Iterator[None]:
    """Messages of click repeat an argument, however long it is."""
    try:
        yield
    except click.ClickException as error:
        from magicdec.costmodel.base.errors import MAX_MESSAGE_LENGTH
        from magicdec.costmodel.base.names import shortened

        vars(error)["message"] = shortened(error.message, MAX_MESSAGE_LENGTH // 2)
        raise


def explained(error: Exception, known: Mapping[str, str]) -> list[str]:
    """The lines that tell a user what went wrong."""
    from magicdec.costmodel.base.errors import InputError

    if isinstance(error, InputError):
        return messages(error, known)
    if isinstance(error, ImportError):
        from ..inputs.extras import missing_extra

        if (advice := missing_extra(error)) is not None:
            return [f"error: {advice}"]
    if isinstance(error, MemoryError):
        return ["error: out of memory"]
    if isinstance(error, OSError) and not isinstance(error, ImportError):
        return [f"error: {error.filename or 'input or output'}: {error.strerror or error}"]
    from magicdec.costmodel.base.names import one_line, shortened

    text = shortened(one_line(str(error)), 300)
    return [f"error: {FAULT} ({type(error).__name__}: {text}); {DEBUG}=1 shows where: please report it"]


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as people read it: without the line of code that gave it."""
    click.echo(f"note: {message}", err=True)


def flags(command: click.Command | None) -> dict[str, str]:
    """What each parameter of a command is called on the command line."""
    found = {}
    for parameter in command.params if command is not None else ():
        if parameter.name is not None:
            found[parameter.name] = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
    return {**{name: flag for name, flag in ALIASES.items() if flag in found.values()}, **found}


def messages(error: InputError, known: Mapping[str, str]) -> list[str]:
    """A line for every problem; parameters, which API and cost model call by name, are called by their flags."""
    lines = []
    for problem in error.problems:
        where = known.get(problem.where, problem.where)
        place = f"{where}: {problem.key}" if problem.key else where
        line = f"error: {place}: expected {problem.expected}, found {problem.found}"
        lines.append(with_flags(line, known))
    from magicdec.costmodel.base.errors import within_message

    return within_message(lines)


def with_flags(text: str, known: Mapping[str, str]) -> str:
    """A text of the API, in which parameters stand in backticks, with their flags instead."""
    return re.sub(r"`(\w+)`", lambda match: known.get(match[1], match[0]), text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="magicdec")
def main() -> None:
    """Predict, plan and run speculative decoding.

    Does it pay on my model, my GPUs, my batch size and context length? With
    which draft, how many draft tokens, how many KV entries? How much faster?

    \b
    Start with:
      magicdec demo
      magicdec predict --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 \\
                       --batch-size 64 --context-len 32k
      magicdec plan    --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 \\
                       --batch-size 64 --context-len 32k -o plan.yaml

    Lengths take k (1000) and Ki (1024), times take ms and s.
    """
