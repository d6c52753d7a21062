"""`magicdec acceptance`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .options import TOKEN_LIST, TOKENS, emit, json_option


@click.command()
@click.option("--model-dir", default="reference", show_default=True, help="Checkpoint directory, or `reference`.")
@click.option(
    "--text", type=click.Path(), metavar="FILE", help="Real text to continue.  [default: standard library text, held out]"
)
@click.option(
    "--kv-policy",
    type=click.Choice(["streaming_llm", "snapkv", "topk", "quest", "full"]),
    help="What the draft reads.  [default: streaming_llm, or full with --kv-dtype]",
)
@click.option("--kv-dtype", type=click.Choice(["int8", "int4", "fp8"]), help="Type of the KV entries it reads, all of them.")
@click.option("--kv-budgets", type=TOKEN_LIST, default="64,128,256,512,1024", show_default=True, help="Budgets to measure.")
@click.option("--context-lens", type=TOKEN_LIST, default="1024,4096,8192", show_default=True, help="Prompt lengths to measure at.")
@click.option("--rows", type=TOKENS, default=8, show_default=True, help="Places in the text, decoded together.")
@click.option("--gamma", type=TOKENS, default=4, show_default=True, help="Draft tokens per round.")
@click.option("--max-new-tokens", type=TOKENS, default=96, show_default=True, help="New tokens at each place.")
@json_option("the curve")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Write the curve; as acceptance.yaml beside a checkpoint, planning uses it.",
)
def acceptance(
    model_dir: str,
    text: str | None,
    kv_policy: str | None,
    kv_dtype: str | None,
    kv_budgets: Sequence[int],
    context_lens: Sequence[int],
    rows: int,
    gamma: int,
    max_new_tokens: int,
    as_json: str | None,
    output: str | None,
) -> None:
    """Measure how often a model accepts its own drafts.

    Drafts read fewer or compressed KV entries; they are measured over budgets
    and contexts on real text.
    """
    from magicdec.api.acceptance import acceptance as measure

    result = measure(
        model_dir,
        text=text,
        kv_policy=kv_policy,
        kv_dtype=kv_dtype,
        kv_budgets=kv_budgets,
        context_lens=context_lens,
        rows=rows,
        gamma=gamma,
        max_new_tokens=max_new_tokens,
    )
    if output is not None:
        result.save(output)
    emit(result, as_json=as_json)
