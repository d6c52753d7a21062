"""`magicdec run`."""

from __future__ import annotations

import json
import os
import sys

import click

from .group import INTERRUPTED
from .options import TOKENS, json_option, refuse_two_on_stdout


@click.command()
@click.argument("plan", type=click.Path(), metavar="PLAN")
@click.option("--prompts", required=True, metavar="FILE", help="One prompt a line, or JSON lines with id and prompt; - for stdin.")
@click.option("--model-dir", metavar="DIR", help="Checkpoint of the target.  [default: the plan's own]")
@click.option("--draft-dir", metavar="DIR", help="Checkpoint of the draft model.  [default: the plan's own]")
@click.option("--max-new-tokens", type=TOKENS, help="New tokens per prompt.  [default: the plan's output_len]")
@click.option("--stop", multiple=True, help="String that ends a completion and is left out of it; repeatable.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="Sampling temperature; 0 is greedy decoding.")
@click.option("--top-k", type=TOKENS, help="Top-k sampling.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus (top-p) sampling.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below min_p x the top probability.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sampling seed; each prompt draws by its own id.")
@click.option("--compare", is_flag=True, help="Also decode autoregressively, compare the outputs and report the speedup.")
@click.option(
    "--repeats", type=TOKENS, default=1, show_default=True, help="With --compare: alternate both modes N times and report medians."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to run.")
@click.option(
    "--measurements", type=click.Path(), metavar="FILE", help="Append the measurement to this file, for `magicdec report`."
)
@json_option("the measurement")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Append completions as JSON Lines; prompts already present are skipped.",
)
def run(
    plan: str,
    prompts: str,
    model_dir: str | None,
    draft_dir: str | None,
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    seed: int,
    compare: bool,
    repeats: int,
    device: str,
    measurements: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Run a plan on prompts, measured beside its prediction.

    With -o, each completion is on disk as soon as it is done; after an
    interruption the same command continues with the missing prompts.

    `torchrun --nproc-per-node 2 -m magicdec run ...` shares the models among
    two processes or GPUs.

    Exit code 1 means that an output was not lossless.
    """
    refuse_two_on_stdout(as_json, output)
    from magicdec.api.run import run as execute

    try:
        result = execute(
            plan,
            prompts,
            model_dir=model_dir,
            draft_dir=draft_dir,
            max_new_tokens=max_new_tokens,
            stop=stop,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            compare=compare,
            repeats=repeats,
            device=device,
            measurements=measurements,
            output=output or (None if as_json else "-"),
        )
    except KeyboardInterrupt:
        kept = f": completions in {output} are kept, and the same command continues" if output not in (None, "-") else ""
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"interrupted{kept}", err=True)
        sys.exit(INTERRUPTED)
    if result.is_rank0:
        click.echo(str(result), err=True)
        if as_json:
            click.echo(json.dumps(result.document(), indent=2))
    if not result.lossless:
        sys.exit(1)
