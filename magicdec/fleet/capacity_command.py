"""`magicdec capacity`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..cli.options import SECONDS, TOKEN_LIST, TOKENS, emit, machine_options, output_options


@click.command()
@machine_options
@click.option("--batch-size", type=TOKEN_LIST, help="Concurrency: a range such as 8-256, or several.  [default: 1 to 256]")
@click.option("--context-len", type=TOKEN_LIST, help="Prompt lengths: a range such as 2k-64k, or several.  [default: 1k to 128k]")
@click.option("--output-len", type=TOKENS, required=True, help="New tokens, per request.")
@click.option("--draft", multiple=True, help="Drafts to choose from, as in `plan`; repeatable.")
@click.option("--engine", help="Consider only what this engine runs.")
@click.option("--max-tpot", "max_tpot_s", type=SECONDS, help="TPOT SLO: limit on the time per output token, such as 50ms.")
@click.option("--max-ttft", "max_ttft_s", type=SECONDS, help="TTFT SLO: limit on the time to first token, such as 2s.")
@click.option("--acceptance-rate", type=click.FloatRange(0.0, 1.0), help="Acceptance of draft tokens.  [default: the best curve]")
@click.option("--weight-dtype", help="Target weights in fp8, int8 or int4.")
@click.option("--kv-dtype", help="Target KV cache in fp8, int8 or int4.")
@output_options
def capacity(
    model: str,
    hardware: str,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_size: Sequence[int] | None,
    context_len: Sequence[int] | None,
    output_len: int,
    draft: Sequence[str],
    engine: str | None,
    max_tpot_s: float | None,
    max_ttft_s: float | None,
    acceptance_rate: float | None,
    weight_dtype: str | None,
    kv_dtype: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Find how many requests a machine serves at once.

    TPOT by concurrency and context, what is within the limits, and the highest
    concurrency that is.
    """
    from .capacity import capacity as find

    result = find(
        model,
        hardware,
        output_len=output_len,
        batch_size=batch_size,
        context_len=context_len,
        draft=draft or None,
        engine=engine,
        max_tpot_s=max_tpot_s,
        max_ttft_s=max_ttft_s,
        acceptance_rate=acceptance_rate,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
    )
    emit(result, as_json=as_json, output=output)
