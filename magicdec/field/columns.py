"""What the columns of a file of measurements mean, by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.base.units import parse_tokens

Cells = Mapping[str, str]
# What each quantity is called; the first column that has a value counts.
NAMES: dict[str, tuple[str, ...]] = {
    "model": ("model", "target", "model_name", "model_shape"),
    "hardware": ("hardware", "gpu", "device", "card", "machine"),
    "engine": ("engine", "backend", "framework", "runtime", "kernel"),
    "num_gpus": ("num_gpus", "gpus", "gpu_count", "tp", "tensor_parallel"),
    "split": ("split", "split_mode"),
    "quant": ("quant", "weight_dtype", "quantisation", "quantization"),
    "batch": ("batch", "batch_size", "num_reqs", "concurrency", "num_sequences", "num_requests", "streams"),
    "context": ("context_len", "prompt_len", "kv_len", "isl", "kv_len_before", "context", "prompt_tokens"),
    "gamma": ("gamma", "n_max", "num_speculative_tokens", "num_draft", "steps"),
    "draft": ("draft", "draft_kind", "method"),
    "topk": ("topk", "eagle_topk", "tree_width"),
    "tree_tokens": ("num_draft_tokens", "tree_tokens"),
    "query_len": ("query_len", "verify_width"),
    "kv_ratio": ("kv_ratio",),
    "kv_budget": ("kv_budget",),
    "tokens_per_round": (
        "tokens_per_round",
        "accept_length",
        "mean_acceptance_length",
        "mean_tokens_per_round",
        "acceptance_length",
    ),
    "rate": ("alpha", "acceptance_rate", "conditional_acceptance"),
    "share": ("acceptance_aggregate", "draft_acceptance_rate", "accepted_fraction", "acceptance"),
    "tensor_parallel": ("parallel",),
}
# Measured columns: the quantity, and what makes it seconds, tokens a second or a ratio.
RATES = ("tok_s_overall", "decode_tok_s", "output_tok_s", "tok_s", "tokens_per_s", "throughput_tokens_per_s", "measured_tok_s")
PLAIN_RATES = ("tok_s_plain", "plain_tok_s", "baseline_tok_s")
SPECULATIVE_RATES = ("tok_s_speculative", "speculative_tok_s")
STEPS = {
    "mean_step_ms": 1e-3,
    "ms_per_token": 1e-3,
    "step_ms": 1e-3,
    "tpot_ms": 1e-3,
    "itl_ms": 1e-3,
    "median_tpot_s": 1.0,
    "tpot_s": 1.0,
    "step_s": 1.0,
}
FORWARD = {"median_forward_ms": 1e-3, "forward_ms": 1e-3}
KERNEL = {"time_us": 1e-6, "median_time_ms": 1e-3}
TASK_COLUMNS = ("tok_s_code", "tok_s_prose", "tok_s_shell")
PLAIN_WORDS = ("none", "plain", "baseline", "off", "no speculation")
# Of several tasks whose lowest and highest acceptance is given, most resemble the best: code, shell and prose.
BETWEEN = 0.6
# What the name of a file says of rows that do not say it.
FILE_NAMES: tuple[tuple[str, dict[str, str]], ...] = (
    ("specbundle", {"hardware": "h200-sxm", "engine": "sglang"}),
    ("inferencex_token_position", {"hardware": "h200-sxm", "engine": "vllm"}),
    ("llmservingsim", {"engine": "vllm eager"}),
    ("sglang", {"engine": "sglang"}),
    ("vllm", {"engine": "vllm"}),
    ("llamacpp", {"engine": "llama.cpp"}),
    ("a6000", {"hardware": "rtx-a6000"}),
    ("rtx3090", {"hardware": "rtx-3090"}),
    ("dgx_spark", {"hardware": "gb10"}),
    ("h100", {"hardware": "h100-sxm"}),
    ("h200", {"hardware": "h200-sxm"}),
)
MACHINES = {"dgx-spark-gb10": "gb10", "dgx-spark": "gb10"}


def cell(row: Cells, quantity: str) -> str:
    """The value of a quantity; empty if the row does not say it.

    Args:
        row: The cells, by column.
        quantity: A key of `NAMES`.
    """
    return next((row[name].strip() for name in NAMES[quantity] if row.get(name, "").strip()), "")


def number(row: Cells, name: str) -> float | None:
    """A number in a column; None where there is none.

    Raises:
        InputError: The cell holds something else.
    """
    text = row.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise bad(name, "", "a number", repr(text)) from None
    if not math.isfinite(value):
        raise bad(name, "", "a number", repr(text))
    return value


def whole(row: Cells, quantity: str) -> int | None:
    """A whole number of a quantity; None where the row does not say it.

    Raises:
        InputError: The cell holds something else.
    """
    text = cell(row, quantity)
    if not text:
        return None
    if re.fullmatch(r"0(\.0*)?", text):
        return 0
    return parse_tokens(re.sub(r"\.0*$", "", text), next(name for name in NAMES[quantity] if row.get(name, "").strip()))


def first(row: Cells, names: tuple[str, ...] | dict[str, float]) -> float | None:
    """The number in the first of these columns that has one, in seconds where the columns have a unit."""
    for name in names:
        value = number(row, name)
        if value is not None:
            return value * (names[name] if isinstance(names, dict) else 1.0)
    return None


def said_by_name(path: str | Path) -> dict[str, str]:
    """What the name of a file says of machine and engine."""
    stem = Path(path).stem.lower().replace("-", "_")
    found: dict[str, str] = {}
    for fragment, said in FILE_NAMES:
        if fragment in stem:
            found = {**said, **found}
    return found


def hardware_of(row: Cells, said: Mapping[str, str]) -> str:
    """The machine of a row, by a name that profiles are found by."""
    text = cell(row, "hardware") or said.get("hardware", "")
    text = re.sub(r"^\d+\s*x\s*", "", text.strip())
    return MACHINES.get(text.lower(), text)


def model_of(row: Cells) -> str:
    """The model of a row, with its quantisation, by a name that models are found by."""
    name, quant = re.sub(r"\s*\([^)]*\)", "", cell(row, "model")), cell(row, "quant")
    if "quantised" in cell(row, "model"):
        quant = quant or "Q4_K_M"
    quant = quant.partition("/")[0].replace("UD-", "")
    return name if not quant or quant.lower() == "none" else f"{name}-{quant}"


def is_plain(row: Cells) -> bool:
    """Whether a row is one of decoding without speculation."""
    draft = cell(row, "draft").lower()
    if any(draft == word for word in PLAIN_WORDS) or draft.startswith(("wihtout", "without")):
        return True
    gamma = cell(row, "gamma")
    return bool(re.fullmatch(r"0(\.0*)?", gamma)) if gamma else not draft


def tokens_per_round(row: Cells, gamma: int) -> tuple[float | None, float | None]:
    """(tokens per round, acceptance rate) as the row gives them; at most one of them is known.

    Args:
        row: The cells, by column.
        gamma: Draft tokens per round. [tokens]

    Raises:
        InputError: A cell holds no number, or an acceptance is none.
    """
    length = first(row, NAMES["tokens_per_round"])
    if length is not None:
        if not 1 <= length <= max(gamma + 1, (whole(row, "tree_tokens") or 0)):
            raise bad("tokens per round", "", f"1 to gamma + 1 = {gamma + 1}", f"{length:g}")
        return length, None
    share = first(row, NAMES["share"])
    low, high = number(row, "acceptance_low"), number(row, "acceptance_high")
    if share is None and low is not None and high is not None:
        share = low + BETWEEN * (high - low)
    note = row.get("acceptance_note", "")
    if share is None and (found := re.search(r"acceptance (0?\.\d+)", note)):
        share = float(found[1])
    if share is None and ("every draft token accepted" in note or "all accepted" in cell(row, "draft")):
        share = 1.0
    if share is not None:
        if not 0 <= share <= 1:
            raise bad("acceptance", "", "a share of the draft tokens, 0 to 1", f"{share:g}")
        return 1 + gamma * share, None
    rate = first(row, NAMES["rate"])
    if rate is not None and not 0 <= rate <= 1:
        raise bad("acceptance rate", "", "a probability, 0 to 1", f"{rate:g}")
    return None, rate
