"""`magicdec report`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .options import TOKEN_LIST, TOKENS, emit, json_option


@click.command()
@click.argument("files", nargs=-1, type=click.Path())
@click.option("--model", help="Model of the planning figures.  [default: the first plan's, else llama-3.1-8b]")
@click.option("--hardware", help="Their machine.  [default: the first plan's, else h100-sxm]")
@click.option("--num-gpus", type=TOKENS, help="Total number of GPUs.  [default: the first plan's, else 8]")
@click.option("--tensor-parallel", type=TOKENS, help="GPUs that share one replica.  [default: all]")
@click.option("--batch-sizes", type=TOKEN_LIST, default="1,4,16,32,64,128,256", show_default=True, help="Batch axis.")
@click.option("--context-lens", type=TOKEN_LIST, default="1k,4k,16k,32k,64k,100k", show_default=True, help="Context axis.")
@click.option("--draft", help="`self`, another kind or a model.  [default: the first plan's, else self]")
@click.option("--kv-policy", help="full, streaming_llm or snapkv.")
@click.option("--kv-budget", type=TOKENS, help="KV entries the draft reads.  [default: the plan's, else 512]")
@click.option(
    "--ridge", "ridges", multiple=True, default=("a100-sxm-80gb", "h100-sxm", "l40"), help="GPU whose ridge is drawn; repeatable."
)
@json_option("the list of files")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="DIR", help="Folder for the figures and the page.")
def report(
    files: tuple[str, ...],
    model: str | None,
    hardware: str | None,
    num_gpus: int | None,
    tensor_parallel: int | None,
    batch_sizes: Sequence[int],
    context_lens: Sequence[int],
    draft: str | None,
    kv_policy: str | None,
    kv_budget: int | None,
    ridges: Sequence[str],
    as_json: str | None,
    output: str,
) -> None:
    """Draw planning figures (PNG and SVG) and one HTML page.

    FILES are plans and measurements; each pair is drawn predicted beside
    measured.
    """
    from ..api.report import report as write

    result = write(
        output,
        files,
        model=model,
        hardware=hardware,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        batch_sizes=batch_sizes,
        context_lens=context_lens,
        draft=draft,
        kv_policy=kv_policy,
        kv_budget=kv_budget,
        ridges=ridges,
    )
    emit(result, as_json=as_json)
