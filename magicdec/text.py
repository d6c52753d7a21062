"""What people read: aligned tables and the sentence that sums a prediction up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from magicdec.costmodel.base.units import format_bytes, format_seconds, format_tokens
from magicdec.costmodel.passes.roofline import BOUNDS
from magicdec.costmodel.plans.strategy import Strategy

BOUND_WORDS = {
    "compute": "arithmetic",
    "weights": "reading weights",
    "kv": "reading the KV cache",
    "communication": "communication between GPUs",
    "overhead": "launch overhead",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: numbers to the right, words to the left."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [i > 0 and any(cell[:1].isdigit() for cell in column[1:]) for i, column in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        sides = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in sides).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def strategy_words(strategy: dict[str, Any]) -> str:
    """A strategy in words."""
    return str(Strategy(**strategy))


def speedup_words(low: float, middle: float, high: float) -> str:
    """A speedup with its interval: `1.69x (1.60x to 1.78x)`."""
    return f"{middle:.2f}x ({low:.2f}x to {high:.2f}x)"


def verdict(document: dict[str, Any]) -> str:
    """The sentence a planner needs."""
    strategy = document["strategy"]
    bound = BOUND_WORDS[document["bound"]]
    parts = document["breakdown"]["target"]
    share = parts[document["bound"]] / sum(parts.values())
    why = f"a plain decoding step spends {share:.0%} of its time on {bound}"
    low, middle, high = (document[f"predicted_speedup{end}"] for end in ("_low", "", "_high"))
    if middle is None:
        return f"How often {strategy_words(strategy)} is accepted is not known here: {_break_even(document)}; {why}."
    if not document["fits_in_memory"]:
        return f"It does not fit in memory: more GPUs, a smaller batch or a shorter context. If it did: {middle:.2f}x."
    other = document.get("runner_up")
    if strategy["draft_kind"] == "none" and other:
        best = f"the best draft, {strategy_words(other['strategy'])}, would run at {other['predicted_speedup']:.2f}x"
        return f"Do not speculate: {best}, which is no sure gain; {why}."
    if strategy["draft_kind"] == "none":
        step = format_seconds(document["predicted_target_step_s"])
        return f"Plain decoding takes {step} per token: {why}."
    verify = document["predicted_verify_step_s"] / document["predicted_target_step_s"]
    draft = document["predicted_draft_step_s"] / document["predicted_target_step_s"]
    costs = f"{why}, verification costs {verify:.2f} and a draft step {draft:.2f} of it"
    if low > 1:
        return f"Speculate: {strategy_words(strategy)} decodes {speedup_words(low, middle, high)} as fast; {costs}."
    if high < 1:
        return f"Do not speculate: {strategy_words(strategy)} would run at {speedup_words(low, middle, high)}; {costs}."
    return f"Within noise, do not speculate: {speedup_words(low, middle, high)} for {strategy_words(strategy)}; {costs}."


def _or_unknown(value: float | None, words: Callable[[float], str]) -> str:
    return "unknown" if value is None else words(value)


def _break_even(document: dict[str, Any]) -> str:
    least = document["minimum_useful_acceptance_rate"]
    return "it never pays" if least is None else f"it pays from an acceptance rate of {least:.2f}"


def prediction_text(document: dict[str, Any]) -> str:
    """A prediction for people: question, breakdown, round, memory, notes, verdict."""
    workload = document["workload"]
    gpus = f"{document['num_gpus']} x {document['hardware']}" if document["num_gpus"] > 1 else document["hardware"]
    head = (
        f"{document['model']} on {gpus}, batch {workload['batch_size']}, context {format_tokens(workload['context_len'])}: "
        f"{strategy_words(document['strategy'])}"
    )
    rows = [
        [name, *(format_seconds(parts[bound]) for bound in BOUNDS), format_seconds(sum(parts.values()))]
        for name, parts in document["breakdown"].items()
    ]
    lines = [head, "", table(["one step of", *BOUNDS, "total"], rows), "", f"bound             {document['bound']}"]
    if document["strategy"]["draft_kind"] != "none":
        rate, length = document["acceptance_rate"], document["predicted_mean_acceptance_length"]
        least = document["minimum_useful_acceptance_rate"]
        lines += [
            f"tokens per round  {'unknown' if length is None else f'{length:.2f}'}"
            + (f" at acceptance {rate:.2f}" if rate is not None else ""),
            "break-even        " + ("no acceptance rate pays" if least is None else f"acceptance {least:.2f}"),
        ]
    lines += [
        f"time per token    {_or_unknown(document['predicted_speculative_tpot_s'], format_seconds)}"
        f" (plain {format_seconds(document['predicted_target_step_s'])})",
        f"throughput        {_or_unknown(document['throughput_tokens_per_s'], '{:,.0f} tokens/s'.format)}",
        f"first token       {format_seconds(document['predicted_ttft_s'])} after a prompt is begun",
        f"memory per GPU    {format_bytes(document['memory_bytes'])}" + ("" if document["fits_in_memory"] else ", DOES NOT FIT"),
    ]
    lines += [f"note: {note}" for note in document["notes"]]
    return "\n".join([*lines, "", verdict(document)])


def comparison_rows(predicted: dict[str, Any], measured: dict[str, Any]) -> list[list[str]]:
    """Predicted beside measured, a row a quantity; quantities that either side lacks are left out."""
    quantities = [
        ("target step", "predicted_target_step_s", "measured_target_step_s", format_seconds),
        ("draft step", "predicted_draft_step_s", "measured_draft_step_s", format_seconds),
        ("verify step", "predicted_verify_step_s", "measured_verify_step_s", format_seconds),
        ("acceptance rate", "predicted_acceptance_rate", "acceptance_rate", lambda x: f"{x:.3f}"),
        ("tokens per round", "predicted_mean_acceptance_length", "mean_acceptance_length", lambda x: f"{x:.2f}"),
        ("time per token, plain", "predicted_target_step_s", "measured_autoregressive_tpot_s", format_seconds),
        ("time per token, speculative", "predicted_speculative_tpot_s", "measured_speculative_tpot_s", format_seconds),
        ("tokens/s", "predicted_throughput_tokens_per_s", "throughput_tokens_per_s", lambda x: f"{x:.0f}"),
        ("speedup", "predicted_speedup", "measured_speedup", lambda x: f"{x:.2f}x"),
    ]
    rows = []
    for name, left, right, show in quantities:
        a, b = predicted.get(left), measured.get(right)
        if a is not None and b is not None:
            rows.append([name, show(a), show(b), f"{a / b - 1:+.0%}"])
    return rows


def comparison_text(document: dict[str, Any]) -> str:
    """A run beside plain decoding and, where it ran what was planned, beside its prediction; and the verdict."""
    speedup, predicted = document["measured_speedup"], document["predicted_speedup"]
    identical = {True: "identical to", False: "DIFFERENT from", None: ""}[document["outputs_identical"]]
    lossless = f"the output is {identical} plain decoding over {document['tokens_compared']} tokens"
    if not identical:
        lossless = "the texts are samples: both ways draw them from the same distribution, and they are not compared"
    reads, peak = document["measured_target_bytes_per_s"], document["measured_peak_memory_bytes"]
    notes = [f"plain decoding read {format_bytes(reads)}/s; at most {format_bytes(peak)} of memory were used"]
    notes += [f"note: {difference['words']}" for difference in document["differences"]]
    who = strategy_words(document["strategy"]).capitalize()
    if not document["comparable"]:
        planned = f"The plan is for another machine ({document['planned_for']}) or workload: it predicts nothing of this run."
        return "\n".join([*notes, planned, f"{who} decoded {speedup:.2f}x as fast as plain decoding; {lossless}."])
    beside = table(["", "predicted", "measured", "error"], comparison_rows(document, document))
    error = f"predicted {predicted:.2f}x ({predicted / speedup - 1:+.0%})"
    return "\n".join([beside, *notes, "", f"{who} decoded {speedup:.2f}x as fast as plain decoding, {error}; {lossless}."])
