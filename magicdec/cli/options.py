"""What commands share: quantities with units, recurring options, and how a result is printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

if TYPE_CHECKING:
    from ..results.base import Result

Command = TypeVar("Command", bound=Callable[..., Any])


class _Tokens(click.ParamType):
    """A positive number of tokens or sequences, with prefixes."""

    name = "NUMBER"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from magicdec.costmodel.base.units import parse_tokens

        return value if isinstance(value, int) else parse_tokens(str(value), _flag(param))


class _Seconds(click.ParamType):
    """A positive time, with a unit."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from magicdec.costmodel.base.units import parse_seconds

        return value if isinstance(value, float) else parse_seconds(str(value), _flag(param))


class _TokenList(click.ParamType):
    """Several, separated by commas, and ranges; a range is its ends and the doublings between them, or every number."""

    name = "NUMBER|RANGE,..."

    def __init__(self, *, every: bool = False):
        self._every = every

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        from magicdec.costmodel.base.units import parse_token_range

        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        return tuple(one for part in parts for one in parse_token_range(part, _flag(param), every=self._every))


class _RateList(click.ParamType):
    """One probability, or several separated by commas."""

    name = "RATE[,...]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            rates = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            rates = (-1.0,)
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            expected = "a probability from 0 to 1, or one for each draft position, separated by commas"
            self.fail(f"{value!r}: expected {expected}.", param, ctx)
        return rates


class _Columns(click.ParamType):
    """What each of several columns is called, as KEY=NAME separated by commas."""

    name = "KEY=NAME,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        pairs = [part.partition("=") for part in str(value).split(",")]
        if not all(key.strip() and equals and name.strip() for key, equals, name in pairs):
            self.fail(f"{value!r}: expected KEY=NAME, several separated by commas.", param, ctx)
        return {key.strip(): name.strip() for key, _, name in pairs}


class _Prices(click.ParamType):
    """A price, or one for each of several machines."""

    name = "PRICE|NAME=PRICE,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | dict[str, float]:
        if not isinstance(value, str):
            assert isinstance(value, float | dict)
            return value
        parts = [part.rpartition("=") for part in value.split(",")]
        try:
            prices = {name.strip(): float(price) for name, _, price in parts}
        except ValueError:
            self.fail(f"{value!r}: expected dollars per GPU and hour, or HARDWARE=DOLLARS,...", param, ctx)
        return prices[""] if list(prices) == [""] else prices


def _flag(param: click.Parameter | None) -> str:
    return param.opts[0] if param else "value"


TOKENS, SECONDS, RATE_LIST, COLUMNS = _Tokens(), _Seconds(), _RateList(), _Columns()
PRICES = _Prices()
TOKEN_LIST, EVERY_TOKEN_LIST = _TokenList(), _TokenList(every=True)


class Acceptance(TypedDict):
    """Acceptance as the API takes it."""

    acceptance_rate: float | None
    acceptance_by_position: Sequence[float] | None


def acceptance(rates: Sequence[float] | None) -> Acceptance:
    """One rate for all draft positions, or one for each."""
    if rates is None:
        return {"acceptance_rate": None, "acceptance_by_position": None}
    if len(rates) == 1:
        return {"acceptance_rate": rates[0], "acceptance_by_position": None}
    return {"acceptance_rate": None, "acceptance_by_position": rates}


def options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def json_option(what: str) -> Callable[[Command], Command]:
    """`--json` and the other formats of a command whose result is `what`."""
    return options(
        click.option("--json", "as_json", flag_value="json", help=f"Print {what} as JSON on stdout; text goes to stderr."),
        click.option("--csv", "as_json", flag_value="csv", help="The rows of its tables as CSV instead."),
        click.option("--jsonl", "as_json", flag_value="jsonl", help="The rows as JSON lines instead."),
        click.option("--md", "as_json", flag_value="md", help="The rows as a Markdown table instead."),
    )


output_options = options(
    json_option("the result"),
    click.option(
        "-o", "--output", type=click.Path(), metavar="FILE", help="Write it to this file: JSON, or rows for .csv, .jsonl and .md."
    ),
)
gpu_options = options(
    click.option("--num-gpus", type=TOKENS, default=1, show_default=True, help="Total number of GPUs."),
    click.option("--tensor-parallel", type=TOKENS, help="GPUs that share one replica.  [default: all]"),
)
ENGINE_HELP = (
    "What runs it: vllm, vllm-vegas, sglang, tensorrt-llm, llama.cpp, transformers, or an engine profile.  "
    "[default: what the machine was calibrated with]"
)
HARDWARE_HELP = "A GPU (see `magicdec profiles`), `local` or `cpu` (of this machine), a profile file, or several, with commas."
MODEL_HELP = "`reference`, a model's name or Hub id, a config.json, GGUF file or checkpoint directory."
model_option = click.option("--model", help=MODEL_HELP)
hardware_option = click.option("--hardware", help=HARDWARE_HELP)
machine_options = options(
    click.option("--model", required=True, help=MODEL_HELP),
    click.option("--hardware", required=True, help=HARDWARE_HELP),
    gpu_options,
)
acceptance_option = click.option(
    "--acceptance-rate",
    type=RATE_LIST,
    help="Acceptance probability of a draft token, given that all earlier ones were accepted; several for draft positions "
    "1, 2, ...  [default: the best curve known]",
)
type_options = options(
    click.option("--weight-dtype", help="Target weights in fp8, int8 or int4.  [default: as in the checkpoint]"),
    click.option("--kv-dtype", help="Target KV cache in fp8, int8 or int4; in q8_0 or q4_0 for llama.cpp."),
    click.option(
        "--verify-kernel",
        help="How verification reads the KV cache: shared_kv_splitkv, shared_kv_no_split or per_token.  [default: the engine's]",
    ),
    click.option("--engine", help=ENGINE_HELP),
    click.option(
        "--quant", help="Quantisation of the weights, as files are named: Q4_K_M, AWQ, NVFP4.  [default: as the name says]"
    ),
    click.option("--task", help="What is generated: code, chat, prose, reasoning or summary.  [default: a mean over tasks]"),
)
draft_type_options = options(
    click.option("--draft-kv-dtype", help="KV cache that a self draft reads, in fp8, int8 or int4."),
    click.option("--draft-weight-dtype", help="Weights that a self draft reads, in fp8, int8 or int4."),
)


def refuse_two_on_stdout(as_json: str | None, output: str | None) -> None:
    """--json and -o - both want standard output."""
    if as_json and output == "-":
        raise click.UsageError(f"--{as_json} prints on stdout already: leave out -o -, or name a file.")


@contextmanager
def overwriting(path: str | None) -> Iterator[None]:
    """Say that a file was replaced, if it was there before the block wrote it."""
    there = path is not None and os.path.isfile(path)
    yield
    if there:
        click.echo(f"replaced {path}", err=True)


def emit(result: Result, *, as_json: str | None, output: str | None = None) -> None:
    """Print a result: its text (`str(result)`, see `magicdec/results/`), or a format on stdout and the text on stderr.

    `output` gets the format that its name ends in; JSON if it names none.
    """
    from ..files.formats import format_of, rendered
    from ..files.writing import write_text

    refuse_two_on_stdout(as_json, output)
    if output is not None:
        with overwriting(output):
            write_text(output, rendered(result, format_of(output)))
    click.echo(str(result), err=as_json is not None)
    if as_json is not None:
        click.echo(rendered(result, as_json), nl=False)
