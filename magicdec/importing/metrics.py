"""Metrics of vLLM and SGLang servers, in the text format of Prometheus."""

from __future__ import annotations

import re
from collections import defaultdict

from .measured import Measured, conditional

SAMPLE = re.compile(r"^(?P<name>[a-z_]+:[a-z_]+)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>[-+.\deE]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def metrics(where: str, page: str) -> list[Measured]:
    """Acceptance by position and mean times, over all that the server has done so far."""
    totals, positions, model = defaultdict[str, float](float), defaultdict[int, float](float), None
    for found in SAMPLE.finditer(page):
        name, labels = found["name"], dict(LABEL.findall(found["labels"] or ""))
        model = labels.get("model_name", model)
        try:
            value = float(found["value"])
        except ValueError:
            continue
        if name.startswith("vllm:spec_decode_num_accepted_tokens_per_pos") and labels.get("position", "").isdigit():
            positions[int(labels["position"][:4])] += value
        else:
            totals[name.removesuffix("_total")] += value
    engine = "vllm" if any(name.startswith("vllm:") for name in totals) else "sglang"
    drafts = totals["vllm:spec_decode_num_drafts"]
    length: float | None = None
    shares: list[float] = []
    if drafts > 0:
        length = 1 + totals["vllm:spec_decode_num_accepted_tokens"] / drafts
        shares = [positions[place] / drafts for place in sorted(positions)]
    elif totals["sglang:spec_accept_length"] > 1:
        length = totals["sglang:spec_accept_length"]
    tpot = "request_time_per_output_token_seconds", "time_per_output_token_seconds", "inter_token_latency_seconds"
    tpot_s = next(filter(None, (_mean(totals, f"{engine}:{name}") for name in tpot)), None)
    if length is None and tpot_s is None:
        return []
    return [
        Measured(
            where,
            f"metrics of {engine}",
            model=model,
            engine=engine,
            draft="none" if length is None else None,
            gamma=len(shares) or (None if length else 0),
            tokens_per_round=length,
            acceptance_by_position=conditional(shares),
            tpot_s=tpot_s,
            ttft_s=_mean(totals, f"{engine}:time_to_first_token_seconds"),
            samples=round(drafts) or None,
        )
    ]


def _mean(totals: dict[str, float], name: str) -> float | None:
    count = totals.get(f"{name}_count", 0.0)
    return totals.get(f"{name}_sum", 0.0) / count if count > 0 else None
