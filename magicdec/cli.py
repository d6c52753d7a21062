"""The command line: one small handler a command, importing what it needs when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from costmodel.errors import InputError
from costmodel.units import parse_seconds, parse_tokens
from magicdec import __version__

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


TOKENS, SECONDS, TOKEN_LIST = _Tokens(), _Seconds(), _TokenList()


class _Group(click.Group):
    """Bad input ends with its message and exit code 2, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo("\n".join(f"error: {problem}" for problem in error.problems), err=True)
            ctx.exit(2)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except OSError as error:
            click.echo(f"error: {error.filename or 'input or output'}: {error.strerror or error}", err=True)
            ctx.exit(2)


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
    type=click.FloatRange(0.0, 1.0),
    help="Chance that a draft token is accepted, those before it having been; by default from the best curve known.",
)


def refuse_two_on_stdout(as_json: bool, output: str | None) -> None:
    """--json and -o - both want standard output."""
    if as_json and output == "-":
        raise click.UsageError("--json prints on stdout already: leave out -o -, or name a file.")


def emit(document: Any, words: str, *, as_json: bool, output: str | None) -> None:
    """Show a result: text on stdout, or JSON on stdout and the text on stderr; `output` gets the JSON document too."""
    from magicdec.files import output_file

    refuse_two_on_stdout(as_json, output)
    rendered = json.dumps(document, indent=2, allow_nan=False)
    if output is not None:
        with output_file(output) as file:
            assert file is not None
            file.write(rendered + "\n")
    click.echo(words, err=as_json)
    if as_json:
        click.echo(rendered)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="magicdec")
def main() -> None:
    """Does speculative decoding pay on my model, my GPUs, my batch and context - with which draft, how many tokens, how much KV?

    \b
    Start with:
      magicdec demo                      everything on the shipped model and this machine
      magicdec predict --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 64 --context-len 32k
      magicdec plan    --model llama-3.1-8b --hardware h100-sxm --num-gpus 8 --batch-size 64 --context-len 32k -o plan.yaml

    Lengths take k (1000) and Ki (1024), times ms and s.
    """


@main.command()
@click.option("--quick", is_flag=True, help="A small point: batch 8, context 4096.")
@click.option("--batch-size", type=TOKENS, help="Sequences.  [default: 16]")
@click.option("--context-len", type=TOKENS, help="Longest prompt.  [default: 8192]")
@click.option("--max-new-tokens", type=TOKENS, default=64, show_default=True, help="New tokens per sequence.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("magicdec-demo"), show_default=True, help="For its files.")
@click.option("--remeasure", is_flag=True, help="Measure this machine's profile again instead of using the kept one.")
@output_options
def demo(
    quick: bool,
    batch_size: int | None,
    context_len: int | None,
    max_new_tokens: int,
    folder: Path,
    remeasure: bool,
    as_json: bool,
    output: str | None,
) -> None:
    """Predict, plan, run and compare on the shipped model, this machine and real text. About two minutes."""
    from magicdec.demo import run_demo

    document, words = run_demo(
        batch_size=batch_size or (8 if quick else 16),
        context_len=context_len or (4096 if quick else 8192),
        max_new_tokens=max_new_tokens,
        folder=folder,
        remeasure=remeasure,
    )
    emit(document, words, as_json=as_json, output=output)


@main.command()
@click.option("--model", help="`reference`, a built-in name, a config.json or a checkpoint directory.")
@click.option("--hardware", help="A profile's name (see `magicdec profiles`), `cpu`, or a profile file.")
@gpu_options
@click.option("--batch-size", type=TOKENS, help="Sequences decoded together.")
@click.option("--context-len", type=TOKENS, help="Tokens in the KV cache, per sequence.")
@click.option("--draft", default="self", show_default=True, help="`none`, `self`, or the name of a smaller model.")
@click.option("--kv-policy", help="full, streaming_llm or snapkv.  [default: streaming_llm for self, else full]")
@click.option("--kv-budget", type=TOKENS, help="KV entries the draft reads, per sequence.  [default: 512]")
@click.option("--gamma", type=TOKENS, help="Draft tokens per round.  [default: the best]")
@acceptance_option
@click.option("--mean-acceptance-length", type=click.FloatRange(min=1.0), help="Tokens per round, bonus included, instead.")
@click.option(
    "--verify-kernel",
    default="shared_kv_splitkv",
    show_default=True,
    help="How verification reads the KV cache: shared_kv_splitkv, shared_kv_no_split or per_token.",
)
@click.option("--scenarios", type=click.Path(), help="Price every row of this CSV file instead; -o takes the CSV that results.")
@output_options
def predict(scenarios: str | None, as_json: bool, output: str | None, **question: Any) -> None:
    """Predict one situation: step times, what bounds them, speedup, memory. Or, with --scenarios, many."""
    if scenarios is not None:
        return _predict_scenarios(scenarios, as_json=as_json, output=output)
    from magicdec.answers import prediction_document
    from magicdec.text import prediction_text

    for name in ("model", "hardware", "batch_size", "context_len"):
        if question[name] is None:
            raise click.UsageError(f"Missing option '--{name.replace('_', '-')}'.")
    document = prediction_document(**question)
    emit(document, prediction_text(document), as_json=as_json, output=output)


def _predict_scenarios(source: str, *, as_json: bool, output: str | None) -> None:
    import csv

    from magicdec.files import output_file
    from magicdec.scenarios import price_file

    priced = price_file(source)
    rows = list(csv.DictReader(priced.splitlines()))
    failed = sum(bool(row["error"]) for row in rows)
    with output_file(output or (None if as_json else "-")) as file:
        if file is not None:
            file.write(priced)
    click.echo(f"{len(rows)} scenarios, {failed} of them not priced (see the error column)", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2))


@main.command()
@machine_options
@click.option("--batch-size", "batch_sizes", type=TOKEN_LIST, required=True, help="Sequences; several to choose from.")
@click.option("--context-len", type=TOKENS, required=True, help="Prompt length, per sequence.")
@click.option("--output-len", type=TOKENS, default=128, show_default=True, help="New tokens, per sequence.")
@click.option("--draft", "drafts", multiple=True, default=("self",), show_default=True, help="`self` or a model; repeatable.")
@click.option("--gamma", "gammas", type=TOKEN_LIST, help="Draft tokens per round to consider.  [default: 1 to 10]")
@click.option("--kv-budget", "kv_budgets", type=TOKEN_LIST, help="KV budgets to consider.  [default: 64 to 4096]")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    help="[default: latency, of several batch sizes throughput]",
)
@click.option("--max-tpot", "max_tpot_s", type=SECONDS, help="Most time per output token, such as 50ms.")
@acceptance_option
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write the plan (YAML) to this file, for `magicdec run`.")
def plan(as_json: bool, output: str | None, **question: Any) -> None:
    """Choose the best strategy for a workload, with its runner-up, and write the plan."""
    from costmodel.plan import render_plan
    from magicdec.answers import plan_document
    from magicdec.files import output_file

    refuse_two_on_stdout(as_json, output)
    made, words = plan_document(**question)
    with output_file(output) as file:
        if file is not None:
            file.write(render_plan(made))
    emit(made.model_dump(mode="json"), words, as_json=as_json, output=None)


@main.command()
@click.argument("plan_file", type=click.Path(), metavar="PLAN")
@click.option("--prompts", required=True, help="One prompt a line, or JSON lines with id and prompt; - for stdin.")
@click.option("--model-dir", help="Checkpoint of the target.  [default: the plan's own]")
@click.option("--draft-dir", help="Checkpoint of the draft model.  [default: the plan's own]")
@click.option("--max-new-tokens", type=TOKENS, help="New tokens per prompt.  [default: the plan's output_len]")
@click.option("--compare", is_flag=True, help="Also decode plainly, compare the output token by token and report the speedup.")
@click.option("--repeats", type=TOKENS, default=1, show_default=True, help="With --compare: take turns so often, show medians.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--measurements", type=click.Path(), help="Append the measurement to this file, for `magicdec report`.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write the texts to this file, as JSON lines.")
def run(as_json: bool, plan_file: str, **how: Any) -> None:
    """Execute a plan on prompts and measure it beside the prediction."""
    from magicdec.answers import run_document

    refuse_two_on_stdout(as_json, how["output"])
    document, words = run_document(plan_file, texts_to_stdout=not as_json, stdin=sys.stdin, **how)
    click.echo(words, err=True)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    if not all(difference["near_tie"] for difference in document["differences"]):
        sys.exit(1)  # not lossless


@main.command()
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="What to measure.")
@click.option("--from-published", metavar="NAME", help="Fit this shipped profile to its published step times instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write the profile (YAML), for `--hardware FILE`.")
def calibrate(device: str, from_published: str | None, as_json: bool, output: str | None) -> None:
    """Fit a hardware profile to measurements: of this machine's CPU, or the published step times of a GPU."""
    from magicdec.calibration import calibration_text
    from magicdec.files import output_file

    document, words, rendered = calibration_text(from_published)
    with output_file(output) as file:
        if file is not None:
            file.write(rendered)
    emit(document, words, as_json=as_json, output=None)


@main.command()
@click.option("--model-dir", default="reference", show_default=True, help="Checkpoint directory, or `reference`.")
@click.option("--text", "text_file", type=click.Path(), help="Real text to continue.  [default: standard library text, held out]")
@click.option("--kv-budgets", type=TOKEN_LIST, default=(64, 128, 256, 512, 1024), help="Budgets to measure.")
@click.option("--context-lens", type=TOKEN_LIST, default=(1024, 4096, 8192), help="Prompt lengths to measure at.")
@click.option("--rows", type=TOKENS, default=8, show_default=True, help="Places in the text.")
@click.option("--gamma", type=TOKENS, default=4, show_default=True, help="Draft tokens per round.")
@click.option("--max-new-tokens", type=TOKENS, default=96, show_default=True, help="New tokens per place.")
@click.option("--json", "as_json", is_flag=True, help="Print the curve as JSON on stdout; text goes to stderr.")
@click.option(
    "-o", "--output", type=click.Path(), help="Write the curve; as acceptance.yaml beside a checkpoint, planning uses it."
)
def acceptance(as_json: bool, output: str | None, **how: Any) -> None:
    """Measure how often a model accepts its own sparse drafts, over budgets and contexts, on real text."""
    from costmodel.acceptance import render_curves
    from magicdec.answers import acceptance_document
    from magicdec.files import output_file

    curve, words = acceptance_document(**how)
    with output_file(output) as file:
        if file is not None:
            file.write(render_curves([curve]))
    emit(curve, words, as_json=as_json, output=None)


@main.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--model", help="Model of the planning figures.  [default: the first plan's, else llama-3.1-8b]")
@click.option("--hardware", help="Their machine.  [default: the first plan's, else h100-sxm]")
@click.option("--num-gpus", type=TOKENS, help="GPUs in all.  [default: the first plan's, else 8]")
@click.option("--tensor-parallel", type=TOKENS, help="GPUs that share the model; all of them by default.")
@click.option("--batch-sizes", type=TOKEN_LIST, default=(1, 4, 16, 32, 64, 128, 256), help="Batch axis.")
@click.option("--context-lens", type=TOKEN_LIST, default=(1000, 4000, 16000, 32000, 64000, 100000), help="Context axis.")
@click.option("--draft", default="self", show_default=True, help="`self` or a model.")
@click.option("--kv-policy", help="full, streaming_llm or snapkv.")
@click.option("--kv-budget", type=TOKENS, default=512, show_default=True)
@click.option("--ridge", "ridges", multiple=True, default=("a100-sxm-80gb", "h100-sxm", "l40"), help="GPUs whose ridge is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print the list of files as JSON on stdout.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the figures and the page.")
def report(as_json: bool, output: Path, **question: Any) -> None:
    """Planning figures (PNG and SVG) and one HTML page, for any model and machine; FILES are plans and measurements to compare."""
    from magicdec.answers import write_report

    written = write_report(output, **question)
    words = "\n".join(str(path) for path in written)
    emit({"files": [str(path) for path in written]}, words, as_json=as_json, output=None)


@main.command()
@output_options
def profiles(as_json: bool, output: str | None) -> None:
    """List the hardware profiles."""
    from magicdec.answers import list_profiles

    emit(*list_profiles(), as_json=as_json, output=output)


@main.command()
@output_options
def models(as_json: bool, output: str | None) -> None:
    """List the built-in models."""
    from magicdec.answers import list_models

    emit(*list_models(), as_json=as_json, output=output)


@main.command()
@output_options
def environment(as_json: bool, output: str | None) -> None:
    """What to paste into a bug report."""
    from magicdec.answers import describe_environment

    emit(*describe_environment(), as_json=as_json, output=output)
