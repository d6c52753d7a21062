"""Stage `passes`: target, draft and verification passes of Llama-3.1-8B's shape with random weights, in the decoding loop."""

from __future__ import annotations

from dataclasses import asdict

import torch

from magicdec.executor.measuring.loop_probe import LoopProbe, LoopShapes
from magicdec.executor.model.transformer import Transformer
from magicdec.executor.reference_model import reference_model_dir

from ..replayed import random_weights
from .setting import Setting

MODEL = "llama-3.1-8b"
# Batch sizes, context and budget: long contexts first.
POINTS = (((24, 16, 8, 1), 32768, 512), ((8, 4), 100_000, 2049), ((32, 8, 1), 8192, 512), ((64, 16, 1), 2048, 256))
GAMMAS = (1, 4, 8)
REHEARSED = (((2, 1), 64, 16),)


def model_of(setting: Setting) -> Transformer:
    """The model, or the reference model's shape in a rehearsal."""
    name = str(reference_model_dir() / "config.json") if setting.rehearse else MODEL
    return random_weights(name, setting.device.type, _name(setting.dtype), 131_072)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def largest(setting: Setting, model: Transformer, batch_sizes: tuple[int, ...], context_len: int) -> list[int]:
    """The batch sizes whose cache fits."""
    row_bytes = (context_len + 256) * model.config.kv_bytes_per_token
    return [size for size in batch_sizes if 1.1 * size * row_bytes < setting.memory_bytes]


def run(setting: Setting) -> None:
    """Measure and write."""
    model = model_of(setting)
    for batch_sizes, context_len, kv_budget in REHEARSED if setting.rehearse else POINTS:
        fitting = largest(setting, model, batch_sizes, context_len)
        if not fitting:
            continue
        probe: LoopProbe | None = None
        for batch_size in fitting:
            if setting.time_is_up:
                return
            shapes = LoopShapes((batch_size,), (context_len,), (kv_budget,), GAMMAS)
            probe = probe or LoopProbe(model, shapes)
            probe.measure(shapes)  # compiles kernels and captures graphs
            for one in probe.measure(shapes).rounds:
                setting.write("passes", {"model": model.config.name, **asdict(one)})
        del probe
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
