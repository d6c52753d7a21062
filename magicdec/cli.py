"""The command line: one small handler a command, importing what it needs when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from magicdec.costmodel.base.errors import InputError

from . import __version__
from .options import (
    SECONDS,
    TOKEN_LIST,
    TOKENS,
    acceptance_option,
    draft_type_options,
    emit,
    gpu_options,
    machine_options,
    output_options,
    refuse_two_on_stdout,
    type_options,
)


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
    from .demo import run_demo

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
@click.option("--draft", default="self", show_default=True, help="none, self, ngram, eagle3, mtp, or the name of a smaller model.")
@click.option("--kv-policy", help="full, streaming_llm, snapkv, topk, quest or pq.  [default: streaming_llm for self, else full]")
@click.option("--kv-budget", type=TOKENS, help="KV entries the draft reads, per sequence.  [default: 512]")
@click.option("--gamma", type=TOKENS, help="Draft tokens per round.  [default: the best]")
@acceptance_option
@click.option("--mean-acceptance-length", type=click.FloatRange(min=1.0), help="Tokens per round, bonus included, instead.")
@type_options
@draft_type_options
@click.option("--draft-tensor-parallel", type=TOKENS, help="GPUs of a draft model.  [default: its KV heads, up to the target's]")
@click.option("--scenarios", type=click.Path(), help="Price every row of this CSV file instead; -o takes the CSV that results.")
@output_options
def predict(scenarios: str | None, as_json: bool, output: str | None, **question: Any) -> None:
    """Predict one situation: step times, what bounds them, speedup, memory. Or, with --scenarios, many."""
    if scenarios is not None:
        return _predict_scenarios(scenarios, as_json=as_json, output=output)
    from .answers import prediction_document
    from .text import prediction_text

    for name in ("model", "hardware", "batch_size", "context_len"):
        if question[name] is None:
            raise click.UsageError(f"Missing option '--{name.replace('_', '-')}'.")
    document = prediction_document(**question)
    emit(document, prediction_text(document), as_json=as_json, output=output)


def _predict_scenarios(source: str, *, as_json: bool, output: str | None) -> None:
    import csv

    from .files import output_file
    from .scenarios import price_file

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
@click.option("--batch-size", "batch_sizes", type=TOKEN_LIST, help="Sequences; several to choose from.")
@click.option("--context-len", type=TOKENS, help="Prompt length, per sequence.")
@click.option("--output-len", type=TOKENS, help="New tokens, per sequence.  [default: 128]")
@click.option("--trace", "trace_file", type=click.Path(), help="Mixed lengths: CSV or JSON lines with prompt_len and output_len.")
@click.option("--sweep", "sweeps", is_flag=True, help="The whole map over batch size and context; its table goes into the plan.")
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    default=("self",),
    show_default=True,
    help="self, ngram, eagle3, mtp or a model; repeatable.",
)
@click.option(
    "--kv-policy",
    "kv_policies",
    multiple=True,
    help="streaming_llm, snapkv, topk, quest or pq; repeatable.  [default: the first two]",
)
@click.option("--gamma", "gammas", type=TOKEN_LIST, help="Draft tokens per round to consider.  [default: 1 to 10]")
@click.option("--kv-budget", "kv_budgets", type=TOKEN_LIST, help="KV budgets to consider.  [default: 64 to 4096]")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "cost"]),
    help="[default: latency, of several batch sizes throughput]",
)
@click.option("--max-tpot", "max_tpot_s", type=SECONDS, help="Most time per output token, such as 50ms.")
@click.option("--gpu-price", type=click.FloatRange(min=0.0), help="Dollars per GPU and hour, for the cost of a million tokens.")
@acceptance_option
@type_options
@draft_type_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write the plan (YAML) to this file, for `magicdec run`.")
def plan(as_json: bool, output: str | None, **question: Any) -> None:
    """Choose the best strategy for a workload, with its runner-up, and write the plan."""
    from magicdec.costmodel.plans.plan import render_plan

    from .answers import plan_document
    from .files import output_file

    refuse_two_on_stdout(as_json, output)
    wishes = ("drafts", "kv_policies", "kv_budgets", "max_tpot_s", "draft_kv_dtype", "draft_weight_dtype")
    made, words = plan_document(wishes={name: question.pop(name) for name in wishes}, **question)
    with output_file(output) as file:
        if file is not None:
            file.write(render_plan(made))
    emit(made.model_dump(mode="json"), words, as_json=as_json, output=None)


@main.command()
@machine_options
@click.option("--batch-size", type=TOKENS, default=64, show_default=True, help="For the budgets.")
@click.option("--context-len", type=TOKENS, default=32000, show_default=True, help="For the budgets and the small draft.")
@click.option("--kv-policy", help="Of the self draft.  [default: streaming_llm]")
@click.option("--kv-budget", type=TOKENS, default=512, show_default=True)
@click.option("--small-draft", help="A draft model: from which batch size does self-speculation overtake it?")
@click.option("--speedup", type=click.FloatRange(min=1.0), default=1.2, show_default=True, help="Wanted, for the budgets.")
@type_options
@output_options
def regimes(as_json: bool, output: str | None, **question: Any) -> None:
    """Where the picture changes: what bounds a step, the critical context, the acceptance and budgets a speedup needs."""
    from .regimes import regimes_document

    document, words = regimes_document(**question)
    emit(document, words, as_json=as_json, output=output)


@main.command()
@click.argument("plan_file", type=click.Path(), metavar="PLAN")
@click.option("--prompts", required=True, help="One prompt a line, or JSON lines with id and prompt; - for stdin.")
@click.option("--model-dir", help="Checkpoint of the target.  [default: the plan's own]")
@click.option("--draft-dir", help="Checkpoint of the draft model.  [default: the plan's own]")
@click.option("--max-new-tokens", type=TOKENS, help="New tokens per prompt.  [default: the plan's output_len]")
@click.option("--stop", multiple=True, help="Text that ends a continuation and is left out of it; repeatable.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=TOKENS, help="Sample from so many likeliest tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="From the likeliest that reach this probability.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="From those at least so likely, beside the likeliest.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples; each prompt draws by its own id.")
@click.option("--compare", is_flag=True, help="Also decode plainly, compare the output token by token and report the speedup.")
@click.option("--repeats", type=TOKENS, default=1, show_default=True, help="With --compare: take turns so often, show medians.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--measurements", type=click.Path(), help="Append the measurement to this file, for `magicdec report`.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurement as JSON on stdout; text goes to stderr.")
@click.option(
    "-o", "--output", type=click.Path(), help="Append the texts to this file, as JSON lines; those there are not made again."
)
def run(as_json: bool, plan_file: str, **how: Any) -> None:
    """Execute a plan on prompts and measure it beside the prediction.

    With -o, each text is on disk as soon as it is done, in the order in which they are done; interrupted, the same command
    goes on with the prompts that are missing. `torchrun --nproc-per-node 2 -m magicdec run ...` shares the models among two
    processes or GPUs.
    """
    refuse_two_on_stdout(as_json, how["output"])
    from magicdec.executor.model.tensor_parallel import process_group

    from .executing import run_document

    with process_group(how["device"]) as ranks:
        try:
            document, words = run_document(plan_file, texts_to_stdout=not as_json, stdin=sys.stdin, ranks=ranks, **how)
        except KeyboardInterrupt:
            kept = f": the texts in {how['output']} are kept, the same command goes on" if how["output"] not in (None, "-") else ""
            if ranks.is_rank0:
                click.echo(f"interrupted{kept}", err=True)
            sys.exit(130)
    if ranks.is_rank0:
        click.echo(words, err=True)
    if as_json and ranks.is_rank0:
        click.echo(json.dumps(document, indent=2))
    if not all(difference["near_tie"] for difference in document["differences"]):
        sys.exit(1)  # not lossless


@main.command()
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="What to measure.")
@click.option("--from-published", metavar="NAME", help="Fit this profile's engine to its published step times instead.")
@click.option(
    "--from-aiconfigurator",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Fit kernel laws to the tables of the installed package aiconfigurator_core instead.",
)
@click.option("--system", metavar="NAME", help="With it: whose tables, such as h100_sxm.")
@click.option("--profile", metavar="NAME", help="With it: the profile that is fitted.  [default: that of the system]")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write the profile (YAML), for `--hardware FILE`.")
def calibrate(
    device: str,
    from_published: str | None,
    from_aiconfigurator: Path | None,
    system: str | None,
    profile: str | None,
    as_json: bool,
    output: str | None,
) -> None:
    """Fit a hardware profile to measurements: of this machine's CPU, kernel tables, or the published step times of a GPU."""
    if (system is not None or profile is not None) and from_aiconfigurator is None:
        raise click.UsageError("--system and --profile go with --from-aiconfigurator.")
    if from_published is not None and from_aiconfigurator is not None:
        raise click.UsageError("--from-published and --from-aiconfigurator are two steps: fit kernels first, engines on top.")
    from .calibration import calibration_text
    from .files import output_file

    document, words, rendered = calibration_text(from_published, from_aiconfigurator, system, profile)
    with output_file(output) as file:
        if file is not None:
            file.write(rendered)
    emit(document, words, as_json=as_json, output=None)


@main.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--figure", type=click.Path(path_type=Path), metavar="DIR", help="Draw predicted against measured into this folder.")
@output_options
def validate(files: tuple[str, ...], figure: Path | None, as_json: bool, output: str | None) -> None:
    """How well predictions hold, beside published step times and speedups and beside measurements in FILES (of `run --compare`)."""
    from .validation import validation

    document, words = validation(files, figure)
    emit(document, words, as_json=as_json, output=output)


@main.command()
@click.option("--model-dir", default="reference", show_default=True, help="Checkpoint directory, or `reference`.")
@click.option("--text", "text_file", type=click.Path(), help="Real text to continue.  [default: standard library text, held out]")
@click.option(
    "--kv-policy",
    type=click.Choice(["streaming_llm", "snapkv", "topk", "quest", "full"]),
    help="What the draft reads.  [default: streaming_llm, or full with --kv-dtype]",
)
@click.option("--kv-dtype", type=click.Choice(["int8", "int4", "fp8"]), help="Type of the KV entries it reads, all of them.")
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
    """Measure how often a model accepts its own sparse or compressed drafts, over budgets and contexts, on real text."""
    from magicdec.costmodel.speculation.acceptance import render_curves

    from .executing import acceptance_document
    from .files import output_file

    how["kv_policy"] = how["kv_policy"] or ("full" if how["kv_dtype"] else "streaming_llm")
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
    from .reporting import write_report

    written = write_report(output, **question)
    words = "\n".join(str(path) for path in written)
    emit({"files": [str(path) for path in written]}, words, as_json=as_json, output=None)


@main.command()
@click.argument("plan_file", type=click.Path(), metavar="PLAN")
@click.option("--to", required=True, help="vllm, vllm-vegas, sglang, tensorrt-llm, transformers or llama.cpp.")
@click.option("--engine-version", help="The engine's version, where its options changed.  [default: the latest known]")
@click.option("--context-len", type=TOKENS, help="Context whose column of a policy table is exported.  [default: the plan's own]")
@click.option("--experimental", is_flag=True, help="Use options that are proposed to the engine, or not documented.")
@click.option("--replay-acceptance", is_flag=True, help="Make the engine accept drafts as often as predicted, to check the speed.")
@click.option("--model-dir", help="Checkpoint or repository of the target.  [default: the plan's name]")
@click.option("--draft-dir", help="Checkpoint or repository of the draft.  [default: the plan's name]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout; text goes to stderr.")
@click.option("-o", "--output", type=click.Path(), help="Write a script to this file; or, in a folder, its files one by one.")
def export(plan_file: str, to: str, as_json: bool, output: str | None, **how: Any) -> None:
    """Print a plan as command, files and environment of a serving engine; what the engine cannot express goes to stderr."""
    from magicdec.costmodel.export.document import Options

    from .exporting import export_document

    refuse_two_on_stdout(as_json, output)
    document, script = export_document(plan_file, to, Options(**how), output)
    if output != "-":
        emit(document, script.rstrip(), as_json=as_json, output=None)
    for note in document["notes"]:
        click.echo(f"note: {note}", err=True)


@main.command()
@output_options
def profiles(as_json: bool, output: str | None) -> None:
    """List the hardware profiles."""
    from .listings import list_profiles

    emit(*list_profiles(), as_json=as_json, output=output)


@main.command()
@output_options
def models(as_json: bool, output: str | None) -> None:
    """List the built-in models."""
    from .listings import list_models

    emit(*list_models(), as_json=as_json, output=output)


@main.command()
@output_options
def environment(as_json: bool, output: str | None) -> None:
    """What to paste into a bug report."""
    from .listings import describe_environment

    emit(*describe_environment(), as_json=as_json, output=output)
