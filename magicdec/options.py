"""What commands share: how quantities are written, options that recur, and how a result is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from magicdec.costmodel.base.units import parse_seconds, parse_tokens

Command = TypeVar("Command", bound=Callable[..., Any])


class _Tokens(click.ParamType):
    """A positive number of tokens or sequences, with prefixes."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_tokens(value, param.opts[0] if param else "value")


class _Seconds(click.ParamType):
    """A positive time, with a unit."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return value if isinstance(value, float) else parse_seconds(value, param.opts[0] if param else "value")


class _TokenList(click.ParamType):
    """Several, separated by commas."""

    name = "NUMBER,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(parse_tokens(part, param.opts[0] if param else "value") for part in value.split(","))


class _RateList(click.ParamType):
    """One probability, or several separated by commas."""

    name = "RATE[,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            rates = tuple(float(part) for part in value.split(","))
        except ValueError:
            rates = (-1.0,)
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            self.fail(
                f"{value!r}: expected a probability from 0 to 1, or one for each draft position, separated by commas.", param, ctx
            )
        return rates


TOKENS, SECONDS, TOKEN_LIST, RATE_LIST = _Tokens(), _Seconds(), _TokenList(), _RateList()


def options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout; text goes to stderr."),
    click.option("-o", "--output", type=click.Path(), help="Write the result to this file."),
)
gpu_options = options(
    click.option("--num-gpus", type=TOKENS, default=1, show_default=True, help="GPUs in all."),
    click.option("--tensor-parallel", type=TOKENS, help="GPUs that share the model; all of them by default."),
)
machine_options = options(
    click.option("--model", required=True, help="`reference`, a built-in name, a config.json or a checkpoint directory."),
    click.option("--hardware", required=True, help="A profile's name (see `magicdec profiles`), `cpu`, or a profile file."),
    gpu_options,
)
acceptance_option = click.option(
    "--acceptance-rate",
    type=RATE_LIST,
    help="Chance that a draft token is accepted, those before it having been; several for draft positions 1, 2, ... "
    "[default: from the best curve known]",
)
type_options = options(
    click.option("--weight-dtype", help="The target's matrices in fp8, int8 or int4.  [default: as in its checkpoint]"),
    click.option("--kv-dtype", help="Its KV cache in fp8, int8 or int4."),
    click.option(
        "--verify-kernel",
        default="shared_kv_splitkv",
        show_default=True,
        help="How verification reads the KV cache: shared_kv_splitkv, shared_kv_no_split or per_token.",
    ),
)
draft_type_options = options(
    click.option("--draft-kv-dtype", help="A self draft that reads its KV in fp8, int8 or int4."),
    click.option("--draft-weight-dtype", help="A self draft that reads its weights in fp8, int8 or int4."),
)


def refuse_two_on_stdout(as_json: bool, output: str | None) -> None:
    """--json and -o - both want standard output."""
    if as_json and output == "-":
        raise click.UsageError("--json prints on stdout already: leave out -o -, or name a file.")


def emit(document: Any, words: str, *, as_json: bool, output: str | None) -> None:
    """Show a result: text on stdout, or JSON on stdout and the text on stderr; `output` gets the JSON document too."""
    from .files import output_file

    refuse_two_on_stdout(as_json, output)
    rendered = json.dumps(document, indent=2, allow_nan=False)
    if output is not None:
        with output_file(output) as file:
            assert file is not None
            file.write(rendered + "\n")
    click.echo(words, err=as_json)
    if as_json:
        click.echo(rendered)
