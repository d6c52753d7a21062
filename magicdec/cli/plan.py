"""`magicdec plan`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .options import (
    COLUMNS,
    EVERY_TOKEN_LIST,
    SECONDS,
    TOKEN_LIST,
    TOKENS,
    acceptance,
    acceptance_option,
    draft_type_options,
    emit,
    json_option,
    machine_options,
    overwriting,
    refuse_two_on_stdout,
    type_options,
)


@click.command()
@machine_options
@click.option("--batch-size", type=TOKEN_LIST, help="Sequences; several, or a range such as 8-128, to choose from.")
@click.option("--context-len", type=TOKEN_LIST, help="Prompt length, per sequence; with --sweep also several, or 2k-64k.")
@click.option("--output-len", type=TOKENS, help="New tokens, per sequence; end to end depends on it.  [default: 128, said]")
@click.option("--trace", type=click.Path(), metavar="FILE", help="Mixed lengths: a request trace or benchmark result, CSV or JSON.")
@click.option(
    "--trace-columns",
    type=COLUMNS,
    help="What the trace calls them, where that is not known: prompt_len=NAME,output_len=NAME,arrival_s=NAME.",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Map the best strategy over batch size and context, of given ranges or the usual ones; the table goes into the plan.",
)
@click.option(
    "--draft",
    multiple=True,
    help="self, ngram, eagle3, mtp, a model, or a draft's checkpoint; repeatable.  [default: self, or what --engine runs]",
)
@click.option("--kv-policy", multiple=True, help="streaming_llm, snapkv, topk, quest or pq; repeatable.  [default: the first two]")
@click.option("--kv-budget", type=TOKEN_LIST, help="KV budgets to choose from.  [default: 64 to 4096]")
@click.option("--gamma", type=EVERY_TOKEN_LIST, help="Draft tokens per round to choose from.  [default: 1 to 10]")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "cost"]),
    help="What is best.  [default: throughput with several batch sizes, else latency]",
)
@click.option("--max-tpot", "max_tpot_s", type=SECONDS, help="TPOT SLO: limit on the time per output token, such as 50ms.")
@click.option("--max-ttft", "max_ttft_s", type=SECONDS, help="TTFT SLO: limit on the time to first token, such as 2s.")
@click.option(
    "--cached-prefix",
    "cached_share",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    help="Share of each prompt that is cached.  [default: 0]",
)
@click.option("--queue-time", "queue_s", type=SECONDS, default=0.0, help="Wait before the prefill.  [default: none]")
@click.option("--gpu-price", type=click.FloatRange(min=0.0), help="Dollars per GPU and hour, for the cost of a million tokens.")
@acceptance_option
@type_options
@draft_type_options
@json_option("the plan")
@click.option(
    "-o", "--output", type=click.Path(), metavar="FILE", help="Write the plan (YAML), for `magicdec run` and `magicdec export`."
)
def plan(
    model: str,
    hardware: str,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_size: Sequence[int] | None,
    context_len: Sequence[int] | None,
    output_len: int | None,
    trace: str | None,
    trace_columns: dict[str, str] | None,
    sweep: bool,
    draft: Sequence[str],
    kv_policy: Sequence[str],
    kv_budget: Sequence[int] | None,
    gamma: Sequence[int] | None,
    objective: str | None,
    max_tpot_s: float | None,
    max_ttft_s: float | None,
    cached_share: float,
    queue_s: float,
    gpu_price: float | None,
    acceptance_rate: Sequence[float] | None,
    weight_dtype: str | None,
    kv_dtype: str | None,
    verify_kernel: str | None,
    engine: str | None,
    task: str | None,
    quant: str | None,
    draft_kv_dtype: str | None,
    draft_weight_dtype: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Choose the best strategy for a workload and write the plan."""
    from ..api.plan import plan as make

    refuse_two_on_stdout(as_json, output)
    result = make(
        model,
        hardware,
        batch_size=batch_size,
        context_len=context_len,
        output_len=output_len,
        trace=trace,
        trace_columns=trace_columns,
        sweep=sweep,
        draft=draft or None,
        kv_policy=kv_policy,
        kv_budget=kv_budget,
        gamma=gamma,
        objective=objective,
        max_tpot_s=max_tpot_s,
        max_ttft_s=max_ttft_s,
        cached_share=cached_share,
        queue_s=queue_s,
        gpu_price=gpu_price,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        verify_kernel=verify_kernel,
        engine=engine,
        task=task,
        quant=quant,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        draft_kv_dtype=draft_kv_dtype,
        draft_weight_dtype=draft_weight_dtype,
        **acceptance(acceptance_rate),
    )
    if output is not None:
        with overwriting(output):
            result.save(output)
    emit(result, as_json=as_json)
