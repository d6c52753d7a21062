"""Stage `speculation`: plain beside speculative decoding with acceptance replayed at published rates, and where it should lose."""

from __future__ import annotations

import torch

from magicdec.costmodel.plans.strategy import Strategy

from ..replayed import measured
from .passes import largest, model_of
from .setting import Setting

# Batch sizes to try, the largest that fits is taken; context; policy, budget, gamma; acceptance rate (published for SnapKV and
# StreamingLLM self drafts of Llama-3.1-8B).
POINTS = (
    ((24, 16, 12, 8), 32768, ("snapkv", 2049, 4), 0.90),
    ((8, 6, 4), 100_000, ("snapkv", 2049, 4), 0.90),
    ((24, 16, 12, 8), 32768, ("streaming_llm", 512, 3), 0.80),
    ((64, 32), 4096, ("streaming_llm", 512, 3), 0.80),
    ((1,), 32768, ("snapkv", 2049, 4), 0.90),
    ((32,), 1024, ("streaming_llm", 256, 3), 0.80),
    ((1,), 1024, ("streaming_llm", 256, 3), 0.80),
)
REHEARSED = (((2,), 64, ("streaming_llm", 16, 2), 0.8), ((2,), 64, ("snapkv", 16, 2), 0.9))


def run(setting: Setting) -> None:
    """Measure and write."""
    model = model_of(setting)
    for batch_sizes, context_len, (policy, budget, gamma), rate in REHEARSED if setting.rehearse else POINTS:
        if setting.time_is_up:
            return
        fitting = largest(setting, model, batch_sizes, context_len)
        if not fitting:
            continue
        found = measured(
            model,
            Strategy("self", policy, budget, gamma),
            batch_size=fitting[0],
            context_len=context_len,
            acceptance_rate=rate,
            new_tokens=8 if setting.rehearse else 48,
            repeats=1 if setting.rehearse else 2,
        )
        found.pop("environment")
        setting.write("speculation", {**found, "kv_policy": policy, "kv_budget": budget, "gamma": gamma})
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
