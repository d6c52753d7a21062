"""`magicdec compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from ..cli.options import PRICES, SECONDS, TOKEN_LIST, TOKENS, emit, output_options


@click.command()
@click.option("--model", multiple=True, required=True, help="A model, as in `plan`; repeatable.")
@click.option("--hardware", multiple=True, required=True, help="A GPU or a profile, as in `plan`; repeatable.")
@click.option("--num-gpus", type=TOKEN_LIST, help="GPUs in all; several, or a range, are rows.  [default: 1]")
@click.option("--tensor-parallel", type=TOKEN_LIST, help="GPUs that share one replica; several are rows.  [default: all]")
@click.option("--requests-per-s", type=click.FloatRange(0.0, min_open=True), help="A load: how many GPUs does it take?")
@click.option("--engine", multiple=True, help="Consider only what this engine runs; repeatable.")
@click.option("--draft", multiple=True, help="Drafts to choose from, as in `plan`; repeatable.")
@click.option("--each-draft", is_flag=True, help="A row for every draft, instead of the best of them.")
@click.option("--batch-size", type=TOKEN_LIST, help="Batch sizes to choose from.  [default: 1 to 256]")
@click.option("--context-len", type=TOKENS, required=True, help="Prompt length, per request.")
@click.option("--output-len", type=TOKENS, required=True, help="New tokens, per request.")
@click.option(
    "--cached-prefix", "cached_share", type=click.FloatRange(0.0, 1.0), default=0.0, help="Share of prompts that is cached."
)
@click.option("--max-tpot", "max_tpot_s", type=SECONDS, help="TPOT SLO: limit on the time per output token, such as 50ms.")
@click.option("--max-ttft", "max_ttft_s", type=SECONDS, help="TTFT SLO: limit on the time to first token, such as 2s.")
@click.option("--gpu-price", type=PRICES, help="Dollars per GPU and hour: one for all, or HARDWARE=DOLLARS,...")
@click.option(
    "--acceptance-rate", type=click.FloatRange(0.0, 1.0), help="Acceptance of a draft token.  [default: the best curve known]"
)
@click.option("--weight-dtype", help="Target weights in fp8, int8 or int4.")
@click.option("--kv-dtype", help="Target KV cache in fp8, int8 or int4.")
@click.option("--figure", type=click.Path(), metavar="FILE", help="Draw throughput against TPOT: PNG, SVG or PDF.")
@output_options
def compare(
    model: Sequence[str],
    hardware: Sequence[str],
    num_gpus: Sequence[int] | None,
    tensor_parallel: Sequence[int] | None,
    requests_per_s: float | None,
    engine: Sequence[str],
    draft: Sequence[str],
    each_draft: bool,
    batch_size: Sequence[int] | None,
    context_len: int,
    output_len: int,
    cached_share: float,
    max_tpot_s: float | None,
    max_ttft_s: float | None,
    gpu_price: float | Mapping[str, float] | None,
    acceptance_rate: float | None,
    weight_dtype: str | None,
    kv_dtype: str | None,
    figure: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Set machines, engines, models or drafts side by side.

    Every combination is a row, at its cheapest batch size within the limits:
    speed, cost per million tokens end to end, and what the prediction rests on.
    """
    from .compare import compare as make

    result = make(
        model,
        hardware,
        context_len=context_len,
        output_len=output_len,
        batch_size=batch_size,
        draft=draft or None,
        engine=engine or None,
        each_draft=each_draft,
        max_tpot_s=max_tpot_s,
        max_ttft_s=max_ttft_s,
        cached_share=cached_share,
        gpu_price=gpu_price,
        acceptance_rate=acceptance_rate,
        num_gpus=num_gpus,
        tensor_parallel=tensor_parallel,
        requests_per_s=requests_per_s,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        figure=figure,
    )
    emit(result, as_json=as_json, output=output)
