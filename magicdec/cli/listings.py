"""`magicdec profiles`, `magicdec models` and `magicdec environment`."""

from __future__ import annotations

import click

from .options import emit, output_options


@click.command()
@output_options
def profiles(as_json: bool, output: str | None) -> None:
    """List the hardware profiles."""
    from ..api.listings import profiles as known

    emit(known(), as_json=as_json, output=output)


@click.command()
@output_options
def models(as_json: bool, output: str | None) -> None:
    """List the built-in models."""
    from ..api.listings import models as known

    emit(known(), as_json=as_json, output=output)


@click.command()
@output_options
def environment(as_json: bool, output: str | None) -> None:
    """Show versions and machine, for bug reports."""
    from ..api.listings import environment as found

    emit(found(), as_json=as_json, output=output)
