"""Results of `vllm bench serve` and `latency`, and of SGLang's `bench_serving` and `bench_one_batch`."""

from __future__ import annotations

import statistics

from magicdec.costmodel.base.errors import bad

from .measured import Document, Measured, conditional, number, numbers, text


def vllm_serve(where: str, document: Document) -> list[Measured]:
    """`vllm bench serve --save-result`.

    Raises:
        InputError: A number is missing or impossible.
    """
    tool = "vllm bench serve"
    completed = number(document, "completed", where, tool)
    if completed < 1:
        raise bad(where, "completed", "a run with at least one completed request", f"{completed:g}")
    prompt = number(document, "total_input_tokens", where, tool) / completed
    output = number(document, "total_output_tokens", where, tool) / completed
    concurrency = document.get("max_concurrency") or document.get("max_concurrent_requests")
    gamma, shares = None, numbers(document, "spec_decode_per_position_acceptance_rates")
    if shares:
        gamma = len(shares)
    length = document.get("spec_decode_acceptance_length")
    return [
        Measured(
            where,
            tool,
            model=text(document, "model_id"),
            engine="vllm" if document.get("backend") in ("vllm", "openai", "openai-chat") else text(document, "backend"),
            draft=None if gamma else "none",
            gamma=gamma or 0,
            batch_size=int(concurrency) if isinstance(concurrency, int) else None,
            context_len=round(prompt + output / 2),
            tokens_per_round=float(length) if isinstance(length, int | float) else None,
            acceptance_by_position=conditional(shares),
            tpot_s=number(document, "median_tpot_ms", where, tool) / 1e3,
            ttft_s=number(document, "median_ttft_ms", where, tool) / 1e3,
            samples=int(completed),
        )
    ]


def vllm_latency(where: str, document: Document) -> list[Measured]:
    """`vllm bench latency --output-json`: whole requests, prompt included. It does not say of how many tokens.

    Raises:
        InputError: Always: such a file holds no step time.
    """
    number(document, "avg_latency", where, "vllm bench latency")
    expected = "results that tell steps from prompts, such as those of `vllm bench serve --save-result`"
    raise bad(where, "avg_latency", expected, "whole requests of `vllm bench latency`, without batch size and lengths")


def sglang_serving(where: str, document: Document) -> list[Measured]:
    """A line of `python -m sglang.bench_serving --output-file`.

    Raises:
        InputError: A number is missing or impossible.
    """
    tool = "sglang.bench_serving"
    completed = max(number(document, "completed", where, tool), 1.0)
    prompt = number(document, "total_input_tokens", where, tool) / completed
    output = number(document, "total_output_tokens", where, tool) / completed
    length, concurrency = document.get("accept_length"), document.get("max_concurrency")
    speculative = isinstance(length, int | float) and length > 1
    info = document.get("server_info")
    server: Document = dict(info) if isinstance(info, dict) else {}
    steps = server.get("speculative_num_steps")
    return [
        Measured(
            where,
            tool,
            model=text(document, "model") or text(server, "model_path"),
            engine="sglang",
            num_gpus=_whole(server.get("tp_size")),
            draft=(text(server, "speculative_algorithm") or "").lower() or (None if speculative else "none"),
            gamma=_whole(steps) if speculative else 0,
            batch_size=_whole(concurrency),
            context_len=round(prompt + output / 2),
            tokens_per_round=float(length) if speculative and isinstance(length, int | float) else None,
            tpot_s=number(document, "median_tpot_ms", where, tool) / 1e3,
            ttft_s=number(document, "median_ttft_ms", where, tool) / 1e3,
            samples=int(completed),
        )
    ]


def sglang_one_batch(where: str, document: Document) -> list[Measured]:
    """A line of `python -m sglang.bench_one_batch --result-filename`.

    Raises:
        InputError: A number is missing or impossible.
    """
    tool = "sglang.bench_one_batch"
    if "median_decode_latency" not in document:
        return []  # one output token: the prompt alone
    output = number(document, "output_len", where, tool)
    return [
        Measured(
            where,
            tool,
            engine="sglang",
            draft="none",
            gamma=0,
            batch_size=int(number(document, "batch_size", where, tool, least=1)),
            context_len=round(number(document, "input_len", where, tool) + output / 2),
            query_len=1,
            step_s=number(document, "median_decode_latency", where, tool),
            ttft_s=number(document, "prefill_latency", where, tool),
            samples=int(output),
        )
    ]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def median(values: list[float]) -> float | None:
    """Median; None of nothing."""
    return statistics.median(values) if values else None
