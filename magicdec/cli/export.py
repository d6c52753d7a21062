"""`magicdec export`."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from .group import flags, with_flags
from .options import TOKENS, emit, json_option, refuse_two_on_stdout


@click.command()
@click.argument("plan", type=click.Path(), metavar="PLAN")
@click.option("--to", required=True, metavar="ENGINE", help="vllm, vllm-vegas, sglang, tensorrt-llm, transformers or llama.cpp.")
@click.option("--engine-version", help="The engine's version, where its options changed.  [default: the latest known]")
@click.option("--context-len", type=TOKENS, help="Context whose column of a policy table is exported.  [default: the plan's]")
@click.option("--experimental", is_flag=True, help="Use options that are proposed to the engine, or not documented.")
@click.option("--replay-acceptance", is_flag=True, help="Make the engine accept drafts as often as predicted, to check the speed.")
@click.option("--model-dir", help="Checkpoint or repository of the target.  [default: the plan's name]")
@click.option("--draft-dir", help="Checkpoint or repository of the draft.  [default: the plan's name]")
@click.option("--hardware", help="The plan's machine, where its name is not known here: a profile file.")
@click.option("--force", is_flag=True, help="Export a command that is slower than plain decoding, or does not fit, all the same.")
@json_option("the export")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE|DIR",
    help="Write a script to a file; or, into a folder, its files one by one.",
)
def export(
    plan: str,
    to: str,
    engine_version: str | None,
    context_len: int | None,
    experimental: bool,
    replay_acceptance: bool,
    model_dir: str | None,
    draft_dir: str | None,
    hardware: str | None,
    force: bool,
    as_json: str | None,
    output: str | None,
) -> None:
    """Express a plan as command and files of a serving engine.

    The command is priced again as the engine runs it: speedup and memory go to
    stderr, with what the engine cannot express.
    """
    from ..api.export import export as express

    refuse_two_on_stdout(as_json, output)
    result = express(
        plan,
        to,
        engine_version=engine_version,
        context_len=context_len,
        experimental=experimental,
        replay_acceptance=replay_acceptance,
        model_dir=model_dir,
        draft_dir=draft_dir,
        hardware=hardware,
        force=force,
    )
    known = flags(click.get_current_context().command)
    notes = tuple(with_flags(note, known) for note in result.notes)
    if output is not None:
        saved = replace(result, export=replace(result.export, notes=notes))
        there = {path for path in saved.paths(output) if os.path.isfile(path)}
        for written in saved.save(output):
            click.echo(f"{'replaced' if written in there else 'wrote'} {written}", err=True)
    if output != "-":
        emit(result, as_json=as_json)
    for note in notes:
        click.echo(f"note: {note}", err=True)
