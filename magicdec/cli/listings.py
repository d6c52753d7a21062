"""`magicdec profiles`, `magicdec models` and `magicdec environment`."""

from __future__ import annotations

import click

from .options import emit, output_options


@click.command()
@click.argument("name", required=False)
@output_options
def profiles(name: str | None, as_json: str | None, output: str | None) -> None:
    """List the hardware profiles, or print the file of one.

    NAME is what the driver, a shop or you call a GPU, or `local` for those of
    this machine. To change a profile: magicdec profiles NAME > my-gpu.yaml
    """
    from ..api.listings import profiles as known

    emit(known(name), as_json=as_json, output=output)


@click.command()
@click.argument("name", required=False, metavar="[NAME|PATH]")
@output_options
def models(name: str | None, as_json: str | None, output: str | None) -> None:
    """List the built-in models, or explain one: layers by kind, parameters, bytes of weights, KV cache and state.

    The one is a name, a Hub id, a config.json, a GGUF file or a checkpoint
    directory. Of weight files, only headers are read.
    """
    from ..api.listings import models as known

    emit(known(name), as_json=as_json, output=output)


@click.command()
@output_options
def environment(as_json: str | None, output: str | None) -> None:
    """Show versions and machine, for bug reports."""
    from ..api.listings import environment as found

    emit(found(), as_json=as_json, output=output)
