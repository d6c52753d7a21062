"""`magicdec regimes`."""

from __future__ import annotations

import click

from .options import TOKENS, emit, machine_options, output_options, type_options


@click.command()
@machine_options
@click.option("--batch-size", type=TOKENS, default=64, show_default=True, help="Where budgets are compared.")
@click.option(
    "--context-len", type=TOKENS, default=32000, show_default=True, help="Where budgets and the small draft are compared."
)
@click.option("--kv-policy", help="KV policy of the self draft.  [default: streaming_llm]")
@click.option("--kv-budget", type=TOKENS, default=512, show_default=True, help="KV budget of the self draft.")
@click.option("--small-draft", help="A draft model: from which batch size does self-speculation overtake it?")
@click.option("--speedup", type=click.FloatRange(min=1.0), default=1.2, show_default=True, help="Wanted speedup, for the budgets.")
@type_options
@output_options
def regimes(
    model: str,
    hardware: str,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_size: int,
    context_len: int,
    kv_policy: str | None,
    kv_budget: int,
    small_draft: str | None,
    speedup: float,
    weight_dtype: str | None,
    kv_dtype: str | None,
    verify_kernel: str | None,
    engine: str | None,
    task: str | None,
    quant: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Find where the picture changes.

    Shows the bottleneck over batch and context, the critical context, the
    acceptance and KV budgets a speedup needs, and which draft wins from where.
    """
    from ..api.regimes import regimes as find

    result = find(
        model,
        hardware,
        batch_size=batch_size,
        context_len=context_len,
        kv_policy=kv_policy,
        kv_budget=kv_budget,
        small_draft=small_draft,
        speedup=speedup,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        verify_kernel=verify_kernel,
        engine=engine,
        task=task,
        quant=quant,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
    )
    emit(result, as_json=as_json, output=output)
