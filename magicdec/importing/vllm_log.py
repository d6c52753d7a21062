"""Log of a vLLM server: iterations (`--enable-logging-iteration-details`) and acceptance by position."""

from __future__ import annotations

import ast
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from .measured import Measured, conditional

ITERATION = re.compile(
    r"Iteration\(\d+\): (?P<prompts>\d+) context requests, (?P<prompt_tokens>\d+) context tokens, "
    r"(?P<requests>\d+) generation requests, (?P<tokens>\d+) generation tokens, iteration elapsed time: (?P<ms>[\d.]+) ms"
)
ACCEPTANCE = re.compile(
    r"SpecDecoding metrics:.*?Mean acceptance length: (?P<length>[\d.]+).*?Accepted: (?P<accepted>\d+) tokens, "
    r"Drafted: (?P<drafted>\d+) tokens.*?Per-position acceptance rate: (?P<shares>[\d., ]+)"
)
ARGUMENTS = re.compile(r"non-default args: (\{.*\})\s*$")
MAX_ARGUMENTS = 20_000  # characters


def vllm_log(where: str, log: str) -> list[Measured]:
    """A measurement for each number of running requests and query tokens that iterations without prompts had.

    Contexts are not in the log: they follow from the tokens that were read before, all requests being equally long.
    """
    said: Mapping[str, object] = {}
    cached, running = 0.0, 0
    times = defaultdict[tuple[int, int], list[tuple[float, float]]](list)  # by requests and tokens: seconds and context
    rounds, sums, lengths = 0.0, list[float](), list[tuple[float, float]]()
    for line in log.splitlines():
        if found := ITERATION.search(line):
            requests, tokens = int(found["requests"]), int(found["tokens"])
            if requests < running:  # some have ended
                cached *= requests / running
            running = 0 if int(found["prompts"]) else requests
            if requests and not int(found["prompts"]):
                times[requests, tokens].append((float(found["ms"]) / 1e3, cached / requests))
            cached += int(found["prompt_tokens"]) + requests
        elif found := ACCEPTANCE.search(line):
            shares = [float(one) for one in found["shares"].replace(",", " ").split()]
            drafts = int(found["drafted"]) / max(len(shares), 1)
            rounds += drafts
            sums = [a + drafts * b for a, b in zip(sums or [0.0] * len(shares), shares, strict=False)]
            lengths.append((float(found["length"]), drafts))
        elif found := ARGUMENTS.search(line):
            said = _arguments(found[1])
    speculative = said.get("speculative_config")
    config: Mapping[str, object] = speculative if isinstance(speculative, dict) else {}
    gamma = config.get("num_speculative_tokens")
    tensor_parallel = said.get("tensor_parallel_size")
    common = Measured(
        where,
        "vLLM log",
        engine="vllm",
        model=_text(said.get("served_model_name")) or _text(said.get("model")),
        quant=_text(said.get("quantization")),
        num_gpus=tensor_parallel if isinstance(tensor_parallel, int) and tensor_parallel > 0 else None,
        draft=(_text(config.get("method")) or "model") if config else "none",
        gamma=gamma if isinstance(gamma, int) and config else 0,
    )
    measured = [
        replace(
            common,
            batch_size=requests,
            context_len=round(statistics.median(context for _, context in found)),
            query_len=round(tokens / requests),
            step_s=statistics.median(time_s for time_s, _ in found),
            samples=len(found),
        )
        for (requests, tokens), found in sorted(times.items())
    ]
    if rounds:
        rates = conditional([total / rounds for total in sums])
        length = sum(a * b for a, b in lengths) / rounds
        acceptance = replace(common, gamma=len(sums), tokens_per_round=length, acceptance_by_position=rates)
        measured.append(replace(acceptance, samples=round(rounds)))
    return measured


def _arguments(text: str) -> Mapping[str, object]:
    """The arguments of the server, a Python literal; nothing if it is cut off."""
    if len(text) > MAX_ARGUMENTS:
        return {}
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, str) and value.isprintable() else None
