"""`magicdec predict`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .options import (
    TOKENS,
    acceptance,
    acceptance_option,
    draft_type_options,
    emit,
    gpu_options,
    hardware_option,
    model_option,
    output_options,
    overwriting,
    refuse_two_on_stdout,
    type_options,
)


@click.command()
@model_option
@hardware_option
@gpu_options
@click.option("--batch-size", type=TOKENS, help="Sequences decoded together.")
@click.option("--context-len", type=TOKENS, help="Tokens in the KV cache, per sequence.")
@click.option(
    "--draft", default="self", show_default=True, help="none, self, ngram, eagle3, mtp, a smaller model, or a draft's checkpoint."
)
@click.option("--kv-policy", help="full, streaming_llm, snapkv, topk, quest or pq.  [default: streaming_llm for self, else full]")
@click.option("--kv-budget", type=TOKENS, help="KV entries the draft reads, per sequence.  [default: 512]")
@click.option("--gamma", type=TOKENS, help="Draft tokens per round.  [default: the best]")
@click.option("--output-len", type=TOKENS, help="New tokens of a request with such a prompt: adds what is gained end to end.")
@acceptance_option
@click.option(
    "--mean-acceptance-length",
    type=click.FloatRange(min=1.0),
    help="Tokens per round, bonus token included, in place of --acceptance-rate; needs --gamma.",
)
@type_options
@draft_type_options
@click.option(
    "--draft-tensor-parallel", type=TOKENS, help="GPUs that share a draft model.  [default: its KV heads, up to the target's]"
)
@click.option(
    "--scenarios", type=click.Path(), metavar="CSV", help="Predict every row of this file instead; -o takes the CSV that results."
)
@output_options
def predict(
    model: str | None,
    hardware: str | None,
    num_gpus: int,
    tensor_parallel: int | None,
    batch_size: int | None,
    context_len: int | None,
    draft: str,
    kv_policy: str | None,
    kv_budget: int | None,
    gamma: int | None,
    acceptance_rate: Sequence[float] | None,
    mean_acceptance_length: float | None,
    weight_dtype: str | None,
    kv_dtype: str | None,
    verify_kernel: str | None,
    engine: str | None,
    task: str | None,
    quant: str | None,
    draft_kv_dtype: str | None,
    draft_weight_dtype: str | None,
    draft_tensor_parallel: int | None,
    output_len: int | None,
    scenarios: str | None,
    as_json: str | None,
    output: str | None,
) -> None:
    """Predict step times, bottleneck, speedup and memory.

    For one point, or for every row of a CSV file with --scenarios.
    """
    if scenarios is not None:
        _refuse_beside_scenarios()
        return _predict_scenarios(scenarios, as_json=as_json, output=output)
    from ..api.predict import predict as predict_point

    if model is None or hardware is None or batch_size is None or context_len is None:
        given = {"--model": model, "--hardware": hardware, "--batch-size": batch_size, "--context-len": context_len}
        raise click.UsageError(f"Missing option '{next(flag for flag, value in given.items() if value is None)}'.")
    result = predict_point(
        model,
        hardware,
        batch_size=batch_size,
        context_len=context_len,
        draft=draft,
        kv_policy=kv_policy,
        kv_budget=kv_budget,
        gamma=gamma,
        mean_acceptance_length=mean_acceptance_length,
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
        draft_tensor_parallel=draft_tensor_parallel,
        output_len=output_len,
        **acceptance(acceptance_rate),
    )
    emit(result, as_json=as_json, output=output)


def _refuse_beside_scenarios() -> None:
    """The columns of a scenario file say what options say otherwise."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and param.name not in ("scenarios", "as_json", "output"):
            raise click.UsageError(f"{param.opts[0]} beside --scenarios: write it as a column of the file.")


def _predict_scenarios(source: str, *, as_json: str | None, output: str | None) -> None:
    import json

    from magicdec.costmodel.base.errors import bad

    from ..api.scenarios import predict_scenarios
    from ..files.writing import write_text

    refuse_two_on_stdout(as_json, output)
    table = predict_scenarios(source)
    with overwriting(output):
        write_text(output or (None if as_json else "-"), table.to_csv())
    click.echo(table.headline, err=True)
    if as_json:
        click.echo(json.dumps(table.document(), indent=2, allow_nan=False))
    if not table.predicted and "model" not in table.columns:  # of what people measured, much has no law
        raise bad(source, "error", "a scenario that can be predicted", f"none; the first says: {table.cells[0]['error']}")
