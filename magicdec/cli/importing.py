"""`magicdec import`."""

from __future__ import annotations

import click

from .options import refuse_two_on_stdout


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--model", metavar="NAME", help="What ran, where the files do not say it.")
@click.option("--hardware", metavar="NAME", help="Where it ran.")
@click.option("--engine", metavar="NAME", help="vllm, sglang, llama.cpp, ...")
@click.option("--quant", metavar="TYPE", help="Type of the weights, such as Q4_K_M or fp8.")
@click.option("-o", "--output", metavar="FILE", help="Write the measurements as CSV; - for stdout.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def import_(
    files: tuple[str, ...],
    model: str | None,
    hardware: str | None,
    engine: str | None,
    quant: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Read what other tools measured: benchmarks, logs, metrics.

    FILES are results of vllm bench serve, SGLang's bench_serving and
    bench_one_batch, llama-bench (-o json), llama-batched-bench (jsonl), logs of
    vLLM (--enable-logging-iteration-details) and llama-server, or the /metrics
    page of a vLLM or SGLang server. What wrote a file is recognised.

    \b
      magicdec import serve.json --hardware h100-sxm -o mine.csv
      magicdec validate mine.csv
    """
    import json

    refuse_two_on_stdout("json" if as_json else None, output)
    from ..api.importing import import_results

    found = import_results(files, model=model, hardware=hardware, engine=engine, quant=quant, output=output)
    click.echo(str(found), err=as_json or output == "-")
    if as_json:
        click.echo(json.dumps(found.document(), indent=2, allow_nan=False))
