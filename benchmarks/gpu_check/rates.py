"""Stage `rates`: the machine, what a copy moves and what a matrix product computes a second, and small matrix products."""

from __future__ import annotations

from functools import partial

import torch

from magicdec.costmodel.models.catalog import resolve_model
from magicdec.executor.measuring.measurement import environment

from .setting import COLD_BYTES, Setting, device_time_s

MODELS = ("llama-3.1-8b", "qwen3-8b", "llama-2-7b")
ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 32, 40, 48, 64)


def run(setting: Setting) -> None:
    """Measure and write."""
    device, dtype = setting.device, setting.dtype
    found = environment(device.type).model_dump()
    setting.write("rates", {"what": "environment", **{key: str(value) for key, value in found.items()}})
    setting.write("rates", {"what": "memory", **_memory_rates(device, 2**20 if setting.rehearse else 2**30)})
    size = 256 if setting.rehearse else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    setting.write("rates", {"what": "product", "size": size, "flop_per_s": 2 * size**3 / device_time_s([lambda: a @ a], device)})
    for name in MODELS[:1] if setting.rehearse else MODELS:
        config = resolve_model(name)
        shapes = {
            "qkv": (config.d_attention + 2 * config.d_kv, config.d_model),
            "o": (config.d_model, config.d_attention),
            "gate_up": (2 * config.d_ff, config.d_model),
            "down": (config.d_model, config.d_ff),
            "lm_head": (config.vocab_size, config.d_model),
        }
        for layer, (outputs, inputs) in shapes.items():
            if setting.rehearse:
                outputs, inputs = outputs // 16, inputs // 16
            copies = 1 if setting.rehearse else -(-COLD_BYTES // (outputs * inputs * 2))
            weights = [torch.randn(outputs, inputs, device=device, dtype=dtype) for _ in range(copies)]
            for rows in ROWS:
                if setting.time_is_up:
                    return
                x = torch.randn(rows, inputs, device=device, dtype=dtype)
                time_s = device_time_s([partial(torch.nn.functional.linear, x, weight) for weight in weights], device)
                setting.write(
                    "rates",
                    {"what": "layer", "model": name, "layer": layer, "rows": rows, "time_s": time_s}
                    | {"weight_bytes": weights[0].nbytes, "bytes_per_s": weights[0].nbytes / time_s},
                )


def _memory_rates(device: torch.device, size: int) -> dict[str, float]:
    source = torch.ones(size, device=device)
    place = torch.empty_like(source)
    return {
        "copy_bytes_per_s": 2 * source.nbytes / device_time_s([partial(place.copy_, source)], device),
        "read_bytes_per_s": source.nbytes / device_time_s([source.sum], device),
    }
