"""`magicdec demo`."""

from __future__ import annotations

import click

from .options import TOKENS, emit, output_options


@click.command()
@click.option("--quick", is_flag=True, help="A small point: batch 8, context 4096.")
@click.option("--batch-size", type=TOKENS, help="Sequences.  [default: 16]")
@click.option("--context-len", type=TOKENS, help="Longest prompt.  [default: 8192]")
@click.option("--max-new-tokens", type=TOKENS, default=64, show_default=True, help="New tokens per sequence.")
@click.option("--folder", type=click.Path(), default="magicdec-demo", show_default=True, help="Where its files go.")
@click.option("--remeasure", is_flag=True, help="Measure this machine's profile again instead of using the stored one.")
@output_options
def demo(
    quick: bool,
    batch_size: int | None,
    context_len: int | None,
    max_new_tokens: int,
    folder: str,
    remeasure: bool,
    as_json: str | None,
    output: str | None,
) -> None:
    """Predict, plan, run and compare on the shipped model.

    Uses this machine and real text. Takes one to two minutes, half a minute with --quick.
    """
    from magicdec.render.progress import Reporter

    with Reporter(lambda words: click.echo(words, err=True)) as reporter, reporter.bar(0, "loading PyTorch", "step"):
        reporter.say("loading PyTorch")
        from magicdec.api.demo import demo as main_job

    result = main_job(
        batch_size=batch_size or (8 if quick else 16),
        context_len=context_len or (4096 if quick else 8192),
        max_new_tokens=max_new_tokens,
        folder=folder,
        remeasure=remeasure,
        say=lambda words: click.echo(words, err=True),
    )
    emit(result, as_json=as_json, output=output)
