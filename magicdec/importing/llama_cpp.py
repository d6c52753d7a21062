"""Results of `llama-bench` and `llama-batched-bench`, and timings of `llama-server`."""

from __future__ import annotations

import re
from pathlib import PurePath

from .benchmarks import median
from .measured import Document, Measured, conditional, number, numbers, text

QUANT = re.compile(r"(?i)(?:^|[-_.])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|BF16|F16|F32|MXFP4))(?=$|[-_.])")
TIMING = re.compile(r"(?<!prompt )eval time\s*=\s*[\d.]+ ms /\s*(?P<tokens>\d+) (?:tokens|runs)\s*\(\s*(?P<ms>[\d.]+) ms per token")
PROMPT = re.compile(r"prompt eval time\s*=\s*(?P<ms>[\d.]+) ms /\s*(?P<tokens>\d+) tokens")
ACCEPTED = re.compile(
    r"draft acceptance(?: rate)?\s*=\s*[\d.]+\s*\(\s*(?P<accepted>\d+) accepted\s*/\s*(?P<drafted>\d+) generated\)"
)
LENGTH = re.compile(r"mean acceptance length\s*=\s*(?P<length>[\d.]+)")
SHARES = re.compile(r"acceptance rate per position\s*=\s*\(?(?P<shares>[\d., ]+)")


def name_of_file(path: str) -> tuple[str, str | None]:
    """(model, quantisation) by the name of a GGUF file."""
    stem = re.sub(r"(?i)-\d{5}-of-\d{5}$", "", PurePath(path.replace("\\", "/")).name.removesuffix(".gguf"))
    found = QUANT.search(stem)
    return (stem[: found.start()] or stem, found[1]) if found else (stem, None)


def bench(where: str, document: Document) -> list[Measured]:
    """One test of `llama-bench -o json` or `jsonl`; tests of prompts are left out.

    Raises:
        InputError: A number is missing or impossible.
    """
    tool = "llama-bench"
    tokens = number(document, "n_gen", where, tool)
    if not tokens or number(document, "n_prompt", where, tool):
        return []
    model, quant = name_of_file(text(document, "model_filename") or "")
    depth = document.get("n_depth")
    samples_s = [one / 1e9 / tokens for one in numbers(document, "samples_ns")]
    return [
        Measured(
            where,
            tool,
            model=model or None,
            gpu=text(document, "gpu_info") or text(document, "cpu_info"),
            engine="llama.cpp",
            quant=quant,
            draft="none",
            gamma=0,
            batch_size=1,
            context_len=round((depth if isinstance(depth, int) else 0) + tokens / 2),
            query_len=1,
            step_s=median(samples_s) or number(document, "avg_ns", where, tool) / 1e9 / tokens,
            samples=len(samples_s) or None,
        )
    ]


def batched_bench(where: str, document: Document) -> list[Measured]:
    """A line of `llama-batched-bench --output-format jsonl`.

    Raises:
        InputError: A number is missing or impossible.
    """
    tool = "llama-batched-bench"
    tokens = number(document, "tg", where, tool)
    if not tokens:
        return []
    return [
        Measured(
            where,
            tool,
            engine="llama.cpp",
            draft="none",
            gamma=0,
            batch_size=int(number(document, "pl", where, tool, least=1)),
            context_len=round(number(document, "pp", where, tool) + tokens / 2),
            query_len=1,
            step_s=number(document, "t_tg", where, tool) / tokens,
            ttft_s=number(document, "t_pp", where, tool) or None,
            samples=int(tokens),
        )
    ]


def server_log(where: str, log: str) -> list[Measured]:
    """Timings that `llama-server` logs after each completion; requests of the same kind become one measurement."""
    times_s, prompts, tokens, accepted, drafted = list[float](), list[int](), list[int](), 0, 0
    lengths, shares = list[float](), list[float]()
    for line in log.splitlines():
        if found := PROMPT.search(line):
            prompts.append(int(found["tokens"]))
        elif found := TIMING.search(line):
            times_s.append(float(found["ms"]) / 1e3)
            tokens.append(int(found["tokens"]))
        if found := ACCEPTED.search(line):
            accepted, drafted = accepted + int(found["accepted"]), drafted + int(found["drafted"])
        if found := LENGTH.search(line):
            lengths.append(float(found["length"]))
        if found := SHARES.search(line):
            shares = [float(one) for one in found["shares"].replace(",", " ").split() if re.fullmatch(r"\d*\.?\d+", one)]
    if not times_s:
        return []
    context = (median([float(one) for one in prompts]) or 0.0) + (median([float(one) for one in tokens]) or 0.0) / 2
    return [
        Measured(
            where,
            "llama-server log",
            engine="llama.cpp",
            draft=None if drafted else "none",
            gamma=len(shares) or None if drafted else 0,
            batch_size=1,
            context_len=round(context),
            tokens_per_round=median(lengths),
            acceptance_by_position=conditional(shares),
            tpot_s=median(times_s),
            samples=len(times_s),
        )
    ]
