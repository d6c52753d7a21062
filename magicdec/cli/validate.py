"""`magicdec validate`."""

from __future__ import annotations

import click

from .options import emit, output_options


@click.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--figure", type=click.Path(), metavar="DIR", help="Draw predicted against measured into this folder.")
@output_options
def validate(files: tuple[str, ...], figure: str | None, as_json: str | None, output: str | None) -> None:
    """Check predictions against published and own measurements.

    FILES are measurements that `magicdec run --compare --measurements` wrote, or CSV files of measurements as people publish
    them, with columns such as model, gpu, engine, quant, context_len, gamma, tokens_per_round and decode_tok_s.
    """
    from ..api.validate import validate as check

    emit(check(files, figure=figure), as_json=as_json, output=output)
