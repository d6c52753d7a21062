"""Which tool wrote a file, by what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.files import read_text
from magicdec.costmodel.base.json_text import load_json
from magicdec.costmodel.base.json_types import Json
from magicdec.costmodel.base.limits import MAX_DATA_BYTES

from . import benchmarks, llama_cpp
from .measured import Document, Measured
from .metrics import metrics
from .vllm_log import vllm_log

# Keys that only the results of one tool have, and who reads them.
JSON_TOOLS: tuple[tuple[frozenset[str], Callable[[str, Document], list[Measured]]], ...] = (
    (frozenset({"median_decode_latency", "run_name"}), benchmarks.sglang_one_batch),
    (frozenset({"run_name", "prefill_latency", "input_len"}), benchmarks.sglang_one_batch),
    (frozenset({"accept_length", "median_tpot_ms"}), benchmarks.sglang_serving),
    (frozenset({"request_throughput", "completed", "total_input_tokens"}), benchmarks.vllm_serve),
    (frozenset({"avg_latency", "latencies", "percentiles"}), benchmarks.vllm_latency),
    (frozenset({"n_gen", "n_prompt", "model_filename"}), llama_cpp.bench),
    (frozenset({"t_tg", "pl", "pp"}), llama_cpp.batched_bench),
)
TEXT_TOOLS = (vllm_log, llama_cpp.server_log, metrics)
KNOWN = (
    "results of vllm bench serve, sglang bench_serving or bench_one_batch, llama-bench (-o json), llama-batched-bench (jsonl), "
    "logs of vLLM or llama-server, or metrics of vLLM or SGLang"
)
MAX_VALUES = 5_000_000  # of a result with the times of every token


def read_results(path: str) -> list[Measured]:
    """The measurements of a file.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, no known tool wrote it, or something in it is missing or impossible.
    """
    text = read_text(path, "file of results", max_bytes=MAX_DATA_BYTES)
    start = text.lstrip()[:1]
    found = list(_from_json(path, text)) if start in ("{", "[") else _from_text(path, text)
    if not found:
        raise bad(path, "", KNOWN, "nothing of these that tells decoding times or acceptance")
    return found


def _from_json(path: str, text: str) -> Iterator[Measured]:
    for document in _documents(path, text):
        tool = next((read for keys, read in JSON_TOOLS if keys <= document.keys()), None)
        if tool is None:
            raise bad(path, "", KNOWN, f"an object with the keys {', '.join(list(document)[:8]) or 'none'}")
        yield from tool(path, document)


def _documents(path: str, text: str) -> Iterator[Document]:
    """The objects of a JSON file, of a list in it, or of one on each line."""
    lines = [line for line in text.splitlines() if line.strip()]
    by_line = len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines)
    values: list[Json] = [
        load_json(one, path, "results of a benchmark", finite=False, max_values=MAX_VALUES, max_text_length=2**20)
        for one in (lines if by_line else [text])
    ]
    if len(values) == 1 and isinstance(values[0], list | tuple):
        values = list(values[0])
    for value in values:
        if not isinstance(value, dict):
            raise bad(path, "", KNOWN, f"a list with {type(value).__name__} in it")
        yield value


def _from_text(path: str, text: str) -> list[Measured]:
    return next(filter(None, (read(path, text) for read in TEXT_TOOLS)), [])
